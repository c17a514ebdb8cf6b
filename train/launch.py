"""One run on several processes: `launch` starts them and waits; `python -m train.launch JOB` is each of them.

Rank 0 does what `train.run` does and writes the result; the others train and measure along. They speak
through files of the run's folder, so the starter may be a worker of a sweep, a job of a cluster, or a person
with torchrun:

    torchrun --nnodes=2 --nproc-per-node=8 -m train.launch FOLDER/ranks_job.json
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import RunConfig, config_to_dict, run_config_from_dict
from train.errors import UserError
from train.failures import RankFailedError, RankLostError, failure_from_exception
from train.files import read_json, write_json_atomic
from train.rank_processes import (
    SAVING_S,
    RankProcesses,
    how_it_ended,
    name_this_rank,
    python_command,
    start_ranks,
)
from train.record import Failure, RunRecord, record_from_dict, record_to_dict
from train.rungs import Paused
from train.scrubbing import scrubbed_file
from train.tracking_values import Asked

JOB_FILE, RESULT_FILE, STOP_FILE, PROGRESS_FILE, LOG_FILE = (
    "ranks_job.json",
    "ranks_result.json",
    "ranks_stop",
    "ranks_progress.json",
    "ranks.log",
)
_ERROR_FILES = "ranks_error-*.json"  # of each rank that failed
_STARTER = "WEIGHT_SWEEP_STARTER_PID"  # when that process is gone, the ranks save their state and end
_POLL_S = 0.2
_PEER_LOST = re.compile(  # what a rank says when another one, or the way to it, is gone
    r"connection (closed|reset|refused)|broken pipe|gloo|nccl|dist(network|backend|store)?error|tcpstore"
    r"|processgroup|socket timeout|watchdog|collective",
    re.IGNORECASE,
)
_BROKEN_DEVICE = re.compile(
    r"nccl (error|warn)|ncclsystemerror|ncclremoteerror|ncclunhandled|\becc\b|nvlink|xid \d|fallen off the bus"
    r"|unspecified launch failure|node failure",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"oom.?kill|exceeded (job |step )?memory limit", re.IGNORECASE)


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
    pause_at: float | None = None,
) -> RunRecord:
    """Train one run on config.num_ranks processes; the record is returned, not written.

    Raises   Interrupted or Paused after the ranks saved their state; UserError as a rank raised it; RankFailedError for
             what broke in a rank, RankLostError for a rank that died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("ranks*"):
        path.unlink()
    job = {
        "config": config_to_dict(config),
        "run_id": run_id,
        "fingerprint": fingerprint,
        "attempt": attempt,
        "cache_folder": None if cache_folder is None else str(cache_folder.absolute()),
        "model_identity": model_identity,
        "dataset_identity": dataset_identity,
        "asked": dataclasses.asdict(asked),
        "pause_at": pause_at,
    }
    write_json_atomic(folder / JOB_FILE, job)
    with scrubbed_file(folder / LOG_FILE) as log, _started(config, folder, log) as ranks:
        told = 0
        while (code := ranks.poll()) is None:
            time.sleep(_POLL_S)
            if should_stop():
                (folder / STOP_FILE).touch()
            told = _tell(folder, told, on_progress)
    return _outcome(folder, code)


@contextlib.contextmanager
def _started(config: RunConfig, folder: Path, log: int) -> Iterator[RankProcesses]:
    """The ranks, with a log beside the run. If their starter is being ended they may save, as everywhere."""
    command = python_command("train.launch", str((folder / JOB_FILE).absolute()))
    ranks = start_ranks(config, command, log, _STARTER)
    try:
        yield ranks
    except BaseException:
        (folder / STOP_FILE).touch()
        ranks.wait(SAVING_S)
        raise
    finally:
        ranks.kill()


def _tell(folder: Path, told: int, on_progress: Callable[[int, int], None]) -> int:
    """Pass on the ranks' progress; returns the last step told of."""
    values = read_json(folder / PROGRESS_FILE)
    if values and values["step"] != told:
        on_progress(values["step"], values["steps"])
        return values["step"]
    return told


def _outcome(folder: Path, code: int) -> RunRecord:
    """What came of the ranks. `code`: 0, or how the first that failed ended."""
    from train.loop import Interrupted

    result = read_json(folder / RESULT_FILE) or {}
    record = record_from_dict(result.get("record") or {})
    if record is not None and code == 0:
        for name in (JOB_FILE, RESULT_FILE, PROGRESS_FILE, STOP_FILE):
            (folder / name).unlink(missing_ok=True)
        return record
    if "interrupted" in result and code == 0:
        raise Interrupted(result["interrupted"])
    if "paused" in result and code == 0:
        raise Paused(**result["paused"])
    log = ""
    with contextlib.suppress(OSError):
        lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        log = "\n".join(lines[-60:])
        print(log, file=sys.stderr)
    errors = [values for path in sorted(folder.glob(_ERROR_FILES)) if (values := read_json(path))]
    raise cause_of(errors, how_it_ended(code), log)


def cause_of(errors: Sequence[Mapping[str, Any]], ending: str, log: str = "") -> Exception:
    """The error to raise for ranks of which one failed: the others' words are about having lost it.

    errors   what failing ranks wrote: rank, time, failure as a tree, user_error where it was one
    ending   how the process that ended first did, in words
    log      the last lines that they printed
    """
    own = [values for values in errors if not _PEER_LOST.search(values["failure"]["message"])]
    if own:
        first = min(own, key=lambda values: values["time"])
        if "user_error" in first:
            import train.errors

            kind, parts = first["user_error"]["kind"], first["user_error"]["parts"]
            return getattr(train.errors, kind)(*parts)
        failure = Failure(**first["failure"])
        return RankFailedError(
            dataclasses.replace(failure, message=f"rank {first['rank']}: {failure.message}"[:500])
        )
    words = "; ".join(f"rank {values['rank']}: {values['failure']['message'][:150]}" for values in errors[:2])
    message = f"a process of the run {ending}" + (f"; {words}" if words else ", without a word")
    if _OUT_OF_MEMORY.search(log):
        return RankLostError("host_oom", message)
    return RankLostError("node_fail" if _BROKEN_DEVICE.search(f"{message}\n{log}") else "killed", message)


def main(job_file: Path) -> int:
    """One rank. Exit code 0: the run is finished, failed as a result, or saved; else the ranks end together."""
    from train.libraries import load_libraries

    load_libraries()
    from train.loop import Interrupted

    name_this_rank()
    folder, job = job_file.parent, json.loads(job_file.read_text(encoding="utf-8"))
    rank = int(os.environ.get("RANK", "0"))
    config = run_config_from_dict(job["config"])
    result: dict[str, Any] = {}
    try:
        record = (_other if rank else _first)(config, job, folder)
        result = {"record": record_to_dict(record)} if record is not None else {}
    except Interrupted as error:
        result = {"interrupted": str(error)}
    except Paused as rung:
        result = {"paused": {"share": rung.share, "metrics": rung.metrics}}
    except BaseException as error:
        _write_error(folder, rank, error)
        raise
    if not rank:
        write_json_atomic(folder / RESULT_FILE, result)
    return 0


def _write_error(folder: Path, rank: int, error: BaseException) -> None:
    values: dict[str, Any] = {
        "rank": rank,
        "time": time.time(),
        "failure": dataclasses.asdict(failure_from_exception(error)),
    }
    if isinstance(error, UserError):
        parts = [error.problem, error.expected, error.fix]
        values["user_error"] = {"kind": type(error).__name__, "parts": parts}
    with contextlib.suppress(OSError):  # a full disk: the log may still have it
        write_json_atomic(folder / f"ranks_error-{rank}.json", values)


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
        pause_at=job["pause_at"],
    )


def _should_stop(folder: Path) -> bool:
    """Whether the starter says so, or is gone."""
    starter = os.environ.get(_STARTER)
    return (folder / STOP_FILE).exists() or (starter is not None and not Path(f"/proc/{starter}").exists())


def _other(config: RunConfig, job: Mapping[str, Any], folder: Path) -> None:
    """Train and measure along; a non-finite loss is rank 0's to record."""
    import torch

    from train.distributed import local_device, world_of
    from train.failures import NonFiniteLossError
    from train.loop import Hooks
    from train.run import device_of
    from train.together import fitted, train_and_measure
    from train.tracking import NullTracker
    from train.workbench import Workbench

    torch.set_num_threads(config.train.num_threads)
    device, workbench = local_device(device_of(config)), Workbench(_cache(job))
    identities = (job["model_identity"], job["dataset_identity"])
    tokenizer = workbench.tokenizer(config, identities[0])
    model = workbench.model(config, identities[0], device)
    data = workbench.data(config, model, *identities)
    hooks = Hooks(lambda: False, lambda step, steps: None, NullTracker())  # rank 0 hears for all
    with world_of(config.train.distributed, device) as world, contextlib.suppress(NonFiniteLossError):
        train_and_measure(
            fitted(model, config),
            data,
            config,
            tokenizer,
            fingerprint=job["fingerprint"],
            folder=folder,
            device=device,
            hooks=hooks,
            world=world,
            pause_at=job["pause_at"],
        )


def _cache(job: Mapping[str, Any]) -> Path | None:
    return None if job["cache_folder"] is None else Path(job["cache_folder"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
