"""One run from configuration to record, on the embedded experiment; and what a worker's runs share."""

import dataclasses
import json

import pytest

from train.compose import compose_run
from train.embedded.tasks import FAMILIES
from train.errors import ModelError
from train.fingerprint import fingerprint as fingerprint_of
from train.identity import dataset_identity, model_identity
from train.items import read_items, score
from train.record import record_from_dict, record_to_dict
from train.run import Interrupted, Workbench, run
from train.rungs import Paused, step_of

SMALL = [
    "dataset.num_train_rows=64",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=8",
    "train.epochs=1",
    "eval.max_new_tokens=4",
]


def config_of(prompt_weight: float, response_weight: float, *overrides: str):
    return compose_run(
        [
            f"objective.prompt_weight={prompt_weight}",
            f"objective.response_weight={response_weight}",
            "seed=0",
            *SMALL,
            *overrides,
        ]
    )


@pytest.fixture(scope="module")
def workbench(tmp_path_factory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("cache"))


def run_of(config, folder, workbench, should_stop=lambda: False, pause_at=None):
    identities = {
        "model_identity": model_identity(config.model, cache_folder=None),
        "dataset_identity": dataset_identity(config.dataset, cache_folder=None),
    }
    return run(
        config,
        run_id="test",
        fingerprint=fingerprint_of(config, **identities),
        folder=folder,
        attempt=1,
        workbench=workbench,
        should_stop=should_stop,
        on_progress=lambda step, steps: None,
        pause_at=pause_at,
        **identities,
    )


def test_a_record_is_complete_and_survives_json(tmp_path, workbench):
    record = run_of(config_of(0, 1), tmp_path, workbench)
    assert record.outcome == "finished"
    assert record.num_steps == 8
    assert set(record.metrics) >= {
        "validation_exact_answer",
        "test_exact_answer",
        "robustness_exact_answer",
        "validation_response_nll",
        "validation_prompt_nll",
        "validation_response_bits_per_byte",
        "validation_constraint_adherence",
    }
    assert record.counts["train_rows"] == 64
    assert record.counts["train_response_tokens"] > 64
    assert {"torch", "host", "device", "python"} <= set(record.environment)
    assert record_from_dict(json.loads(json.dumps(record_to_dict(record)))) == record
    assert (tmp_path / "checkpoint").is_dir(), "kept until the record is written, by whoever writes it"


def test_runs_of_one_process_do_not_touch_each_other(tmp_path, workbench):
    first = run_of(config_of(0, 1), tmp_path / "a", workbench)
    run_of(config_of(1, 0), tmp_path / "b", workbench)
    run_of(config_of(1, 1, "train=lora", "train.batch_size=16"), tmp_path / "c", workbench)
    again = run_of(config_of(0, 1), tmp_path / "d", workbench)
    fresh = run_of(config_of(0, 1), tmp_path / "e", Workbench(None))
    assert first.parameters_sha256 == again.parameters_sha256 == fresh.parameters_sha256
    assert first.metrics == again.metrics == fresh.metrics


def test_an_interrupted_run_ends_in_the_same_record(tmp_path, workbench):
    expected = run_of(config_of(1, 1), tmp_path / "a", workbench)
    with pytest.raises(Interrupted):
        run_of(config_of(1, 1), tmp_path / "b", workbench, should_stop=lambda: True)
    resumed = run_of(config_of(1, 1), tmp_path / "b", Workbench(None))
    assert expected.parameters_sha256 == resumed.parameters_sha256
    assert expected.metrics == resumed.metrics
    assert expected.final_train_loss == resumed.final_train_loss


def test_a_paused_run_is_measured_and_ends_in_the_same_record(tmp_path, workbench):
    expected = run_of(config_of(1, 1), tmp_path / "a", workbench)
    with pytest.raises(Paused) as quarter:
        run_of(config_of(1, 1), tmp_path / "b", workbench, pause_at=0.25)
    with pytest.raises(Paused) as again:  # its worker died before it could say so
        run_of(config_of(1, 1), tmp_path / "b", Workbench(None), pause_at=0.25)
    with pytest.raises(Paused) as half:
        run_of(config_of(1, 1), tmp_path / "b", workbench, pause_at=0.5)
    resumed = run_of(config_of(1, 1), tmp_path / "b", Workbench(None))
    assert expected.parameters_sha256 == resumed.parameters_sha256
    assert expected.metrics == resumed.metrics
    assert expected.final_train_loss == resumed.final_train_loss
    events = [(tmp_path / name / "events.jsonl").read_text().splitlines() for name in "ab"]
    losses = [[json.loads(line)["train_loss"] for line in lines] for lines in events]
    assert losses[0] == losses[1]
    assert quarter.value.metrics == again.value.metrics
    assert quarter.value.metrics["validation_response_nll"] != half.value.metrics["validation_response_nll"]
    assert not any(name.startswith("test_") for name in half.value.metrics), "what judges must not choose"
    assert half.value.share == 0.5


def test_a_rung_is_a_step():
    assert [step_of(share, 8) for share in (0.01, 0.25, 0.26, 1.0)] == [1, 2, 3, 8]
    assert step_of(0.1, 10) == 1
    assert step_of(0.3, 10) == 3


def test_the_base_model_is_measured_and_not_trained(tmp_path, workbench):
    config = dataclasses.replace(config_of(0, 1), stage="base")
    record = run_of(config, tmp_path, workbench)
    assert record.num_steps == 0
    assert record.stage == "base"
    assert (
        record.metrics["validation_response_nll"]
        > run_of(config_of(0, 1), tmp_path / "t", workbench).metrics["validation_response_nll"]
    )


def test_a_loss_that_is_no_number_is_a_recorded_failure(tmp_path, workbench):
    record = run_of(
        config_of(
            0, 1, "train.optimizer=sgd", "train.learning_rate=1e30", "train.warmup_ratio=0", "train.epochs=4"
        ),
        tmp_path,
        workbench,
    )
    assert record.outcome == "failed"
    assert record.failure is not None
    assert record.failure.kind == "nan_loss"
    assert "rows train-" in record.failure.message


def test_every_recipe_setting_is_read(tmp_path, workbench):
    """A switch that does nothing is a lie: each change must change the trained parameters."""
    expected = run_of(config_of(0.5, 1), tmp_path / "reference", workbench).parameters_sha256
    changes = [
        "train.learning_rate=2e-3",
        "train.weight_decay=0",
        "train.beta1=0.8",
        "train.beta2=0.9",
        "train.epsilon=1e-3",
        "train.clip_norm=0.1",
        "train.schedule=linear",
        "train.warmup_ratio=0.5",
        "train.epochs=2",
        "train.max_steps=2",
        "train.batch_size=16",
        "train.dropout=0.2",
        "train.optimizer=adam",
        "train.optimizer=sgd",
        "train.precision=bfloat16",
        "train.method=lora",
        "seed=1",
        "seeds.data_order=5",
        "objective.prompt_weight=0.25",
        "dataset.max_tokens=40",
        "dataset.num_train_rows=48",
        "dataset.split_seed=1",
        "model.add_bos=false",
        "model.template=tulu",
    ]
    for number, change in enumerate(changes):
        base = [
            f"{key}={value}"
            for key, value in (
                ("objective.prompt_weight", 0.5),
                ("objective.response_weight", 1),
                ("seed", 0),
            )
            if not change.startswith(f"{key}=")
        ]
        config = compose_run(
            [*base, *[word for word in SMALL if word.split("=")[0] != change.split("=")[0]], change]
        )
        record = run_of(config, tmp_path / str(number), workbench)
        assert record.parameters_sha256 != expected, f"{change} changes nothing"
        assert ("clipped_steps" in record.counts) == ("clip_norm" in change)


def test_a_corrupt_checkpoint_is_one_line(tmp_path):
    import shutil

    from train.model import EMBEDDED_MODEL_FOLDER, load_model

    folder = shutil.copytree(EMBEDDED_MODEL_FOLDER, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\x00" * 1000)
    config = config_of(0, 1, "model=local", f"model.path={folder}").model
    import torch

    with pytest.raises(ModelError) as caught:
        load_model(config, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_every_row_is_kept_beside_the_means(tmp_path, workbench):
    record = run_of(config_of(0, 1), tmp_path, workbench)
    assert sorted(path.name for path in (tmp_path / "items").iterdir()) == [
        "dataset.parquet",
        "robustness.parquet",
        "wordings.parquet",
    ]
    items = read_items(tmp_path / "items", "dataset")
    for split in ("validation", "test"):
        for column in items.values:
            found = score(items, column, split)
            name = f"{split}_{column}"
            assert (found is None) == (name not in record.metrics), name
            if found is not None:
                assert found.mean == pytest.approx(record.metrics[name], rel=1e-12), name
    assert len(items.outputs) == 32
    assert set(items.clusters) <= set(FAMILIES)
    robust = read_items(tmp_path / "items", "robustness")
    assert set(robust.splits) == {"validation", "test"}
    assert score(robust, "response_nll").mean == pytest.approx(record.metrics["robustness_response_nll"])
    halves = [record.metrics[f"{half}_robustness.exact_answer"] for half in ("validation", "test")]
    weights = [robust.splits.count(half) for half in ("validation", "test")]
    mean = sum(w * m for w, m in zip(weights, halves, strict=True)) / 8
    assert mean == pytest.approx(record.metrics["robustness_exact_answer"])


def test_runs_of_one_plane_share_a_protocol(tmp_path, workbench):
    run_of(config_of(0, 1), tmp_path / "a", workbench)
    run_of(config_of(1, 1), tmp_path / "b", workbench)
    run_of(config_of(1, 1, "eval.max_new_tokens=5"), tmp_path / "c", workbench)
    protocols = [read_items(tmp_path / name / "items", "dataset").protocol for name in "abc"]
    assert protocols[0] == protocols[1] != protocols[2]
