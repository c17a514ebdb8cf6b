"""lm-eval's tasks loaded: found by name, their data from the hub or a folder, their requests built once."""

import contextlib
import difflib
import inspect
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy

from train.benchmarks.config import LmEvalConfig
from train.errors import ConfigError, DataError, UserError

_SEED_PYTHON, _SEED_NUMPY, _SEED_FEWSHOT = 0, 1234, 1234  # those of lm-eval's command line


@dataclass(slots=True, eq=False)
class LoadedTask:
    """One lm-eval task with the documents that are asked."""

    name: str
    task: Any
    docs: list[tuple[int, Any]] = field(default_factory=list)


def import_lm_eval(name: str) -> Any:
    """lm-eval, or what to type."""
    try:
        with quiet():
            import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"eval.benchmarks.{name} needs lm-eval, which isn't installed ({error.name or error})",
            "the extra eval",
            "pip install -e '.[eval]'",
        ) from None


def load_tasks(
    name: str, config: LmEvalConfig, limit: int | None, cache_folder: Path | None, data_identity: str
) -> list[LoadedTask]:
    """The tasks with their requests, which are kept by what the data hold: lm-eval itself asks for the name only."""
    import lm_eval.api.task
    import lm_eval.caching.cache
    from tqdm import tqdm

    lm_eval.api.task.tqdm = partial(tqdm, disable=True)  # type: ignore[attr-defined]
    tasks = _tasks_by_name(name, config.tasks)
    share, rest = divmod(limit, len(tasks)) if limit is not None else (0, 0)
    found = []
    for place, (task_name, task) in enumerate(sorted(tasks.items())):
        number = None if limit is None else share + (place < rest)
        if number == 0:
            continue
        if config.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=config.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED_FEWSHOT)
        keeps = False
        if cache_folder is not None and number is None:  # a part isn't worth keeping
            keeps = True
            version = f"{lm_eval.__version__}-{task.VERSION}-{data_identity[:16]}"
            lm_eval.caching.cache.PATH = str(cache_folder / "lm_eval" / version)
        task.build_all_requests(limit=number, rank=0, world_size=1, cache_requests=keeps)
        docs = list(task.doc_iterator(rank=0, limit=number, world_size=1))
        found.append(LoadedTask(task_name, task, docs))
    return found


def _tasks_by_name(name: str, wanted: Sequence[str]) -> dict[str, Any]:
    """The tasks and the members of groups; ConfigError with the nearest names for one that doesn't exist."""
    manager = _manager(wanted, everything=False)
    if any(task not in manager.all_tasks for task in wanted):
        manager = _manager(wanted, everything=True)
    for task in wanted:
        if task not in manager.all_tasks:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3, cutoff=0.5)
            raise ConfigError(
                f"eval.benchmarks.{name}.tasks names {task}, which lm-eval doesn't have",
                "a task, group or tag of lm-eval",
                f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them",
            )
    try:
        return dict(manager.load(list(wanted))["tasks"])
    except UserError:
        raise
    except Exception as error:  # network, files, columns: a dozen classes of several libraries
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise DataError(
            f"the data of eval.benchmarks.{name} ({', '.join(wanted)}) can't be loaded: "
            f"{type(error).__name__}: {line}",
            "a network, a filled cache of `datasets`, or a folder laid out like the hub",
            "set eval.data=/folder with ORGANISATION/NAME in it",
        ) from None


_managers: dict[tuple[str, ...], Any] = {}


def _manager(wanted: Sequence[str], *, everything: bool) -> Any:
    """lm-eval's index of tasks. Reading all 14,000 takes 6 s, the folders that share a name's beginning 0.1 s."""
    from lm_eval.tasks import TaskManager

    folder = Path(str(inspect.getfile(TaskManager))).parent
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    starts = {max((own for own in names if task.startswith(own)), key=len, default="") for task in wanted}
    key = ("*",) if everything or "" in starts else tuple(sorted(starts))
    if key not in _managers:
        if key == ("*",):
            _managers[key] = TaskManager()
        else:
            paths: list[str | Path] = [folder / own for own in key]
            _managers[key] = TaskManager(include_path=paths, include_defaults=False)
    return _managers[key]


@contextlib.contextmanager
def data_from(folder: Path | None, cache_folder: Path | None, data_identity: str) -> Iterator[None]:
    """Data sets by their hub names out of a folder laid out like the hub, without changing directory.

    `datasets` keeps its tables by the folder's name, whatever its files hold now: here by data_identity too.
    """
    import datasets

    if folder is None:
        yield
        return
    original = datasets.load_dataset

    def load(path: str, name: str | None = None, **settings: Any) -> Any:
        if not (folder / path).is_dir():
            raise DataError(
                f"eval.data={folder} has no {path}",
                "a folder ORGANISATION/NAME for every data set, each with a README.md that lists its files",
                "put it there, or leave eval.data out to download it",
            )
        if cache_folder is not None:
            settings["cache_dir"] = str(cache_folder / "datasets" / data_identity[:16])
        return original(str(folder / path), name, **settings)

    datasets.load_dataset = load  # type: ignore[assignment]
    try:
        yield
    finally:
        datasets.load_dataset = original


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's own seeds while inside; what others drew isn't disturbed."""
    states = random.getstate(), numpy.random.get_state()
    random.seed(_SEED_PYTHON)
    numpy.random.seed(_SEED_NUMPY)
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without other libraries' deprecations and progress bars."""
    import datasets

    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
