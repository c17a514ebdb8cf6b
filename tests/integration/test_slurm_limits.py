"""A stricter site on a real SLURM: small arrays, few submissions, accounts, limits, preemptions without a warning."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from commands import run_command
from slurm_scenes import as_user_of, preempt, scene
from slurm_sweeps import toy_tender
from test_slurm_sweeps import finish
from toy_sweep import toy_plan

from sweep.slurm.queue import read_queue
from sweep.spec import Status

pytestmark = pytest.mark.integration
STRICT = {
    "MaxArraySize": "10",
    "AccountingStorageEnforce": "associations,limits",
    "EnforcePartLimits": "ALL",
    "SlurmctldParameters": "idle_on_node_suspend",  # without preempt_send_user_signal
}


@pytest.fixture(scope="module")
def site(slurm_cluster):
    """A second cluster, beside the other tests': theirs is only asked for because it skips where there is none."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-strict-"))
    cluster = type(slurm_cluster)(folder, STRICT)
    try:
        cluster.up()
        for name, limit in (("wide", []), ("narrow", ["MaxSubmitJobs=20"])):
            cluster.run("sacctmgr", "-i", "-Q", "add", "account", name, "cluster=test")
            cluster.run("sacctmgr", "-i", "-Q", "add", "user", "root", f"account={name}", *limit)
        with as_user_of(cluster):
            yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


def test_arrays_of_ten_still_submit_all(site, tmp_path):
    tender = toy_tender(tmp_path, toy_plan(105), max_jobs=105, account="wide", sbatch=("--begin=now+1hour",))
    started = time.monotonic()
    found = tender.tend()
    assert [batch.num_tasks for batch in found.sent] == [9] * 11 + [6]
    assert time.monotonic() - started < 20.0
    ours = {batch.batch for batch in found.sent}
    assert len([task for task in read_queue().values() if task.batch in ours]) == 105
    assert tender.tend().sent == ()
    tender.cancel_waiting()
    assert not [task for task in read_queue().values() if task.is_waiting and task.batch in ours]


def test_a_queue_that_takes_no_more_fails_nothing(site, tmp_path):
    said = []
    plan = toy_plan(40)
    tender = toy_tender(tmp_path, plan, max_jobs=40, account="narrow", setup=("export TOY_STEP_S=0.1",))
    tender.say = said.append
    sent = tender.tend().sent
    assert 9 <= sum(batch.num_tasks for batch in sent) < 20
    assert any("the queue takes no more for now" in line for line in said), said
    found = finish(tender, 90)
    assert {state.status for state in found.states.values()} == {Status.FINISHED}
    assert all(state.attempt == 1 for state in found.states.values())


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (["launcher.account=nobody"], "launcher.account"),
        (["launcher.partition=short", "launcher.time_min=30", "launcher.account=wide"], "launcher.time_min"),
        (["launcher.partition=nowhere", "launcher.account=wide"], "launcher.partition"),
    ],
)
def test_what_the_site_refuses_is_said_in_its_words(site, tmp_path, words, setting):
    done = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path}", "launcher=slurm", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: sbatch says: ")
    assert f"change {setting}" in line


def test_a_site_that_only_ends_jobs(site, tmp_path):
    """No SIGUSR2 and no warning: SIGTERM has to do, and nothing is lost either."""
    it = scene(
        tmp_path,
        "term",
        num_runs=2,
        step_s=0.3,
        partition="low",
        signal="none",
        account="wide",
        max_jobs=1,
        cpus_per_worker=8,
        cluster=site,
    )
    it.begin()
    preempt(next(task.node for task in it.tasks() if task.state == "RUNNING"), "--account=wide")
    it.until(lambda: it.num_released() > 0, 30)
    it.finish()
    it.check(0)
    assert it.losses() == []
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True).stdout
    assert "preempt_send_user_signal" not in shown
