"""One W&B run per training run: the sink behind tracking=wandb and tracking=wandb_offline.

W&B's own step is set to ours: line n of the server's history is optimiser step n, whoever sends it. A run
that goes on asks the server for the last step it has and continues behind it, so that overlapping attempts,
rewound to a checkpoint or killed, make one history without holes or repetitions. An offline run can't ask, so
every attempt's offline folder holds the run's whole history and marks its predecessors as superseded.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from train.record import RunRecord
from train.tracking_log import num_points
from train.tracking_values import STEP, MirroredRun, summary_of

Mode = Literal["online", "offline"]
INIT_S, FINISH_S = 7.0, 4.0
FLUSH_S = 0.25  # the default, 15 s, lost 29 of 100 steps to a SIGKILL; with POLL_S, below a second
DISTRUST_S = 600.0  # after a failure of the server: so long this process only writes to disk

_NO_KEY = "W&B has no API key: run `wandb login` or set WANDB_API_KEY, or say tracking=wandb_offline"
_distrusted_until = float("-inf")


def is_server_trusted() -> bool:
    """Whether it makes sense to try the server: a worker doesn't wait for a dead one at every run."""
    return time.monotonic() >= _distrusted_until


def distrust_server() -> None:
    """Only write to disk for a while."""
    global _distrusted_until
    _distrusted_until = time.monotonic() + DISTRUST_S


class WandbSink:
    """One run of W&B. Its files lie in the run's folder, or in WANDB_DIR."""

    def __init__(self, mirrored: MirroredRun, folder: Path, mode: Mode, gpu_pid: int | None = None) -> None:
        self.mirrored, self.gpu_pid, self.num_logged = mirrored, gpu_pid, 0
        self.mode: Mode = mode
        self.folder = Path(os.environ.get("WANDB_DIR") or folder)

    def open(self) -> int:
        """Connect or make the offline folder; see `explained` for the errors."""
        try:
            watched = {"x_disable_stats": False, "x_stats_pid": self.gpu_pid} if self.gpu_pid else {}
            self.run = start_run(self.mirrored, self.folder, self.mode, **watched)
        except Exception as error:
            if self.mode == "online":
                distrust_server()
                _forget_service()
            raise RuntimeError(explained(error, self.mirrored)) from error
        self.log_file = Path(self.run.settings.sync_file)
        if self.mode == "offline":
            _supersede_others(self.log_file)
        return self.run.starting_step - 1 if self.run.resumed else 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of history."""
        self.num_logged += 1
        self.run.log({STEP: step, **values}, step=step, commit=True)

    def close(self, record: RunRecord | None) -> str:
        """Numbers into the summary, then the end, and a look at what really reached the disk."""
        try:
            end_run(self.run, record)
        except TimeoutError:
            distrust_server()
            return "the W&B server did not take everything; python -m sweep ... sync sends the rest later"
        lost = self._num_lost() if self.mode == "offline" else 0  # an online run's points are with the server
        if lost > 0:
            place = f"{self.log_file.parent}{_why(self.log_file)}"
            return f"{lost} of {self.num_logged} points did not reach {place}"
        return ""

    def _num_lost(self) -> int:
        """Points that are not in the file; its last block may come a moment after the end."""
        for wait_s in (0.0, 0.1, 0.4, 1.0):
            time.sleep(wait_s)
            lost = self.num_logged - num_points(self.log_file)
            if lost <= 0:
                break
        return lost


def set_environment() -> None:
    """To be called before anything of W&B: it reads its variables once."""
    os.environ.pop("WANDB_SWEEP_ID", None)  # with it, W&B ignores id, project and entity
    os.environ.setdefault("WANDB_SILENT", "true")  # the setting comes too late for what a login says
    os.environ.setdefault(
        "WANDB_ERROR_REPORTING", "false"
    )  # a quarter of what a run costs, for W&B's statistics


def start_run(mirrored: MirroredRun, folder: Path, mode: Mode, **settings: Any) -> Any:
    """wandb.init as this project wants it: beside other runs, silent, and never the owner of the console."""
    set_environment()
    import wandb

    own = {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "save_code": False,
        "x_save_requirements": False,
        "x_disable_meta": True,  # it holds the command line, and with it whatever somebody typed there
        "x_disable_stats": True,  # of the machine; a run on a GPU says otherwise
        "x_transaction_log_flush_interval": FLUSH_S,
        "finish_timeout": FINISH_S,
        "finish_timeout_raises": True,
        "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_S)),
        **settings,
    }
    (folder / "wandb").mkdir(parents=True, exist_ok=True)  # or W&B would silently write elsewhere
    run = wandb.init(
        mode=mode,
        dir=str(folder),
        project=mirrored.project,
        entity=mirrored.entity,
        id=mirrored.id,
        name=mirrored.name,
        group=mirrored.group,
        job_type=mirrored.job_type,
        tags=mirrored.tags,
        config=dict(mirrored.config),
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(**own),
    )
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    return run


def end_run(run: Any, record: RunRecord | None) -> None:
    """Finished, failed, or to go on later (W&B's "preempted"); TimeoutError if the server is too slow."""
    if record is None:
        run.mark_preempting()
    else:
        run.summary.update(summary_of(record))
    run.finish(exit_code=0 if record is not None and record.outcome == "finished" else 1)


def explained(error: BaseException, mirrored: MirroredRun) -> str:
    """What went wrong with W&B, and what to do, in one line."""
    text = " ".join(str(error).split())
    place = f"{mirrored.entity or 'the default entity'}/{mirrored.project}"
    known = {
        "api_key": _NO_KEY,
        "api key": _NO_KEY,
        "previously created and deleted": f"W&B run {mirrored.id} was deleted in {place}, and W&B never "
        "takes an id again: say tracking.project=ANOTHER",
        "not found during upsertbucket": f"W&B has no entity {mirrored.entity} that takes runs of yours: "
        "correct tracking.entity",
        "401": "W&B refuses the API key: run `wandb login --relogin`",
        "403": f"W&B lets you not write to {place}: correct tracking.entity or tracking.project",
        "invalid character": "the W&B server answers with something that isn't W&B: check WANDB_BASE_URL",
        "handleabandoned": "the W&B server does not answer",
        "deadline exceeded": f"the W&B server does not answer: {text[-120:]}",
        "timed out": "the W&B server does not answer in time",
        "no space left": f"W&B's folder is on a full disk: {text[:150]}",
    }
    for part, line in known.items():
        if part in f"{type(error).__name__} {text}".lower():
            return line
    return f"W&B could not start: {text[:200] or type(error).__name__}"


def mark_synced(folder: Path) -> None:
    """Tell `wandb sync` and `wandb clean` that nothing in these offline folders is needed any more."""
    for path in folder.glob("wandb/*run-*/run-*.wandb"):
        with contextlib.suppress(OSError):
            path.with_name(f"{path.name}.synced").touch()


def _forget_service() -> None:
    """wandb-core holds on to the id of a run that could not begin; a new one knows nothing of it."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown(1)


def _supersede_others(log_file: Path) -> None:
    for path in log_file.parent.parent.glob(f"offline-run-*/{log_file.name}"):
        if path != log_file:
            with contextlib.suppress(OSError):
                path.with_name(f"{path.name}.synced").touch()


def _why(path: Path) -> str:
    try:
        free = os.statvfs(path.parent if path.parent.exists() else path.parent.parent)
    except OSError:
        return ""
    return ": the disk is full" if free.f_bavail * free.f_frsize < 65536 else ""
