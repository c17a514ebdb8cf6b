"""One run on several processes: `launch` starts them and waits; `python -m train.launch JOB` is each of them.

Rank 0 does what `train.run` does and writes the result; the others only train. They speak through files of
the run's folder, so the starter may be a worker of a sweep, a job of a cluster, or a person with torchrun:

    torchrun --nnodes=2 --nproc-per-node=8 -m train.launch FOLDER/ranks_job.json
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.config import RunConfig, config_to_dict, run_config_from_dict
from train.errors import UserError
from train.files import read_json, write_json_atomic
from train.record import RunRecord, record_from_dict, record_to_dict
from train.secrets import scrub_file
from train.tracking_values import Asked

JOB_FILE, RESULT_FILE, STOP_FILE, PROGRESS_FILE = (
    "ranks_job.json",
    "ranks_result.json",
    "ranks_stop",
    "ranks_progress.json",
)
_STARTER = "WEIGHT_SWEEP_STARTER_PID"  # when that process is gone, the ranks save their state and end
_POLL_S = 0.2


class RanksFailedError(RuntimeError):
    """The processes of a run ended without a result; the message has the last lines of their log."""


def is_rank() -> bool:
    """Whether this process was started by torchrun as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(
    config: RunConfig,
    *,
    run_id: str,
    fingerprint: str,
    folder: Path,
    attempt: int,
    cache_folder: Path | None,
    model_identity: str,
    dataset_identity: str,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    asked: Asked = Asked(),
) -> RunRecord:
    """Train one run on config.train.num_ranks processes of this machine; the record is returned, not written.

    Raises   Interrupted after the ranks saved their state; UserError as a rank raised it; RanksFailedError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT_FILE, STOP_FILE, PROGRESS_FILE):
        (folder / name).unlink(missing_ok=True)
    job = {
        "config": config_to_dict(config),
        "run_id": run_id,
        "fingerprint": fingerprint,
        "attempt": attempt,
        "cache_folder": None if cache_folder is None else str(cache_folder.absolute()),
        "model_identity": model_identity,
        "dataset_identity": dataset_identity,
        "asked": dataclasses.asdict(asked),
    }
    write_json_atomic(folder / JOB_FILE, job)
    with _started(config, folder) as process:
        told = 0
        while process.poll() is None:
            time.sleep(_POLL_S)
            if should_stop():
                (folder / STOP_FILE).touch()
            told = _tell(folder, told, on_progress)
    return _outcome(folder, process.returncode)


@contextlib.contextmanager
def _started(config: RunConfig, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with a log beside the run; ended with everything under it if the starter goes."""
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(config.train.num_threads),
        _STARTER: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(config.train.num_ranks),
        "-m",
        "train.launch",
        str((folder / JOB_FILE).absolute()),
    ]
    with open(folder / "ranks.log", "ab") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
            scrub_file(folder / "ranks.log")


def _tell(folder: Path, told: int, on_progress: Callable[[int, int], None]) -> int:
    """Pass on the ranks' progress; returns the last step told of."""
    values = read_json(folder / PROGRESS_FILE)
    if values and values["step"] != told:
        on_progress(values["step"], values["steps"])
        return values["step"]
    return told


def _outcome(folder: Path, exit_code: int) -> RunRecord:
    from train.loop import Interrupted

    result = read_json(folder / RESULT_FILE) or {}
    record = record_from_dict(result.get("record") or {})
    if record is not None:
        return record
    if "interrupted" in result:
        raise Interrupted(result["interrupted"])
    if "user_error" in result:
        import train.errors

        raise getattr(train.errors, result["user_error"]["kind"])(*result["user_error"]["parts"])
    with contextlib.suppress(OSError):
        lines = (folder / "ranks.log").read_text(encoding="utf-8", errors="replace").splitlines()
        own = [line.split("]:")[-1].strip() for line in lines if "Error" in line]
        last = (own or lines or [""])[-1][:300]
        raise RanksFailedError(
            f"the ranks ended with exit code {exit_code}: {last}; see {folder / 'ranks.log'}"
        )
    raise RanksFailedError(f"the ranks ended with exit code {exit_code}")


def main(job_file: Path) -> int:
    """One rank. Exit code 0: the result file says what came of it."""
    from train.loop import Interrupted

    folder, job = job_file.parent, json.loads(job_file.read_text(encoding="utf-8"))
    is_first = int(os.environ.get("RANK", "0")) == 0
    config = run_config_from_dict(job["config"])
    result: dict[str, Any]
    try:
        record = (_first if is_first else _other)(config, job, folder)
        result = {"record": record_to_dict(record)} if record is not None else {}
    except Interrupted as error:
        result = {"interrupted": str(error)}
    except UserError as error:
        result = {
            "user_error": {"kind": type(error).__name__, "parts": [error.problem, error.expected, error.fix]}
        }
    if is_first:
        write_json_atomic(folder / RESULT_FILE, result)
    return 0


def _first(config: RunConfig, job: Mapping[str, Any], folder: Path) -> RunRecord:
    from train.run import run
    from train.workbench import Workbench

    def on_progress(step: int, steps: int) -> None:
        write_json_atomic(folder / PROGRESS_FILE, {"step": step, "steps": steps})

    return run(
        config,
        run_id=job["run_id"],
        fingerprint=job["fingerprint"],
        folder=folder,
        attempt=job["attempt"],
        workbench=Workbench(_cache(job)),
        model_identity=job["model_identity"],
        dataset_identity=job["dataset_identity"],
        should_stop=lambda: _should_stop(folder),
        on_progress=on_progress,
        asked=Asked(**job["asked"] | {"aliases": tuple(job["asked"]["aliases"])}),
    )


def _should_stop(folder: Path) -> bool:
    """Whether the starter says so, or is gone."""
    starter = os.environ.get(_STARTER)
    return (folder / STOP_FILE).exists() or (starter is not None and not Path(f"/proc/{starter}").exists())


def _other(config: RunConfig, job: Mapping[str, Any], folder: Path) -> None:
    """Train along; a non-finite loss is rank 0's to record."""
    import torch

    from train.distributed import local_device, world_of
    from train.failures import NonFiniteLossError
    from train.loop import Hooks, train_model
    from train.model import add_adapters
    from train.run import device_of
    from train.seeds import seed_of
    from train.tracking import NullTracker
    from train.workbench import Workbench

    torch.set_num_threads(config.train.num_threads)
    device, workbench = local_device(device_of(config)), Workbench(_cache(job))
    model = workbench.model(config, job["model_identity"], device)
    data = workbench.data(config, model, job["model_identity"], job["dataset_identity"])
    if config.train.method == "lora":
        model = add_adapters(model, config.train, seed_of(config, "init"))
    hooks = Hooks(lambda: _should_stop(folder), lambda step, steps: None, NullTracker())
    with world_of(config.train.distributed, device) as world, contextlib.suppress(NonFiniteLossError):
        train_model(
            model,
            data.splits["train"],
            config,
            fingerprint=job["fingerprint"],
            folder=folder,
            device=device,
            hooks=hooks,
            world=world,
        )


def _cache(job: Mapping[str, Any]) -> Path | None:
    return None if job["cache_folder"] is None else Path(job["cache_folder"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
