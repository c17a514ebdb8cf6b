"""Runs trained in one stack end where runs alone end, whatever their company."""

import math
from dataclasses import replace

import pytest
import torch
from test_loop import events, flat, without_speed
from tiny import run_config, tiny_model, tiny_split

from train.loop import Hooks, Interrupted, train_model
from train.model import add_adapters, trainable_parameters
from train.stacked.loop import CellRun, train_stacked
from train.stacked.stacking import cannot_stack
from train.tracking import NullTracker

CPU = torch.device("cpu")
GRID = [(p / 4, r / 4) for p in range(5) for r in range(5) if p or r]
PLANE = [(p, r) for p, r in GRID if r]  # prompt-only runs end their rows earlier: a stack of their own


def hooks(done=None):
    return Hooks(
        lambda: False, lambda step, steps: done.append(step) if done is not None else None, NullTracker()
    )


def configs(cells=PLANE, **recipe):
    return [run_config(p, r, **recipe) for p, r in cells]


def stack(folder, configs, model=None, split=None, stop_after=None):
    model = model if model is not None else tiny_model()
    assert cannot_stack(model, configs) == ""
    done: list[int] = []
    runs = [
        CellRun(config, f"{n:032x}", folder / str(n), hooks(done if n == 0 else None))
        for n, config in enumerate(configs)
    ]
    return train_stacked(
        model,
        split or tiny_split(),
        runs,
        device=CPU,
        should_stop=lambda: stop_after is not None and len(done) >= stop_after,
    )


def alone(folder, config, n, model=None, split=None):
    model = model if model is not None else tiny_model()
    progress = train_model(
        model,
        split or tiny_split(),
        config,
        fingerprint=f"{n:032x}",
        folder=folder / str(n),
        device=CPU,
        hooks=hooks(),
    )
    return trainable_parameters(model), progress


def same_bits(parameters, other):
    return set(parameters) == set(other) and all(torch.equal(parameters[name], other[name]) for name in other)


def distance(one, other, start):
    """Between two end points, in units of the distance travelled, or of 1 where that is more."""

    def norm(left, right):
        return sum(float((left[key].detach() - right[key].detach()).norm() ** 2) for key in start) ** 0.5

    return norm(one, other) / max(norm(other, start), 1.0)


@pytest.mark.parametrize(
    "recipe", [{}, {"packing": "on"}, {"clip_norm": 0.5}, {"optimizer": "sgd"}, {"micro_batch_tokens": 40}]
)
def test_every_cell_ends_in_the_bits_of_a_run_alone(tmp_path, recipe):
    asked = configs(**recipe)
    model = tiny_model()
    before = flat(model)
    results = stack(tmp_path / "stack", asked, model)
    assert torch.equal(flat(model), before)
    for n in (0, 3, 7, len(asked) - 1):
        parameters, progress = alone(tmp_path / "alone", asked[n], n)
        assert same_bits(results[n].parameters, parameters), asked[n].objective
        assert results[n].progress.final_train_loss == progress.final_train_loss
        assert results[n].progress.num_clipped_steps == progress.num_clipped_steps
        mine, theirs = (
            [without_speed(event) for event in events(tmp_path / name / str(n))]
            for name in ("stack", "alone")
        )
        assert mine == theirs


def test_lora_cells_end_where_lora_runs_alone_end(tmp_path):
    # Not in the same bits: base layers and head are one product over all rows, which a library may sum otherwise.
    asked = configs(PLANE[:6], method="lora", lora_rank=4, lora_targets="all-linear")

    def adapted():
        return add_adapters(tiny_model(), asked[0].train, 0)

    results = stack(tmp_path / "stack", asked, adapted())
    for n in (0, 2, 5):
        parameters, _ = alone(tmp_path / "alone", asked[n], n, adapted())
        assert distance(results[n].parameters, parameters, trainable_parameters(adapted())) <= 1e-6


@pytest.mark.parametrize("method", ["full", "lora"])
def test_double_precision_agrees_to_ten_digits_after_twenty_steps(tmp_path, method):
    asked = configs(GRID[:8], max_steps=20, epochs=40.0, method=method, lora_rank=4)
    asked = [config for config in asked if config.objective.response_weight]

    def model():
        made = tiny_model(dtype=torch.float64)
        return add_adapters(made, asked[0].train, 0).double() if method == "lora" else made

    results = stack(tmp_path / "stack", asked, model())
    for n in (0, len(asked) - 1):
        parameters, _ = alone(tmp_path / "alone", asked[n], n, model())
        for name, value in parameters.items():
            torch.testing.assert_close(results[n].parameters[name], value.detach(), rtol=0, atol=1e-10)


def test_company_and_order_change_nothing(tmp_path):
    asked = configs(PLANE[:5])
    results = stack(tmp_path / "one", asked)
    turned = stack(tmp_path / "two", asked[::-1])[::-1]
    for one, other in zip(results, turned, strict=True):
        assert same_bits(one.parameters, other.parameters)
    few = stack(tmp_path / "three", asked[:2])
    assert same_bits(few[1].parameters, results[1].parameters)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_cell_that_breaks_leaves_the_others_bitwise_unchanged(tmp_path, method, monkeypatch):
    from train.stacked.step import StackedStepper

    asked = configs(PLANE[:4], method=method, lora_rank=4)

    def model():
        return add_adapters(tiny_model(), asked[0].train, 0) if method == "lora" else tiny_model()

    calm = stack(tmp_path / "calm", asked, model())
    real_step = StackedStepper.step

    def poisoned(self, step, steps):
        if step == 3:
            for view in self.stack.cells[2].values():
                view.data.view(-1)[0] = math.nan
        return real_step(self, step, steps)

    monkeypatch.setattr(StackedStepper, "step", poisoned)
    results = stack(tmp_path / "broken", asked, model())
    assert [result.failure is None for result in results] == [True, True, False, True]
    assert "the loss of step 4 is not finite; rows row-" in str(results[2].failure)
    assert results[2].progress.step == 3
    for n in (0, 1, 3):
        assert same_bits(results[n].parameters, calm[n].parameters)


def test_a_stack_that_is_stopped_goes_on_together_or_one_by_one(tmp_path):
    asked = configs(PLANE[:3])
    whole = stack(tmp_path / "whole", asked)
    for folder in ("together", "apart"):
        with pytest.raises(Interrupted, match="stopped after step 5 of 12"):
            stack(tmp_path / folder, asked, stop_after=5)
    together = stack(tmp_path / "together", asked)
    for n in range(3):
        assert same_bits(together[n].parameters, whole[n].parameters)
        parameters, progress = alone(tmp_path / "apart", asked[n], n)
        assert progress.step == 12
        assert same_bits(parameters, whole[n].parameters)
        assert [event["step"] for event in events(tmp_path / "together" / str(n))] == list(range(1, 13))


def test_learning_rate_and_decay_may_differ_from_cell_to_cell(tmp_path):
    asked = [
        run_config(0.5, 1.0, learning_rate=rate, weight_decay=decay)
        for rate, decay in ((1e-3, 0.0), (3e-3, 0.1))
    ]
    results = stack(tmp_path / "stack", asked)
    for n, config in enumerate(asked):
        assert same_bits(results[n].parameters, alone(tmp_path / "alone", config, n)[0])


def shaped(name, **extra):
    """A small unmodified transformers model of another architecture."""
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    config = getattr(transformers, f"{name}Config")(**sizes | extra)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    model.config.use_cache = False
    return model


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
        ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
        ("GPTNeoX", {}),
    ],
)
def test_other_architectures_agree_to_a_millionth(tmp_path, name, extra, method):
    asked = configs(PLANE[:3], method=method, lora_rank=4, epochs=1.0)

    def model():
        made = shaped(name, **extra)
        return add_adapters(made, asked[0].train, 0) if method == "lora" else made

    start = {key: value.detach().clone() for key, value in trainable_parameters(model()).items()}
    results = stack(tmp_path / "stack", asked, model())
    for n in (0, 2):
        parameters, _ = alone(tmp_path / "alone", asked[n], n, model())
        assert distance(results[n].parameters, parameters, start) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"neftune_alpha": 5.0}, "neftune_alpha"),
        ({"precision": "paper_bf16"}, "paper_bf16"),
    ],
)
def test_what_cannot_be_shared_is_named(changes, reason):
    assert reason in cannot_stack(tiny_model(), configs(PLANE[:2], **changes))


def test_runs_that_differ_elsewhere_or_a_model_with_foreign_layers_train_alone():
    one, other = run_config(0.5, 1.0), run_config(0.25, 1.0, batch_size=4)
    assert "differ in more than weights" in cannot_stack(tiny_model(), [one, other])
    model = tiny_model()
    model.model.norm = torch.nn.PReLU(32)
    assert cannot_stack(model, [one, one]) == "model.norm (PReLU) holds weight"
    lora = run_config(0.5, 1.0, method="lora", lora_targets="q_proj,embed_tokens")
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        adapted = add_adapters(tiny_model(), lora.train, 0)
    assert "embed_tokens" in cannot_stack(adapted, [lora, lora])


@pytest.mark.parametrize("recipe", [{}, {"method": "lora", "lora_rank": 4}])
def test_16_bit_products_of_a_stack_are_as_near_to_a_run_alone_as_another_order_of_rows(tmp_path, recipe):
    asked = configs([(0.5, 1.0), (1.0, 1.0)], precision="bfloat16", learning_rate=1e-3, **recipe)

    def fresh():
        model = tiny_model()
        return model if not recipe else add_adapters(model, asked[0].train, 5)

    start = {name: value.detach().clone() for name, value in trainable_parameters(fresh()).items()}
    together = stack(tmp_path / "stack", asked, fresh())
    for n, config in enumerate(asked):
        own, _ = alone(tmp_path / "alone", config, n, fresh())
        pieces = replace(config, train=replace(config.train, micro_batch_tokens=30))
        other, _ = alone(tmp_path / "pieces", pieces, n, fresh())
        noise = distance(other, own, start)
        assert 0 < noise < 0.1
        assert distance(together[n].parameters, own, start) <= 2 * noise
