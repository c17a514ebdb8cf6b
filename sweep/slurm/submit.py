"""Arrays of workers through submitit, in pieces the site allows; the queue's refusals as one line each."""

import contextlib
import io
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from sweep.errors import LaunchError
from sweep.folder import SweepFolder
from sweep.launcher import LauncherConfig
from sweep.slurm.batches import Batch, announce, folder_of, new_batch, write_answer
from sweep.slurm.classes import ResourceClass
from sweep.slurm.job import Request, work
from sweep.slurm.queue import call, limit_of_arrays, not_on_path
from sweep.trainers import TRAINER
from train.files import read_json, write_json_atomic

NUM_TRIES = 4
_FIRST_NODE = {False: (), True: ("--nodes=1", "--ntasks=1", "--relative=0")}  # where the worker lives
PROBE_NAME = "weight-sweep-probe"
_TRY_AGAIN = (
    "unable to contact",
    "socket timed out",
    "temporarily unable",
    "temporarily unavailable",
    "connection refused",
    "communication",
)
_QUEUE_IS_FULL = (
    "maxsubmit",
    "submit job limit",
    "max_submit",
    "violates accounting/qos policy",
    "maxjobcount",
    "job count",
)
_SETTINGS = (  # what the scheduler's words are about -> which setting to change
    ("account/partition", "launcher.account or launcher.partition"),
    ("partition", "launcher.partition"),
    ("account", "launcher.account"),
    ("qos", "launcher.qos"),
    ("feature", "launcher.constraint"),
    ("time limit", "launcher.time_min"),
    ("memory", "launcher.memory_gb"),
    (
        "node configuration",
        "launcher.gpus, launcher.memory_gb or launcher.cpus_per_worker: no node has so much",
    ),
    ("array", "launcher.max_array_size"),
    ("gres", "launcher.gres"),
    ("generic resource", "launcher.gres"),
    ("unrecognized option", "launcher.sbatch"),
    ("invalid option", "launcher.sbatch"),
    ("node name", "launcher.exclude"),
)


def sbatch_parameters(launcher: LauncherConfig, resources: ResourceClass, batch: Batch, code: Path) -> dict:
    """What submitit is to write into the script."""
    gres = launcher.gres.format(gpus=resources.gpus) if resources.gpus else None
    extra = {}
    for option in launcher.sbatch:
        name, equals, value = option.removeprefix("--").partition("=")
        extra[name] = value if equals else True
    extra["requeue"] = True
    extra["signal"] = f"{launcher.signal}@{launcher.signal_delay_s}"  # submitit knows one name only
    if launcher.signal == "none":
        extra["signal"] = "CONT@1"  # which does nothing: submitit always asks for one
    threads = launcher.threads_per_worker
    cpus = launcher.cpus_per_worker * resources.ranks
    setup = [
        *launcher.setup,
        f"export PYTHONPATH={_quoted(code)}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OPENBLAS_NUM_THREADS={threads}",
    ]
    parameters = {
        "job_name": batch.job_name,
        "comment": f"weight-sweep:{batch.batch}:{batch.class_name}",
        "time": resources.time_min,
        "cpus_per_task": cpus,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "exclude": launcher.exclude,
        "gres": gres,
        "setup": setup,
        "mem": f"{round(1024 * resources.memory_gb)}M" if resources.memory_gb is not None else None,
        "stderr_to_stdout": True,
        "additional_parameters": extra,
        "array_parallelism": _at_once(launcher, resources) or batch.num_tasks,
        "srun_args": [
            f"--cpus-per-task={cpus}",
            *_FIRST_NODE[resources.nodes > 1],
        ],  # 22.05 inherits no longer
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _at_once(launcher: LauncherConfig, resources: ResourceClass) -> int | None:
    """Tasks of one array that may run at once; None: all. Jobs of one run each are all in the array."""
    most = [launcher.array_parallelism, launcher.max_jobs if resources.is_shared else None]
    return min((number for number in most if number), default=None)


def submit_workers(
    folder: SweepFolder,
    launcher: LauncherConfig,
    resources: ResourceClass,
    num_workers: int,
    code: Path,
    *,
    trainer: str = TRAINER,
    say: Callable[[str], None] = print,
    pause_s: float = 2.0,
) -> list[Batch]:
    """Submit so many workers of a class. Fewer where the queue is full: nothing fails, the next look sends more.

    Raises   LaunchError in the scheduler's words, with the setting to change.
    """
    if shutil.which("sbatch") is None:
        raise not_on_path("sbatch")
    most = launcher.max_array_size or (limit_of_arrays() if num_workers > 100 else 100)
    submitted: list[Batch] = []
    is_first = not (folder_of(folder) / "probe.json").exists()
    probe = send_probe(folder, launcher, resources) if num_workers > 1 else ""
    while num_workers > 0:
        size = min(most, num_workers)
        batch = new_batch(folder.name, resources.name, size, code.name, launcher.partition or "")
        announce(folder, batch)  # before sbatch: whoever dies in between leaves a name to look for
        problem, job = _submit_patiently(folder, launcher, resources, batch, code, trainer, pause_s, probe)
        if (
            "dependency" in problem.lower() and probe
        ):  # the scheduler forgot it: killed before it saved its state
            forget_probe(folder)
            probe = send_probe(folder, launcher, resources)
            continue
        if "job array specification" in problem.lower() and most > (limit := limit_of_arrays()):
            most = limit  # most sites allow more, so it isn't asked for each submission
            continue
        if problem and any(words in problem.lower() for words in _QUEUE_IS_FULL):
            if size > 1 and not submitted:
                most = max(1, size // 2)  # perhaps fewer fit
                continue
            say(f"the queue takes no more for now ({problem}); {num_workers} more workers with the next look")
            break
        if problem:
            if probe and is_first and not submitted:  # nobody waits for it
                forget_probe(folder)
                with contextlib.suppress(LaunchError):
                    call("scancel", probe)
            raise refusal(problem)
        submitted.append(replace(batch, job=job))
        num_workers -= size
    return submitted


def send_probe(folder: SweepFolder, launcher: LauncherConfig, resources: ResourceClass) -> str:
    """Submit the job that finds out whether nodes see our files, once for each sweep; its number, "" if it is known.

    Workers depend on it: where it fails, none of them starts. What it found is a file it writes into the folder.
    """
    place = folder_of(folder).absolute()
    seen, announced = place / "seen_by_a_node", place / "probe.json"
    if seen.exists():
        return ""
    values = read_json(announced) or {}
    if values.get("job"):
        return str(values["job"])
    place.mkdir(parents=True, exist_ok=True)
    script = (
        f"test -r {_quoted(folder.plan_path.absolute())} && {_quoted(sys.executable)} -c 'import submitit' "
        f"&& hostname > {_quoted(seen)}"
    )
    options = {
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "exclude": launcher.exclude,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value]
    setup = "".join(f"{line}\n" for line in launcher.setup)
    try:
        with _clean_environment():
            said = call(
                "sbatch",
                "--parsable",
                "--time=2",
                f"--job-name={PROBE_NAME}",
                "--output=/dev/null",
                "--chdir=/",
                *words,
                *launcher.sbatch,
                f"--wrap={setup}{script}",
            )
    except LaunchError as error:
        problem = scheduler_words(str(error).replace("sbatch says: ", "", 1).partition("; expected")[0])
        if any(words in problem.lower() for words in (*_TRY_AGAIN, *_QUEUE_IS_FULL)):
            return ""
        raise refusal(problem) from error
    job = said.strip().partition(";")[0]
    write_json_atomic(announced, {"job": job, "time": time.time()})
    return job


def forget_probe(folder: SweepFolder) -> None:
    """The next submission sends another one."""
    (folder_of(folder) / "probe.json").unlink(missing_ok=True)


def refusal(problem: str) -> LaunchError:
    """The scheduler's words and the setting they are about."""
    setting = next((setting for word, setting in _SETTINGS if word in problem.lower()), "")
    return LaunchError(
        f"sbatch says: {problem}", "a job the site accepts", f"change {setting}" if setting else ""
    )


def _submit_patiently(
    folder: SweepFolder,
    launcher: LauncherConfig,
    resources: ResourceClass,
    batch: Batch,
    code: Path,
    trainer: str,
    pause_s: float,
    probe: str,
) -> tuple[str, str]:
    """ "" or why it couldn't be submitted. And the array's number. A silent scheduler is asked again."""
    problem = ""
    for attempt in range(NUM_TRIES):
        try:
            job = _submit(folder, launcher, resources, batch, code, trainer, probe)
        except Exception as error:
            problem = scheduler_words(str(error))
            if not any(words in problem.lower() for words in _TRY_AGAIN):
                break
            if attempt < NUM_TRIES - 1:
                time.sleep(pause_s * 2**attempt)
            continue
        write_answer(folder, batch, {"job": job})
        return "", job
    if not any(words in problem.lower() for words in _TRY_AGAIN):  # else it may have arrived after all
        write_answer(folder, batch, {"refused": problem})
    return problem, ""


def _submit(
    folder: SweepFolder,
    launcher: LauncherConfig,
    resources: ResourceClass,
    batch: Batch,
    code: Path,
    trainer: str,
    probe: str,
) -> str:
    """One sbatch; the array's number."""
    import submitit

    logging.getLogger("submitit").setLevel(logging.ERROR)
    place = folder_of(folder).absolute() / batch.batch  # never used before: a stale pickle can't be met
    place.mkdir(parents=True, exist_ok=True)
    request = Request(
        root=str(folder.root.absolute()),
        sweep=folder.name,
        batch=batch.batch,
        class_name=resources.name,
        submitted_at=batch.announced_at,
        gpus=resources.gpus,
        memory_gb=resources.memory_gb,
        time_min=resources.time_min,
        nodes=resources.nodes,
        ranks=resources.ranks,
        launcher=asdict(launcher),
        trainer=trainer,
    ).to_text()
    executor = submitit.SlurmExecutor(folder=place, python=_quoted(sys.executable))
    parameters = sbatch_parameters(launcher, resources, batch, code)
    if probe:
        parameters["dependency"] = f"afterok:{probe}"
    executor.update_parameters(**parameters)
    with (
        _clean_environment(),
        contextlib.redirect_stderr(io.StringIO()),
    ):  # its errors come back as exceptions
        jobs = executor.map_array(work, [request] * batch.num_tasks)
    return str(jobs[0].job_id).partition("_")[0]


@contextlib.contextmanager
def _clean_environment():
    """Without the variables of a job that we may be in: sbatch would take them for options."""
    taken = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF"
    }
    try:
        yield
    finally:
        os.environ.update(taken)


def scheduler_words(text: str) -> str:
    """What sbatch itself said, on one line."""
    lines = [line.strip() for line in text.splitlines()]
    said = [
        line.partition("error:")[2].strip()
        for line in lines
        if line.startswith(("sbatch: error:", "srun: error:"))
    ]
    if len(said) == 1 and " sbatch: error: " in said[0]:  # several on one line
        said = said[0].split(" sbatch: error: ")
    return "; ".join(dict.fromkeys(said)) or " ".join(text.split())[:400]


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
