"""A trainer that trains nothing, but stops, resumes and fails like a real one. No torch, half a second a run.

Its parameters are a chain of hashes over its steps, so a step that is lost or done twice changes the result.
Every step that is executed is counted in steps.log, so a test can tell how much was done twice. What it suffers is
said by variables: TOY_MB of memory that it takes, TOY_BROKEN_NODE on which its device fails.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from sweep.spec import RunSpec
from sweep.trainers import GivenBack, RunOne
from train.files import read_json, write_json_atomic
from train.record import RunRecord

NUM_STEPS = 20
STEP_S = float(os.environ.get("TOY_STEP_S", "0.02"))


def make_trainer(root: str) -> RunOne:
    """What `Launch.trainer` names."""
    time.sleep(float(os.environ.get("TOY_IMPORT_S", "0")))
    if os.environ.get("TOY_DIES"):
        os._exit(3)
    return train


def train(
    spec: RunSpec,
    *,
    folder: Path,
    attempt: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> RunRecord:
    """Twenty steps, a checkpoint after each."""
    state = read_json(folder / "checkpoint" / "state.json") or {"step": 0, "chain": spec.fingerprint}
    step, chain = state["step"], state["chain"]
    (folder / "checkpoint").mkdir(exist_ok=True)
    print(f"from step {step}", flush=True)
    if os.environ.get("TOY_BROKEN_NODE", "") == os.environ.get("SLURMD_NODENAME", "here"):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    ballast = b"x" * (int(os.environ.get("TOY_MB", "0")) << 20)
    while step < NUM_STEPS:
        if spec.config.train.learning_rate == 1e-9:
            raise ValueError("a learning rate too small for a toy")
        time.sleep(STEP_S)
        assert len(ballast) % 2 == 0
        chain = hashlib.sha256(f"{chain} {step}".encode()).hexdigest()
        step += 1
        with open(folder / "steps.log", "a", encoding="ascii") as log:
            log.write(f"{step}\n")
        on_progress(step, NUM_STEPS)
        write_json_atomic(folder / "checkpoint" / "state.json", {"step": step, "chain": chain})
        if should_stop():
            raise GivenBack(f"after step {step}")
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage=spec.config.stage,
        metrics={"validation_response_nll": int(chain[:8], 16) / 2**32},
        num_steps=NUM_STEPS,
        parameters_sha256=chain,
        training_s=NUM_STEPS * STEP_S,
        attempt=attempt,
        finished_at=time.time(),
    )
