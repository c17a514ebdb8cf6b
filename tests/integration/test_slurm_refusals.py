"""On a real SLURM: what is refused, what is paused, what is stopped, and that waiting runs keep their code."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from commands import PROJECT, run_command
from slurm_sweeps import toy_tender
from test_kill import results
from test_slurm_sweeps import SMALL, assert_nothing_was_sent, at_work, finish
from toy_sweep import toy_plan

from sweep.errors import LaunchError
from sweep.slurm.queue import read_queue
from sweep.spec import Status

pytestmark = pytest.mark.integration


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return value


def test_waiting_runs_keep_the_code_and_configuration_they_were_submitted_with(slurm, tmp_path):
    checkout, root, here = tmp_path / "checkout", tmp_path / "root", tmp_path / "local"
    for part in ("train", "sweep", "analysis", "conf"):
        shutil.copytree(PROJECT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", checkout)
    words = ("+grid=smoke_2x2", "grid.seeds=[0,1,2,3,4,5,6]", *SMALL)  # 3 x 7 runs, and the base
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "sweep",
            *words,
            f"root={root}",
            "launcher=slurm",
            "launcher.max_jobs=2",
            "launcher.sbatch=['--hold']",
        ],
        cwd=checkout,
        env=environment,
        check=True,
    )
    for path in (
        checkout / "train" / "loop.py",
        checkout / "sweep" / "worker.py",
        checkout / "sweep" / "ledger.py",
    ):
        path.write_text("raise SystemExit('edited meanwhile')\n")
    for path in checkout.glob("conf/train/*.yaml"):
        path.write_text(path.read_text().replace("learning_rate: ", "learning_rate: 7"))
    numbers = {task.key.partition("_")[0] for task in read_queue().values() if task.is_waiting}
    subprocess.run(["scontrol", "release", *sorted(numbers)], check=True)
    assert run_command("sweep", *words, f"root={here}", "launcher.slots=1").returncode == 0
    until(lambda: len(list(root.glob(".runs/*/record.json"))) == 22, 240)
    assert results(root) == results(here)


def test_a_bug_stops_the_sweep_within_a_minute(slurm, tmp_path):
    tender = toy_tender(tmp_path, toy_plan(40, learning_rate=1e-9), max_jobs=4)
    started = time.monotonic()
    tender.tend()
    until(
        lambda: (
            not [
                task
                for task in read_queue().values()
                if task.batch in tender.look().by_batch and (task.is_waiting or task.is_working)
            ]
        )
    )
    assert time.monotonic() - started < 60
    states = tender.look().states.values()
    assert sum(state.status is Status.FAILED for state in states) < 15
    with pytest.raises(LaunchError, match=r"the first runs all failed in .*too small for a toy"):
        tender.tend()


def test_workers_that_cannot_start_are_told_and_not_sent_again(slurm, tmp_path):
    tender = toy_tender(tmp_path, toy_plan(4), setup=("unset PYTHONPATH",))
    tender._trainer = "no_such_module:make_trainer"
    tender.launcher = type(tender.launcher)(
        kind="slurm", time_min=5, silence_s=12.0, max_jobs=2, sbatch=("--export=NIL",), setup=("exit 7",)
    )
    with pytest.raises(LaunchError, match=r"a node can't read|died before they claimed"):
        until(lambda: [time.sleep(1), tender.tend(), False][-1])


def test_what_setup_lines_print_before_they_fail_is_scrubbed_by_whoever_looks(slurm, tmp_path):
    setup = ("echo HF_TOKEN=hf_12345678901234567890 and so on", '[ -z "$SLURM_ARRAY_TASK_ID" ] || exit 7')
    tender = toy_tender(tmp_path, toy_plan(4), max_jobs=2, setup=setup)
    with pytest.raises(LaunchError, match=r"died before they claimed a run; one said: HF_TOKEN=\[hidden\]"):
        until(lambda: [time.sleep(1), tender.tend(), False][-1])
    outputs = [path.read_text() for path in tmp_path.glob("toy/slurm/*/*_log.out")]
    assert outputs
    assert all(text.startswith("HF_TOKEN=[hidden]*************** and so on") for text in outputs)


def test_a_folder_the_nodes_cannot_see_is_found_by_one_job(slurm, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    line = (
        f"mount -t tmpfs tmpfs {hidden} && {sys.executable} -m sweep +grid=smoke_2x2 root={hidden}/root "
        "launcher=slurm || exit 9; for time in 1 2 3 4 5 6 7 8; do sleep 2; "
        f"{sys.executable} -m sweep +grid=smoke_2x2 root={hidden}/root launcher=slurm collect; "
        "[ $? = 2 ] && exit 2; done"
    )
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", line], cwd=PROJECT, capture_output=True, text=True
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("a mount of one's own needs root")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: a node can't read" in done.stderr
    assert "set root= to a shared folder" in done.stderr
    assert not [task for task in read_queue().values() if task.is_waiting]


def test_where_jobs_may_not_be_queued_again_a_successor_goes_on(slurm, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(
        f'#!/bin/sh\n[ "$1" = requeue ] && {{ echo "Requeue is disabled" >&2; exit 1; }}\n'
        f'exec {shutil.which("scontrol", path=os.environ["PATH"])} "$@"\n'
    )
    (tools / "scontrol").chmod(0o755)
    tender = toy_tender(
        tmp_path / "root", toy_plan(2), max_jobs=1, setup=(f"export TOY_STEP_S=0.3 PATH={tools}:$PATH",)
    )
    tender.tend()
    until(lambda: list((tmp_path / "root").glob(".runs/*/steps.log")))
    key = next(task.key for task in read_queue().values() if task.state == "RUNNING")
    subprocess.run(["scancel", "--signal=USR2", key], check=True)
    until(lambda: all(state.status is Status.FINISHED for state in tender.look().states.values()))
    found = tender.look()
    assert len(found.batches) == 2, "nobody looked, and yet somebody went on"
    assert len(list((tmp_path / "root").glob(".runs/*/attempts/*.released"))) == 1


def test_a_limit_shorter_than_a_save_is_refused(slurm, tmp_path):
    before = at_work()
    done = run_command(
        "sweep",
        "+grid=smoke_2x2",
        f"root={tmp_path}",
        "launcher=slurm",
        "launcher.time_min=1",
        "launcher.signal_delay_s=20",
        "train.checkpoint_every_s=45",
    )
    assert done.returncode == 2
    assert "ends before" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert_nothing_was_sent(before)


def test_cancel_takes_waiting_workers_away_and_running_ones_save(slurm, tmp_path):
    words = (
        "+grid=smoke_2x2",
        f"root={tmp_path}",
        "launcher=slurm",
        "launcher.max_jobs=2",
        "launcher.sbatch=['--hold']",
    )
    assert run_command("sweep", *words).returncode == 0
    looked = run_command("sweep", *words, "status")
    assert "2 waiting" in looked.stdout, looked.stdout
    done = run_command("sweep", *words, "cancel", "yes=true")
    assert done.returncode == 0, done.stderr
    assert "2 waiting workers taken out of the queue" in done.stdout
    assert "0 working, 0 waiting" in run_command("sweep", *words, "status").stdout
    again = toy_tender(tmp_path / "toys", toy_plan(4))
    again.tend()
    finish(again)
