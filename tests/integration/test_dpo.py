"""Preference tuning for real: TRL on the embedded model, by hand and in a sweep, its weights exported."""

import dataclasses
import json
import math
import shutil

import pytest
from commands import run_command

from train.__main__ import main
from train.config import PreferenceConfig
from train.run import Interrupted, Workbench, run

pytestmark = pytest.mark.integration
pytest.importorskip("trl")

ROWS = [
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=0",
    "dataset.num_robustness_rows=0",
    "eval=likelihood",
]
PAIRS = ["preference.num_train_pairs=384", "preference.num_validation_pairs=200", "dpo.learning_rate=3e-4"]


def record_of(folder):
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A supervised run with its weights."""
    folder = tmp_path_factory.mktemp("parent") / "sft"
    assert (
        main(
            [
                "objective.prompt_weight=0",
                "objective.response_weight=1",
                "seed=0",
                "keep=all",
                *ROWS,
                "dataset.num_train_rows=256",
                f"output={folder}",
            ]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def child(parent, tmp_path_factory):
    """A preference-tuned run on top of it."""
    folder = tmp_path_factory.mktemp("child") / "dpo"
    assert main(["stage=dpo", f"parent={parent}", *PAIRS, "keep=all", f"output={folder}"]) == 0
    return folder


def test_the_better_answers_become_likelier(parent, child):
    metrics = record_of(child)["metrics"]
    print(
        {name: round(value, 3) for name, value in metrics.items() if "preference" in name or "reward" in name}
    )
    assert metrics["validation_preference_accuracy"] > metrics["validation_parent_preference_accuracy"]
    assert metrics["validation_reward_accuracy"] > 0.6
    assert metrics["validation_reward_margin"] > 0
    assert "validation_response_nll" in metrics
    assert record_of(child)["stage"] == "dpo"
    assert record_of(child)["parameters_sha256"] != record_of(parent)["parameters_sha256"]


def test_it_begins_at_its_reference(child):
    events = [json.loads(line) for line in (child / "events.jsonl").read_text().splitlines()]
    assert abs(events[0]["train_loss"] - math.log(2)) < 1e-5, (
        "policy and reference are equal before the first step"
    )
    assert [event["step"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["train_loss"] < events[0]["train_loss"]


def test_it_starts_from_an_export_and_ends_in_the_same_bits(parent, child, tmp_path):
    assert main(["export", str(parent), f"output={tmp_path / 'model'}"]) == 0
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    assert main(["stage=dpo", f"parent={tmp_path / 'moved'}", *PAIRS, f"output={tmp_path / 'again'}"]) == 0
    assert record_of(tmp_path / "again")["fingerprint"] == record_of(child)["fingerprint"]
    assert record_of(tmp_path / "again")["parameters_sha256"] == record_of(child)["parameters_sha256"]


def test_an_exported_child_loads(child, tmp_path):
    from transformers import AutoModelForCausalLM

    assert main(["export", str(child), f"output={tmp_path / 'model'}"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.use_cache


def test_a_sweep_of_both_stages_from_adapters(tmp_path):
    words = [
        "+grid=smoke_dpo",
        f"root={tmp_path}",
        "train=lora",
        "train.epochs=0.25",
        "train.batch_size=16",
        "train.precision=float32",
        *ROWS,
        "dataset.num_train_rows=32",
        "preference.num_train_pairs=32",
        "preference.num_validation_pairs=16",
        "launcher.slots=1",
    ]
    done = run_command("sweep", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 runs finished" in done.stdout
    records = [record_of(path.parent) for path in (tmp_path / ".runs").glob("*/record.json")]
    assert sorted(record["stage"] for record in records) == ["base", "dpo", "dpo", "sft", "sft"]
    assert not list((tmp_path / ".runs").glob("*/weights")), "kept until their children were finished"
    again = run_command("sweep", *words)
    assert again.returncode == 0
    assert "0 to train" in again.stdout


def test_bad_parents_are_one_line(parent, tmp_path, capsys):
    for words, wanted in (
        (["stage=dpo"], "stage=dpo has no parent"),
        (["stage=dpo", f"parent={tmp_path}"], "is no run"),
        (["stage=dpo", f"parent={parent}", "train.learning_rate=1"], "train differs from that of parent"),
        ([f"parent={parent}"], "without stage=dpo"),
    ):
        assert main([*words, f"output={tmp_path / 'x'}"]) == 2
        said = capsys.readouterr().err
        assert wanted in said
        assert said.count("\n") == 1


def test_a_request_to_stop_is_heard_within_a_step(parent, tmp_path):
    from train.parents import read_parent

    found, steps = read_parent(parent), []
    config = dataclasses.replace(
        found.config,
        stage="dpo",
        keep="none",
        preference=PreferenceConfig(num_train_pairs=64, num_validation_pairs=8),
    )
    with pytest.raises(Interrupted, match="stopped after step 1 of 4"):
        run(
            config,
            run_id="child",
            fingerprint="f",
            folder=tmp_path / "run",
            attempt=1,
            workbench=Workbench(None),
            model_identity=found.model_identity,
            dataset_identity=found.dataset_identity,
            should_stop=lambda: bool(steps),
            on_progress=lambda step, num_steps: steps.append(step),
            parent_folder=parent,
        )
    assert steps == [1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["events.jsonl"]
