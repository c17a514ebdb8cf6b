"""Every word after `python -m sweep`, on a small real sweep that is interrupted once."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import PROJECT, run_command

from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.slots import holders
from sweep.spec import Status

pytestmark = pytest.mark.integration
GRID = "+grid=smoke_2x2"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A root with a finished sweep, what the interrupted and the second command printed."""
    root = tmp_path_factory.mktemp("sweep") / "root"
    command = [sys.executable, "-m", "sweep", GRID, f"root={root}", "launcher.slots=1"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        plan = SweepFolder(root, "smoke_2x2").plan()
        states = Ledger(root).statuses(spec.fingerprint for spec in plan.runs) if plan else {}
        if any(
            # Heartbeats are seconds apart: waiting for a later one, a fast machine has finished the run.
            state.heartbeat and state.heartbeat.step >= 1 and state.status is Status.RUNNING
            for state in states.values()
        ):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: everything in the foreground hears it
    interrupted, _ = process.communicate(timeout=60)
    code = process.returncode
    again = run_command("sweep", GRID, f"root={root}", "launcher.slots=1")
    return root, code, interrupted, again


def ask(root, *words, **variables):
    return run_command("sweep", GRID, f"root={root}", *words, **variables)


def run_ids(root):
    return [spec.run_id for spec in SweepFolder(root, "smoke_2x2").plan().runs]


def test_ctrl_c_keeps_what_was_done_and_the_same_line_continues(sweep):
    root, code, interrupted, again = sweep
    assert code == 130
    assert "Traceback" not in interrupted
    last = interrupted.splitlines()[-1]
    assert last.startswith("stopped: ")
    assert f"Continue with: python -m sweep {GRID} root={root} launcher.slots=1" in last
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 of 4 runs finished" in again.stdout
    assert not SweepFolder(root, "smoke_2x2").workers.exists(), "what runs printed is kept with the runs"
    log = "".join(path.read_text() for path in root.glob(".runs/*/attempts/*.log"))
    assert "Traceback" not in log
    assert len(list(root.glob(".runs/*/attempts/*.released"))) == 1


def test_ctrl_c_in_a_terminal_reaches_the_workers_as_a_request(tmp_path):
    script = PROJECT / "tests" / "integration" / "toy_sweep.py"
    paths = os.pathsep.join([str(PROJECT), str(script.parent)])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, str(script), str(tmp_path), "30"],
            {**os.environ, "PYTHONPATH": paths, "TERM": "xterm", "COLUMNS": "100"},
        )
    output, is_sent, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # the terminal's last process is gone
            break
        if not is_sent and b"2 running" in output:
            os.write(terminal, b"\x03")
            is_sent = True
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert b"stopping: waiting for 2 workers" in output
    assert b"Traceback" not in output
    assert len(list(tmp_path.glob(".runs/*/attempts/*.released"))) == 2
    assert not holders(tmp_path)


def test_a_second_run_starts_nothing_and_shows_the_same_report(sweep):
    root, _, _, again = sweep
    claims = sorted(root.glob(".runs/*/attempts/*"))
    started = time.monotonic()
    second = ask(root, "launcher.slots=1")
    elapsed_s = time.monotonic() - started
    assert second.returncode == 0
    report = again.stdout.split("4 of 4 runs finished\n")[1]
    assert report
    assert second.stdout.split("4 of 4 runs finished\n")[1] == report
    assert sorted(root.glob(".runs/*/attempts/*")) == claims
    assert elapsed_s < 3.0


def test_plan_knows_what_is_there_and_what_it_takes(sweep, tmp_path):
    root = sweep[0]
    done = ask(root, "plan")
    assert "everything is recorded; nothing would be trained" in done.stdout
    more = ask(root, "plan", "grid.seeds=[0,1]")
    assert "about" in more.stdout
    assert "unknown" not in more.stdout
    assert more.stdout.rstrip().endswith(f"Next: python -m sweep {GRID} root={root} 'grid.seeds=[0,1]'")
    fresh = ask(tmp_path / "new", "plan")
    assert "unknown until the first run is finished" in fresh.stdout
    assert not (tmp_path / "new" / "smoke_2x2").exists(), "a dry run writes no plan"


def test_status_is_one_screen(sweep):
    done = ask(sweep[0], "status")
    assert done.returncode == 0
    assert "finished" in done.stdout
    assert "one run by hand: python -m train " in done.stdout
    every = run_command("sweep", "status", f"root={sweep[0]}")
    assert "smoke_2x2  4 of 4 runs finished" in every.stdout


def test_watch_of_a_finished_sweep_ends(sweep):
    assert ask(sweep[0], "watch").returncode == 0


def test_why_and_logs_name_a_run_by_a_part(sweep):
    root = sweep[0]
    name = run_ids(root)[-1]
    told = run_command("sweep", "why", name[-8:], f"root={root}")
    assert told.returncode == 0
    assert len(told.stdout.splitlines()) <= 5
    assert f"{name} finished in" in told.stdout
    assert ask(root, "logs", name).returncode == 0
    unknown = ask(root, "why", "nonsense")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no run matches nonsense; ")
    assert len(unknown.stderr.splitlines()) == 1


def test_df_holds_every_cell(sweep):
    pandas = pytest.importorskip("pandas")
    root = sweep[0]
    done = ask(root, "df")
    assert done.returncode == 0, done.stderr
    report = root / "smoke_2x2" / "report"
    frame = pandas.read_csv(report / "cells.csv")
    assert len(frame) == 4
    assert list(frame.columns) == list(pandas.read_parquet(report / "cells.parquet").columns)
    base = frame[frame["is_base"]].iloc[0]
    assert (base["prompt_weight"], base["response_weight"]) == (0.0, 0.0)
    assert frame["validation_response_nll"].notna().all()


def test_a_rerun_is_identical(sweep):
    root = sweep[0]
    again = ask(root, "rerun", "p1-r1-s0")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "identical: parameters_sha256 and" in again.stdout
    assert len(list(root.glob(".runs/*/reruns/1/record.json"))) == 1


def test_a_rerun_that_differs_is_told(sweep, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(sweep[0], root, symlinks=True)
    (path,) = [
        Ledger(root).folder(spec.fingerprint) / "record.json"
        for spec in SweepFolder(root, "smoke_2x2").plan().runs
        if "base" in spec.run_id
    ]
    text = path.read_text()
    path.write_text(text.replace('"validation_response_nll": ', '"validation_response_nll": 1'))
    again = ask(root, "rerun", "base")
    assert again.returncode == 1
    assert "validation_response_nll" in again.stdout


def test_there_is_nothing_to_cancel_or_retry(sweep):
    assert "nothing to stop" in ask(sweep[0], "cancel").stdout
    retried = ask(sweep[0], "retry", "launcher.slots=1")
    assert retried.returncode == 0
    assert retried.stdout.startswith("0 failed runs will be tried again")


def test_cancel_stops_a_sweep_that_runs_elsewhere(tmp_path):
    root = tmp_path / "root"
    command = [sys.executable, "-m", "sweep", GRID, f"root={root}", "launcher.slots=1"]
    process = subprocess.Popen(
        command, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not list(root.glob(".runs/*/attempts/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    cancelled = ask(root, "cancel", "yes=true", "launcher.slots=1")
    output, _ = process.communicate(timeout=120)
    assert cancelled.returncode == 0, cancelled.stderr + output
    assert "Continue with: python -m sweep" in cancelled.stdout, output
    assert process.returncode == 130, output
    assert "stopped: " in output
    left = ask(root, "status")
    assert "running" not in left.stdout


def test_a_folder_that_cannot_be_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    refused = ask(tmp_path / "file" / "root")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert len(refused.stderr.splitlines()) == 1


def test_a_full_pipe_is_no_error(sweep):
    line = f"{sys.executable} -m sweep {GRID} root={sweep[0]} status | head -1"
    done = subprocess.run(line, shell=True, text=True, cwd=PROJECT, capture_output=True, check=True)
    assert done.stdout.startswith("smoke_2x2: ")
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["--help"], [GRID, "plan"], [GRID, "status"]])
def test_looking_loads_nothing_heavy(words, tmp_path):
    heavy = {"torch", "pandas", "wandb", "transformers", "scipy", "matplotlib", "submitit"}
    code = (
        "import sys; sys.argv = ['sweep', *sys.argv[1:]]; from sweep.__main__ import main; main()\n"
        f"print('heavy:', sorted({heavy!r} & set(sys.modules)))"
    )
    where = [] if words == ["--help"] else [f"root={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *where], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("heavy: []\n")
