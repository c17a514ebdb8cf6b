"""Preference tuning for real: TRL on the embedded model, by hand and in a sweep, its weights exported."""

import dataclasses
import json
import math
import shutil

import pytest
from commands import run_command

from train.__main__ import main
from train.config import DpoConfig, PreferenceConfig
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


@pytest.fixture(scope="module", params=["full", "lora"])
def small(request, tmp_path_factory):
    """A parent whose children are cheap, trained in full or with adapters that drop out."""
    folder = tmp_path_factory.mktemp("small") / "sft"
    recipe = ["train=lora", "train.lora_dropout=0.1", "train.precision=float32"] * (request.param == "lora")
    weights = ["objective.prompt_weight=0", "objective.response_weight=1", "seed=0", "keep=all"]
    size = ["dataset.num_train_rows=32", "train.batch_size=16", "train.epochs=1"]
    assert main([*weights, *ROWS, *recipe, *size, f"output={folder}"]) == 0
    return folder


def tuned(parent, folder, stop_after=(), saves_every_s=0.0):
    """The record of a child of 8 steps over 2 epochs that don't divide evenly; stopped after some steps."""
    from train.parents import read_parent

    found, steps = read_parent(parent), []
    config = dataclasses.replace(
        found.config,
        stage="dpo",
        keep="none",
        train=dataclasses.replace(found.config.train, checkpoint_every_s=saves_every_s),
        preference=PreferenceConfig(num_train_pairs=58, num_validation_pairs=8),
        dpo=DpoConfig(batch_size=16, micro_batch_pairs=4, learning_rate=1e-3),
    )
    while True:
        try:
            return run(
                config,
                run_id="child",
                fingerprint="f",
                folder=folder,
                attempt=1,
                workbench=Workbench(None),
                model_identity=found.model_identity,
                dataset_identity=found.dataset_identity,
                should_stop=lambda: bool(steps) and steps[-1] in stop_after and steps.count(steps[-1]) == 1,
                on_progress=lambda step, num_steps: steps.append(step),
                parent_folder=parent,
            ), steps
        except Interrupted:
            steps.append(0)  # a new life


def test_a_child_that_was_interrupted_ends_in_the_same_bits(small, tmp_path):
    calm, _ = tuned(small, tmp_path / "calm")
    again, steps = tuned(small, tmp_path / "again", stop_after=(2, 4, 5))
    assert steps == [1, 2, 0, 3, 4, 0, 5, 0, 6, 7, 8], "inside of an epoch, at its end, and at once after it"
    assert again.parameters_sha256 == calm.parameters_sha256
    assert again.metrics == calm.metrics
    assert again.final_train_loss == calm.final_train_loss
    logs = [(tmp_path / name / "events.jsonl").read_text() for name in ("calm", "again")]
    assert logs[0] == logs[1]
    assert not [
        path for path in (tmp_path / "again").rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")
    ]


def test_a_child_that_was_killed_goes_on_from_its_last_save(small, tmp_path, monkeypatch):
    from train import dpo_resume

    calm, _ = tuned(small, tmp_path / "calm", saves_every_s=1e9)
    original, saves = dpo_resume.save_checkpoint, []

    def dies_after_third(*arguments):
        original(*arguments)
        saves.append(arguments)
        if len(saves) == 3:
            raise KeyboardInterrupt  # the process is gone: nothing else is written

    with monkeypatch.context() as patch:
        patch.setattr(dpo_resume, "save_checkpoint", dies_after_third)
        with pytest.raises(KeyboardInterrupt):
            tuned(small, tmp_path / "again")
    again, steps = tuned(small, tmp_path / "again")
    assert steps == [4, 5, 6, 7, 8]
    assert again.parameters_sha256 == calm.parameters_sha256
    assert (tmp_path / "again" / "events.jsonl").read_text() == (
        tmp_path / "calm" / "events.jsonl"
    ).read_text()
