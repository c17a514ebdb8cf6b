"""A trainer that computes nothing and is mirrored like the real one: events, checkpoints, resume, records.

`python toy_mirror.py run FOLDER NUM_STEPS MODE` is one run; `sweep ROOT NUM_RUNS` a sweep in two workers;
`sync ROOT` the sync of that sweep. Nothing here imports torch, so that a test may start many.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

from toy_sweep import toy_plan

from sweep.arguments import Arguments
from sweep.asked import asked_of
from sweep.commands import syncing
from sweep.commands.session import Session
from sweep.controller import Controller, Interrupts
from sweep.folder import SweepFolder
from sweep.launch import Launch
from sweep.ledger import Ledger
from sweep.show import make_view
from sweep.spec import Plan, RunSpec
from sweep.trainers import GivenBack
from train.files import write_text_atomic
from train.record import RunRecord
from train.tracking import start_tracker
from train.tracking_values import Asked, mirrored_run

NUM_STEPS, STEP_S, CHECKPOINT_EVERY = 60, 0.03, 10
NAMES = {"model_identity": "m", "dataset_identity": "d"}


def mirrored_plan(num_runs: int, mode: str = "wandb") -> Plan:
    """The toy sweep, tracked."""
    plan = toy_plan(num_runs)
    runs = tuple(
        dataclasses.replace(
            spec,
            config=dataclasses.replace(
                spec.config, tracking=dataclasses.replace(spec.config.tracking, mode=mode)
            ),
        )
        for spec in plan.runs
    )
    return dataclasses.replace(plan, runs=runs)


def loss_at(seed: int, step: int) -> float:
    """Equal in every attempt, as training is."""
    return 1 / (step + seed / 10)


def train(
    spec: RunSpec, folder: Path, attempt: int, should_stop, on_progress, asked: Asked, num_steps: int
) -> RunRecord:
    """Steps from the checkpoint on; events.jsonl is cut back to it first, as `train.loop` does."""
    mirrored = mirrored_run(spec.config, spec.run_id, spec.fingerprint, NAMES, None, asked)
    tracker = start_tracker(spec.config, mirrored, folder)
    events, checkpoint = folder / "events.jsonl", folder / "toy_checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    kept = events.read_text().splitlines(keepends=True)[:done] if events.exists() else []
    with open(events, "w", buffering=1) as stream:
        stream.writelines(kept)
        for step in range(done + 1, num_steps + 1):
            time.sleep(STEP_S)
            stream.write(json.dumps({"step": step, "train_loss": loss_at(spec.config.seed, step)}) + "\n")
            tracker.log(step, {})
            on_progress(step, num_steps)
            if step % CHECKPOINT_EVERY == 0:
                write_text_atomic(checkpoint, str(step))
            if should_stop():
                tracker.finish(None)
                raise GivenBack
    record = RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage="sft",
        num_steps=num_steps,
        metrics={"validation_exact_answer": 0.25},
        attempt=attempt,
    )
    lost = tracker.finish(record)
    return dataclasses.replace(record, environment={"mirror": lost} if lost else {})


def make_trainer(root: str):
    """What a worker calls."""

    def run_one(spec, *, folder, attempt, should_stop, on_progress):
        return train(spec, folder, attempt, should_stop, on_progress, asked_of(root, spec), NUM_STEPS)

    return run_one


def run_by_hand(folder: Path, num_steps: int, mode: str) -> None:
    """One run in this process; prints its record."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = mirrored_plan(1, mode).runs[0]
    record = train(spec, folder, 1, lambda: False, lambda step, steps: None, Asked(), num_steps)
    (folder / "record.json").write_text(json.dumps(dataclasses.asdict(record)))


def run_sweep(root: Path, num_runs: int) -> None:
    """Two workers, as `python -m sweep` would start them."""
    plan, ledger = mirrored_plan(num_runs), Ledger(root, max_attempts=9)
    folder = SweepFolder(root, plan.name)
    folder.write_plan(plan)
    view = make_view(ledger)
    launch = Launch(
        root=str(root), sweep=plan.name, num_slots=2, trainer="toy_mirror:make_trainer", max_attempts=9
    )
    with Interrupts().listening() as interrupts:
        Controller(plan, ledger, folder, launch, view, interrupts, poll_s=0.1).run()
    view.close()


def sync(root: Path) -> int:
    """As `python -m sweep +grid=... sync`, without a grid."""
    folder = SweepFolder(root, "toy")
    plan = folder.plan()
    assert plan is not None
    return syncing.sync_session(Session(Arguments(), None, plan, folder, Ledger(root)))  # type: ignore[arg-type]


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run_by_hand(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1] == "sweep":
        run_sweep(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        sys.exit(sync(Path(sys.argv[2])))
