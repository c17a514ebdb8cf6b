"""One run on 2 to 4 processes: the numbers of one process, and checkpoints that change hands."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration
RANKS = Path(__file__).with_name("ranks.py")


def run_ranks(tmp_path, num_ranks, **job):
    """The result of tests/integration/ranks.py on that many processes: parameters, loss, step, log."""
    import subprocess

    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = (
        [sys.executable, str(RANKS), str(tmp_path)]
        if num_ranks == 1
        else [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(num_ranks),
            str(RANKS),
            str(tmp_path),
        ]
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    return load_file(tmp_path / "parameters.safetensors"), result


def distance(one, other) -> float:
    """Largest difference of any parameter, over the parameter's norm."""
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(
    ("kind", "num_ranks", "recipe"),
    [
        ("ddp", 2, {}),
        ("ddp", 3, {"micro_batch_tokens": 20}),
        ("ddp", 4, {"packing": "off"}),
        ("fsdp", 2, {}),
        ("fsdp", 3, {"micro_batch_tokens": 20}),
    ],
)
def test_the_result_does_not_depend_on_the_number_of_ranks(tmp_path, alone, kind, num_ranks, recipe):
    parameters, result = run_ranks(tmp_path, num_ranks, distributed=kind, recipe=recipe)
    assert distance(parameters, alone[0]) < 1e-6
    assert result["losses"] == pytest.approx(alone[1]["losses"], rel=1e-6)
    assert result["tokens"] == alone[1]["tokens"]
    assert result["nll"] == pytest.approx(alone[1]["nll"], rel=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_divergence_the_noise_and_the_clip_are_the_same_on_two_ranks(tmp_path, kind):
    settings = {"objective": {"kl_weight": 0.3}, "recipe": {"neftune_alpha": 5.0, "clip_norm": 0.4}}
    alone, told = run_ranks(tmp_path / "one", 1, **settings)
    parameters, result = run_ranks(tmp_path / "two", 2, distributed=kind, **settings)
    assert distance(parameters, alone) < 1e-6
    assert 0 < result["num_clipped_steps"] == told["num_clipped_steps"] < len(told["losses"])


def test_a_lora_run_may_be_sharded(tmp_path):
    settings = {"recipe": {"method": "lora", "lora_rank": 4}}
    alone, _ = run_ranks(tmp_path / "one", 1, **settings)
    parameters, _ = run_ranks(tmp_path / "two", 2, distributed="fsdp", **settings)
    assert distance(parameters, alone) < 1e-5


@pytest.mark.parametrize(("kind", "before", "after"), [("fsdp", 2, 3), ("fsdp", 3, 2), ("ddp", 2, 3)])
def test_a_checkpoint_resumes_on_another_number_of_ranks(tmp_path, alone, kind, before, after):
    _, stopped = run_ranks(tmp_path, before, distributed=kind, stop_after=4)
    assert stopped["interrupted"]
    parameters, result = run_ranks(tmp_path, after, distributed=kind)
    assert result["first_step"] == 5
    assert distance(parameters, alone[0]) < 1e-6


def test_a_checkpoint_resumes_bitwise_on_the_same_number_of_ranks(tmp_path):
    undisturbed, _ = run_ranks(tmp_path / "a", 2, distributed="fsdp")
    run_ranks(tmp_path / "b", 2, distributed="fsdp", stop_after=4)
    resumed, _ = run_ranks(tmp_path / "b", 2, distributed="fsdp")
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


def record_of(folder: Path, steps: list[int], should_stop=lambda: False, **recipe):
    """A small run of the embedded experiment, as a worker or a person starts it; appends its steps."""
    from train.compose import compose_run
    from train.fingerprint import fingerprint
    from train.identity import dataset_identity, model_identity
    from train.run import Workbench, run

    config = compose_run(
        [
            "objective.prompt_weight=0.5",
            "objective.response_weight=1",
            "seed=0",
            "dataset.num_train_rows=48",
            "dataset.num_validation_rows=8",
            "dataset.num_test_rows=8",
            "dataset.num_robustness_rows=0",
            "train.epochs=1",
            "eval.max_new_tokens=4",
        ]
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **recipe))
    model = model_identity(config.model, cache_folder=None)
    data = dataset_identity(config.dataset, cache_folder=None)
    return run(
        config,
        run_id="r",
        attempt=1,
        folder=folder,
        workbench=Workbench(folder.parent / "cache"),
        fingerprint=fingerprint(config, model_identity=model, dataset_identity=data),
        model_identity=model,
        dataset_identity=data,
        should_stop=should_stop,
        on_progress=lambda step, total: steps.append(step),
    )


def test_a_run_of_two_ranks_writes_the_record_of_one(tmp_path):
    steps: list[int] = []
    one = record_of(tmp_path / "one", steps)
    two = record_of(tmp_path / "two", steps, distributed="ddp", num_ranks=2)
    assert (two.outcome, two.fingerprint, two.num_steps) == ("finished", one.fingerprint, one.num_steps)
    assert two.environment["ranks"] == 2
    assert two.counts == one.counts
    assert two.metrics["validation_response_nll"] == pytest.approx(
        one.metrics["validation_response_nll"], rel=1e-5
    )
    assert (tmp_path / "two" / "events.jsonl").read_text().count("\n") == one.num_steps
    assert steps[-1] == one.num_steps


def test_a_run_of_two_ranks_stops_when_asked_and_goes_on(tmp_path):
    from train.loop import Interrupted

    with pytest.raises(Interrupted):
        record_of(tmp_path / "run", [], should_stop=lambda: True, distributed="fsdp", num_ranks=2)
    assert list((tmp_path / "run" / "checkpoint").glob("step-*/complete.json"))
    record = record_of(tmp_path / "run", [], distributed="fsdp", num_ranks=2)
    assert record.outcome == "finished"
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, record.num_steps + 1))


def test_a_users_mistake_in_a_rank_is_the_starters_too(tmp_path):
    from train.errors import ConfigError

    with pytest.raises(ConfigError, match=r"train\.device=cuda"):
        record_of(tmp_path / "run", [], distributed="ddp", num_ranks=2, device="cuda")
