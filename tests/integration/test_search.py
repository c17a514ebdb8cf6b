"""Searches for real: workers, a search process and kill -9; rungs that pause and go on; a cluster; a database."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from commands import run_command
from slurm_sweeps import DEFAULTS, TRAINER
from test_kill import assert_no_attempt_after_the_record, results

from analysis.search.storages import SWEEP, StorageError, export
from sweep.arguments import parse_arguments
from sweep.asking import Asker
from sweep.compose import compose_sweep
from sweep.folder import SweepFolder
from sweep.launcher import LauncherConfig
from sweep.ledger import Ledger
from sweep.plan import make_plan
from sweep.proposals import read_batches
from sweep.searching import Search
from sweep.slurm.tend import Tender
from sweep.spec import SETTLED

pytestmark = pytest.mark.integration
SMALL = (
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)
NEVER_SURE = ("search.confidence=0.999", "search.epsilon=1e-6")  # so that the whole budget is asked for
ADAPTIVE = (
    "+grid=wit_5x5",
    "grid.scale_checks=0",
    "search=adaptive",
    "search.max_runs=8",
    "launcher.slots=2",
)


def proposals(root, name="wit_5x5"):
    return [json.loads(path.read_text()) for path in sorted((root / name / "proposals").glob("*.json"))]


def test_an_adaptive_sweep_survives_kill_9_and_asks_nothing_twice(tmp_path):
    words = [sys.executable, "-m", "sweep", *ADAPTIVE, *SMALL, *NEVER_SURE, f"root={tmp_path}"]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not proposals(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = proposals(tmp_path)
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]  # one of them watches
    texts = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    found = proposals(tmp_path)
    assert found[: len(before)] == before
    assert [batch["number"] for batch in found] == list(range(1, len(found) + 1))
    assert len(list(tmp_path.glob(".runs/*/record.json"))) == 9  # and the base model
    assert_no_attempt_after_the_record(tmp_path)
    assert (tmp_path / "wit_5x5" / "report" / "report.html").exists()
    again = run_command("sweep", *words[3:])
    assert again.returncode == 0
    assert "9 finished before; 0 to train" in again.stdout
    assert proposals(tmp_path) == found


def test_paused_runs_are_finished_later_to_the_same_bits(tmp_path):
    question = ("+grid=smoke_2x2", *SMALL, "launcher.slots=2")
    rungs = ("search.rungs=[0.25,0.5]", f"root={tmp_path / 'rungs'}")
    paused = run_command("sweep", *question, *rungs)
    assert paused.returncode == 0, paused.stdout + paused.stderr
    assert "paused at their rung" in paused.stdout
    num_finished = len(list(tmp_path.glob("rungs/.runs/*/record.json")))
    assert 2 <= num_finished < 4, "the base model and (0, 1) at least, not all"
    marks = list(tmp_path.glob("rungs/.runs/*/attempts/*.paused"))
    lowest = {path.parents[1].name for path in marks if json.loads(path.read_text())["share"] == 0.25}
    assert len(lowest) == 3, "every cell keeps its lowest rung"
    whole = run_command("sweep", *question, *rungs, "search.exhaustive=true")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    plain = run_command("sweep", *question, f"root={tmp_path / 'plain'}")
    assert plain.returncode == 0
    assert results(tmp_path / "rungs") == results(tmp_path / "plain")
    assert len(results(tmp_path / "plain")) == 4


def test_studies_are_shown_in_postgresql_by_two_at_once(postgresql, tmp_path):
    def fill(storage):
        study = optuna.create_study(storage=storage, study_name="wit", direction="maximize")
        study.set_user_attr(SWEEP, "wit 1")
        angle = {"angle": optuna.distributions.FloatDistribution(0, 1)}
        for value in (0.25, 0.5):
            study.add_trial(
                optuna.trial.create_trial(value=value, params={"angle": value}, distributions=angle)
            )

    export(postgresql, "wit 1", ["wit"], fill)
    with ThreadPoolExecutor() as pool:
        words = list(pool.map(lambda _: export(postgresql, "wit 1", ["wit"], fill), range(2)))
    assert words == [words[0]] * 2
    assert words[0].startswith("optuna: 1 study in postgresql://")
    storage = optuna.storages.RDBStorage(postgresql.replace("postgresql:", "postgresql+psycopg:"))
    assert [trial.value for trial in optuna.load_study(study_name="wit", storage=storage).trials] == [
        0.25,
        0.5,
    ]
    storage.remove_session()
    storage.engine.dispose()
    with pytest.raises(StorageError, match="holds the study 'wit' of another sweep"):
        export(postgresql, "another", ["wit"], fill)


@pytest.fixture
def postgresql(tmp_path_factory):
    """The address of a PostgreSQL of our own."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'weight-sweep[dash]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL isn't installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgresql-test-"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
    if as_user:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(name, *words):
        subprocess.run(
            [*as_user, str(programs[-1].with_name(name)), "-D", str(folder / "data"), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )

    call("initdb", "--auth=trust", "--username=tester", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def tender_on(root) -> Tender:
    """As a line in cron would make one: it knows nothing but the files."""
    words = ("+grid=wit_5x5", "grid.scale_checks=0", "search=tpe", "search.max_runs=9", "search.at_once=3")
    words = (*words, *NEVER_SURE)
    composed = compose_sweep(parse_arguments((*words, f"root={root}", "name=searched")))
    folder, ledger = SweepFolder(root, "searched"), Ledger(root)
    search = Search(
        composed,
        lambda one: make_plan(one, cache_folder=None),
        folder,
        ledger,
        Asker(folder.path / "search.log"),
    )
    folder.write_plan(search.plan)
    launcher = LauncherConfig(kind="slurm", **DEFAULTS)
    return Tender(search.plan, ledger, folder, launcher, trainer=TRAINER, search=search)


def test_on_a_cluster_every_look_tells_what_is_new_and_asks_for_what_is_free(slurm, tmp_path):
    deadline = time.monotonic() + 120
    while True:
        tenders = [tender_on(tmp_path), tender_on(tmp_path)]
        with ThreadPoolExecutor() as pool:  # two of them at the same moment
            looks = list(pool.map(Tender.tend, tenders))
        for one in tenders:
            one._search.close()
        if any(look.is_over for look in looks):
            break
        assert time.monotonic() < deadline, looks
        time.sleep(0.5)
    plan = SweepFolder(tmp_path, "searched").plan()
    assert plan is not None
    states = Ledger(tmp_path).statuses(spec.fingerprint for spec in plan.runs)
    assert all(state.status in SETTLED for state in states.values())
    assert len(plan.runs) == 10, "nine of the budget and the base model"
    batches = read_batches(tmp_path / "searched")
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    assert len({cell for batch in batches for cell in batch.cells}) == sum(len(one.cells) for one in batches)
    assert len(list(tmp_path.glob(".runs/*/record.json"))) == 10
