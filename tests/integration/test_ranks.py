"""One run on several ranks, started by the launchers: two nodes of a real SLURM, or the slots of this machine."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from commands import run_command

from sweep.ledger import Ledger
from sweep.slurm.queue import call
from train.__main__ import main
from train.files import read_json
from train.items import read_items

pytestmark = pytest.mark.integration
GRID = (
    "+grid=smoke_2x2",
    "grid.cells={product:{prompt_weight:[0.25],response_weight:[1]}}",
    "grid.seeds=[0]",
)
# SGD, because Adam's first steps blow a rounding of a tiny gradient up to a step of full size.
RUN = (
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=32",
    "dataset.num_test_rows=0",
    "dataset.num_robustness_rows=0",
    "eval.max_new_tokens=4",
    "eval.batch_rows=4",
    "train.optimizer=sgd",
    "train.batch_size=8",
    "train.epochs=12",
    "train.checkpoint_every_s=0",
)
NODES = ("train.distributed=fsdp", "train.num_ranks=4", "model.nodes=2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run by hand, in one process: its record, and what it answered."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    weights = ("objective.prompt_weight=0.25", "objective.response_weight=1", "seed=0")
    assert main([*weights, *RUN, f"output={folder}"]) == 0
    assert main(["stage=base", *RUN, f"output={folder.parent / 'base'}"]) == 0
    return read_json(folder / "record.json") or {}, folder


@pytest.fixture
def root(tmp_path, alone):
    """A root in which the base model is measured already, so that there is one run to train."""
    base = alone[1].parent / "base"
    shutil.copytree(base, tmp_path / ".runs" / (read_json(base / "record.json") or {})["fingerprint"])
    return tmp_path


def trained(root: Path) -> Path:
    """The folder of the sweep's one run that is trained."""
    specs = [
        path for path in root.glob(".runs/*/spec.json") if (read_json(path) or {})["config"]["stage"] == "sft"
    ]
    assert len(specs) == 1
    return specs[0].parent


def wait_for(what, timeout_s=150.0):
    """What `what` returns, once it is something."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)
    return found


def step_of(root: Path) -> int:
    """The last step of the run that is trained."""
    try:
        return len((trained(root) / "events.jsonl").read_text().splitlines())
    except (AssertionError, FileNotFoundError):  # not begun
        return 0


def rank_process(root: Path, rank: int) -> int:
    """The number of one rank's process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"train.launch" in words and str(root).encode() in words[-2] and b"python" in words[0]:
                variables = (folder / "environ").read_bytes().split(b"\0")
                if f"SLURM_PROCID={rank}".encode() in variables:
                    return int(folder.name)
        except (OSError, IndexError):
            continue
    raise AssertionError(f"no rank {rank}")


def assert_same_numbers(folder: Path, alone, num_ranks: int) -> None:
    record, one = read_json(folder / "record.json") or {}, alone[0]
    assert (record["fingerprint"], record["num_steps"]) == (one["fingerprint"], one["num_steps"])
    assert record["environment"]["ranks"] == num_ranks
    assert record["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert record["final_train_loss"] == pytest.approx(one["final_train_loss"], rel=1e-6)
    steps = [json.loads(line)["step"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert steps == list(range(1, one["num_steps"] + 1)), "each step once, whatever interrupted it"
    ours, its = (read_items(place / "items", "dataset") for place in (folder, alone[1]))
    assert ours is not None
    assert its is not None
    assert ours.outputs == its.outputs
    assert any(ours.outputs)


def test_two_nodes_lose_a_rank_and_are_preempted_and_end_in_the_same_numbers(slurm, root, alone):
    site = ("launcher.partition=low", "launcher.time_min=10", "launcher.signal_delay_s=15")
    started = run_command("sweep", *GRID, *RUN, *NODES, f"root={root}", "launcher=slurm", *site)
    assert started.returncode == 0, started.stdout + started.stderr
    wait_for(lambda: step_of(root) >= 3)
    killed_at = time.monotonic()
    os.kill(rank_process(root, 3), signal.SIGKILL)
    folder = trained(root)
    loss = wait_for(lambda: read_json(folder / "attempts" / "0001.lost.json"))
    print(f"a killed rank was noticed after {time.monotonic() - killed_at:.1f} s: {loss['evidence']}")
    assert loss["kind"] == "killed", loss
    assert time.monotonic() - killed_at < 20, "the other ranks end promptly"
    step = step_of(root)
    assert 0 < step < alone[0]["num_steps"]
    wait_for(lambda: step_of(root) > step)
    call("sbatch", "--partition=main", "--nodes=4", "--exclusive", "--wrap=sleep 2", "--output=/dev/null")
    wait_for(lambda: (folder / "attempts" / "0002.released").exists(), 60)
    assert step < step_of(root) < alone[0]["num_steps"]
    wait_for(lambda: (folder / "record.json").exists())
    assert Ledger(root).last_attempt(folder.name) == 3
    assert_same_numbers(folder, alone, 4)


def test_a_run_of_two_nodes_goes_on_with_two_ranks_here(slurm, root, alone):
    words = (*GRID, *RUN, f"root={root}")
    there = (*words, *NODES, "launcher=slurm", "launcher.time_min=10")
    started = run_command("sweep", *there)
    assert started.returncode == 0, started.stdout + started.stderr
    wait_for(lambda: step_of(root) >= 3)
    stopped = run_command("sweep", *there, "cancel", "-y")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    wait_for(lambda: (trained(root) / "attempts" / "0001.released").exists())
    assert 0 < step_of(root) < alone[0]["num_steps"]
    here = ("train.distributed=fsdp", "train.num_ranks=2", "launcher.slots=2")
    done = run_command("sweep", *words, *here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs finished" in done.stdout
    assert Ledger(root).last_attempt(trained(root).name) == 2
    assert_same_numbers(trained(root), alone, 2)
