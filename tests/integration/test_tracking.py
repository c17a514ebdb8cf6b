"""The W&B mirror with the real client, offline: it must reflect the record and never stop a run."""

import json
import subprocess
import sys

import pytest
from commands import run_command

pytestmark = pytest.mark.integration

SMALL = (
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "train.epochs=1",
)


def test_an_offline_mirror_holds_the_curve_and_the_final_metrics(tmp_path):
    output = tmp_path / "run"
    result = run_command(
        "train",
        "objective.prompt_weight=0",
        "objective.response_weight=1",
        "seed=0",
        "tracking=wandb_offline",
        f"output={output}",
        *SMALL,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads((output / "record.json").read_text())
    (folder,) = (output / "wandb").glob("offline-run-*")
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert record["fingerprint"] in shown.stdout
    assert shown.stdout.count('"trainer_step"') >= record["num_steps"]
    assert "validation_response_nll" in shown.stdout


def test_a_server_that_is_not_there_does_not_stop_the_run(tmp_path):
    result = run_command(
        "train",
        "objective.prompt_weight=0",
        "objective.response_weight=1",
        "seed=0",
        "tracking=wandb",
        f"output={tmp_path / 'run'}",
        *SMALL,
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="x" * 40,
        WANDB_INIT_TIMEOUT="5",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "training goes on without it" in result.stdout
