"""sync sends what the server lacks, exactly once, in whatever weather."""

import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toy_mirror import NUM_STEPS, loss_at, mirrored_plan
from wandb_runs import (
    HERE,
    QUICK,
    fingerprints,
    run_folders,
    server_steps,
    sleep_until_quiet,
    steps_on_disk,
    toy,
    toy_environment,
)
from wandb_server import WandbServer

from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from train.files import read_json
from train.record import RunRecord

pytestmark = pytest.mark.integration


@pytest.fixture
def server():
    with WandbServer() as running:
        yield running


def write_steps(folder: Path, seed: int, num_steps: int) -> None:
    lines = [
        json.dumps({"step": step, "train_loss": loss_at(seed, step)}) + "\n"
        for step in range(1, num_steps + 1)
    ]
    (folder / "events.jsonl").write_text("".join(lines))


def write_sweep(root: Path, num_runs: int, *, num_unfinished: int = 0) -> list[str]:
    """A ledger as workers without a network leave it, and without W&B's own folders: sync needs none."""
    plan, ledger = mirrored_plan(num_runs, "none"), Ledger(root)
    SweepFolder(root, plan.name).write_plan(plan)
    for index, spec in enumerate(plan.runs):
        claim = ledger.claim(spec.fingerprint)
        assert claim is not None
        write_steps(claim.folder, spec.config.seed, NUM_STEPS // 2 if index < num_unfinished else NUM_STEPS)
        if index < num_unfinished:
            claim.release()
        else:
            claim.commit(record_of(spec))
    return [spec.fingerprint for spec in plan.runs]


def record_of(spec) -> RunRecord:
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage="sft",
        num_steps=NUM_STEPS,
        metrics={"validation_exact_answer": 0.25},
        environment={"git_commit": "abc"},
    )


def assert_complete(server: WandbServer, root: Path) -> None:
    """No point missing, none twice, steps ascending, every record there."""
    for fingerprint, folder in run_folders(root, "toy").items():
        assert server_steps(server, fingerprint) == steps_on_disk(folder) == list(range(1, NUM_STEPS + 1))
        run = server.store.run(fingerprint)
        seed = run.values["seed"]
        assert [row["train_loss"] for row in run.history] == [
            loss_at(seed, step) for step in range(1, NUM_STEPS + 1)
        ]
        assert (run.state, run.group, run.summary["validation_exact_answer"]) == ("finished", "toy", 0.25)


def test_sync_sends_everything_once_and_is_gentle(tmp_path, server):
    write_sweep(tmp_path, 12)
    result = toy("sync", tmp_path, **server.variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "12 of 12 runs are on W&B: 12 sent now (720 points)" in result.stdout
    assert_complete(server, tmp_path)
    moments = server.store.creations
    assert len(moments) == 12
    assert all(moments[index + 10] - moments[index] >= 1 for index in range(len(moments) - 10)), (
        "10 a second at most"
    )
    requests = len(server.bodies)
    again = toy("sync", tmp_path, **server.variables)
    assert "0 sent now (0 points), 12 were there" in again.stdout
    assert len(server.bodies) == requests, "nothing new, nothing asked"


def test_sync_of_a_run_that_goes_on_later_adds_the_rest(tmp_path, server):
    first, second = write_sweep(tmp_path, 2, num_unfinished=1)
    assert toy("sync", tmp_path, **server.variables).returncode == 0
    assert server_steps(server, first) == list(range(1, NUM_STEPS // 2 + 1))
    assert (server.store.run(first).state, server.store.run(second).state) == ("preempted", "finished")
    ledger, spec = Ledger(tmp_path), mirrored_plan(2, "none").runs[0]
    claim = ledger.claim(first)
    write_steps(claim.folder, spec.config.seed, NUM_STEPS)
    claim.commit(record_of(spec))
    assert "1 sent now (30 points), 1 were there" in toy("sync", tmp_path, **server.variables).stdout
    assert_complete(server, tmp_path)


def test_a_sync_that_is_killed_goes_on_where_it_was(tmp_path, server):
    write_sweep(tmp_path, 8)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(HERE / "toy_mirror.py"), "sync", str(tmp_path)],
            cwd=HERE,
            env=toy_environment(**server.variables),
            stdout=subprocess.DEVNULL,
        )
        seen = len(server.store.creations)
        end = time.monotonic() + 20
        while len(server.store.creations) < seen + 2 and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    result = toy("sync", tmp_path, **server.variables)
    assert result.returncode == 0, result.stdout
    sleep_until_quiet(server)
    assert_complete(server, tmp_path)
    assert len(server.store.creations) == 8


def test_a_second_sync_leaves_the_first_alone(tmp_path):
    write_sweep(tmp_path, 1)
    with open(tmp_path / "toy" / "sync.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = toy("sync", tmp_path)
    assert (result.returncode, result.stdout) == (0, "another sync of this sweep is at work; nothing to do\n")


@pytest.mark.parametrize(
    ("prepare", "code", "line"),
    [
        ("no key", 2, "W&B has no API key"),
        ("entity", 2, "W&B has no entity None that takes runs of yours"),
        ("deleted", 1, "was deleted in the default entity/weight-sweep"),
        ("garbage", 1, "answers with something that isn't W&B"),
        ("dead", 1, "the server fails again and again: the rest waits for the next sync"),
    ],
)
def test_what_sync_can_not_do_is_said_and_can_be_done_later(tmp_path, server, prepare, code, line):
    names = write_sweep(tmp_path, 4)
    variables = {**server.variables, **QUICK}
    if prepare == "no key":
        variables |= {"WANDB_API_KEY": "", "HOME": str(tmp_path)}
    elif prepare == "entity":
        server.store.entities.clear()
    elif prepare == "deleted":
        server.store.deleted.add(names[1])
    elif prepare == "garbage":
        server.fault = "garbage"
    else:
        server.die()
    result = toy("sync", tmp_path, **variables)
    assert result.returncode == code or "UserError" in result.stderr, result.stdout + result.stderr
    assert line in result.stdout + result.stderr
    if prepare == "deleted":
        assert "3 of 4 runs are on W&B" in result.stdout, "the others don't suffer"
    if prepare in ("garbage", "dead"):
        server.fault = None
        server.live()
        assert toy("sync", tmp_path, **server.variables).returncode == 0
        assert_complete(server, tmp_path)


def test_runs_of_two_sweeps_keep_their_group_and_carry_both_tags(tmp_path, server):
    names = write_sweep(tmp_path, 1)
    assert toy("sync", tmp_path, **server.variables).returncode == 0
    path = tmp_path / ".runs" / names[0] / "wandb_synced.json"
    known = dict(read_json(path) or {})
    (target,) = known
    path.write_text(json.dumps({target: {**known[target], "sweeps": ["earlier"]}}))
    assert toy("sync", tmp_path, **server.variables).returncode == 0
    run = server.store.run(names[0])
    assert run.group == "earlier"
    assert {"sweep:earlier", "sweep:toy"} <= set(run.tags)


class Weather(threading.Thread):
    """The server is down for half of the time, and bad-tempered for some of the rest."""

    def __init__(self, server: WandbServer) -> None:
        super().__init__(daemon=True)
        self.server, self.over, self.random = server, threading.Event(), random.Random(7)
        self.down_s = self.up_s = 0.0

    def run(self) -> None:
        while not self.over.is_set():
            self.server.fault = lambda what: self.random.choice(
                ["429", "500", "drop", None, None, None, None]
            )
            self.up_s += self.pause(0.5 + self.random.random())
            self.server.die()
            self.down_s += self.pause(0.5 + self.random.random())
            self.server.live()

    def pause(self, seconds: float) -> float:
        self.over.wait(seconds)
        return seconds

    def clear_up(self) -> None:
        self.over.set()
        self.join()
        self.server.fault = None
        self.server.live()


def kill_workers(root: Path, wanted: int, process: subprocess.Popen) -> int:
    """SIGKILL workers, each in the middle of another run; how many."""
    killed: set[tuple[str, int]] = set()
    while len(killed) < wanted and process.poll() is None:
        time.sleep(0.1)
        ledger = Ledger(root)
        for fingerprint in fingerprints(root, "toy") if (root / "toy" / "plan.json").exists() else ():
            state = ledger.status(fingerprint)
            middle = 10 < len(steps_on_disk(ledger.folder(fingerprint))) < NUM_STEPS - 10
            if (
                state.status == "running"
                and state.owner
                and middle
                and (fingerprint, state.attempt) not in killed
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(state.owner.pid, signal.SIGKILL)
                    killed.add((fingerprint, state.attempt))
                    break
    return len(killed)


def test_chaos_loses_nothing(tmp_path, server):
    weather = Weather(server)
    weather.start()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "toy_mirror.py"), "sweep", str(tmp_path), "20"],
        cwd=HERE,
        env=toy_environment(**server.variables, WANDB_INIT_TIMEOUT="2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert kill_workers(tmp_path, 3, process) == 3
    assert process.wait(200) == 0
    weather.clear_up()
    assert 0.3 < weather.down_s / (weather.down_s + weather.up_s) < 0.7
    for _ in range(2):
        result = toy("sync", tmp_path, **server.variables)
        assert result.returncode == 0, result.stdout
    assert "20 were there" in result.stdout
    sleep_until_quiet(server)
    assert_complete(server, tmp_path)
    assert not server.store.unknown
