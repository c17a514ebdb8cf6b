"""Cells of one plane in one stack, by the real commands: killed, interrupted, divided, and always the same records."""

import os
import signal
import time

import pytest
from commands import run_command, start_command
from test_kill import assert_no_attempt_after_the_record, results

from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.slots import holders
from sweep.spec import Status
from train.files import read_json

pytestmark = pytest.mark.integration
PLANE = [
    "+grid=smoke_2x2",
    "grid.cells={product:{prompt_weight:[0,0.25,0.5,1],response_weight:[1]}}",
    "dataset.num_train_rows=128",
    "dataset.num_validation_rows=8",
    "dataset.num_test_rows=8",
    "dataset.num_robustness_rows=4",
    "eval.max_new_tokens=4",
    "train.epochs=3",  # 48 steps
    "train.checkpoint_every_s=0.3",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What every run is by itself."""
    root = tmp_path_factory.mktemp("alone")
    done = run_command("sweep", *PLANE, f"root={root}", "launcher.slots=1", "train.plane=off")
    assert done.returncode == 0, done.stdout + done.stderr
    return results(root)


def start(root, *words):
    return start_command("sweep", *PLANE, f"root={root}", *words)


def trained(root):
    """The cells, without the base model that is measured first."""
    plan = SweepFolder(root, "smoke_2x2").plan()
    return [spec for spec in plan.runs if spec.config.stage == "sft"] if plan else []


def wait_for(process, root, is_so):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        states = Ledger(root).statuses(spec.fingerprint for spec in trained(root))
        if states and is_so(list(states.values())):
            return states
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


def stacks(root):
    """How many runs each record says it was trained with."""
    records = Ledger(root).records(spec.fingerprint for spec in trained(root))
    return [records[spec.fingerprint].environment["plane"]["runs"] for spec in trained(root)]


def test_two_workers_share_a_plane_and_one_that_is_killed_costs_no_number(tmp_path, alone):
    root = tmp_path / "root"
    process = start(root, "launcher.slots=2", "train.plane=8")
    states = wait_for(process, root, lambda states: any(len(cells) > 1 for cells in at_work(states).values()))
    victim = next(pid for pid, cells in at_work(states.values()).items() if len(cells) > 1)
    assert victim in {holder.owner.pid for holder in holders(root).values()}
    killed = [name for name, state in states.items() if state.owner and state.owner.pid == victim]
    os.kill(victim, signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert 2 <= len(killed) <= 3, "its part; the base model is one of five"
    assert results(root) == alone
    assert_no_attempt_after_the_record(root)
    records = Ledger(root).records(killed)
    assert {record.environment.get("stacked", 1) for record in records.values()} == {1}, "after a death: half"
    for name in killed:
        assert len((Ledger(root).folder(name) / "events.jsonl").read_text().splitlines()) == 48, (
            "each step once"
        )
        assert records[name].attempt == 2
    claims = [
        read_json(path) or {} for path in root.glob(".runs/*/attempts/*.json") if path.name.count(".") == 1
    ]
    assert len({claim["pid"] for claim in claims}) >= 3, "two workers, and one in the place of the killed"


def at_work(states):
    """Cells that are being trained, by their worker's process."""
    found: dict[int, list] = {}
    for state in states:
        if state.status is Status.RUNNING and state.heartbeat and state.heartbeat.step > 4:
            found.setdefault(state.owner.pid, []).append(state)
    return found


def test_an_interrupted_plane_gives_all_back_and_goes_on_in_one_stack(tmp_path, alone):
    root = tmp_path / "root"
    process = start(root, "launcher.slots=1", "launcher.unit=plane", "train.plane=8")
    wait_for(
        process,
        root,
        lambda states: all(
            state.status is Status.RUNNING and state.heartbeat and state.heartbeat.step > 4
            for state in states
        ),
    )
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    interrupted, _ = process.communicate(timeout=120)
    assert process.returncode == 130, interrupted
    released = [read_json(path) for path in root.glob(".runs/*/attempts/0001.released")]
    assert len(released) == 4
    assert {values["reason"].partition(":")[0] for values in released} == {"cancelled"}
    assert not holders(root)
    again = run_command(
        "sweep", *PLANE, f"root={root}", "launcher.slots=1", "launcher.unit=plane", "train.plane=8"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert stacks(root) == [4] * 4
    assert results(root) == alone
    logs = [Ledger(root).attempt_path(spec.fingerprint, 1, "log").read_text() for spec in trained(root)]
    assert logs == ["runs at once: 4 of 4: train.plane=8\n"] * 4


def test_a_job_of_a_cluster_takes_a_whole_plane(slurm, tmp_path, alone):
    root = tmp_path / "root"
    words = (*PLANE, f"root={root}", "launcher=slurm", "launcher.unit=plane", "train.plane=8")
    started = run_command("sweep", *words)
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 240
    while len(list(root.glob(".runs/*/record.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.5)
    done = run_command("sweep", *words, "collect")
    assert "5 of 5 runs finished" in done.stdout, done.stdout + done.stderr
    assert "submitted 2 workers" in started.stdout, "one for the plane, one for the base model"
    assert stacks(root) == [4] * 4
    assert results(root) == alone
