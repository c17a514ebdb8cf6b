"""The loop: exact accumulation, exact resume, and the one invariance that merges cells into rays."""

import json
import math

import pytest
import torch
from tiny import run_config, tiny_model, tiny_split

from train.checkpoint import FILE_NAME, FOLDER_NAME
from train.failures import NonFiniteLossError
from train.loop import Hooks, Interrupted, train_model
from train.model import add_adapters
from train.tracking import NullTracker

CPU = torch.device("cpu")


def flat(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def trained(tmp_path, config, *, split=None, stop_after=None, model=None, fingerprint="f" * 32):
    """The trained parameters; with `stop_after`, interrupted after that many steps and left there."""
    model = model if model is not None else tiny_model()
    done: list[int] = []
    hooks = Hooks(
        lambda: stop_after is not None and len(done) >= stop_after,
        lambda step, steps: done.append(step),
        NullTracker(),
    )
    progress = train_model(
        model,
        split or tiny_split(),
        config,
        fingerprint=fingerprint,
        folder=tmp_path,
        device=CPU,
        hooks=hooks,
    )
    return flat(model), progress


def without_speed(event: dict) -> dict:
    """What a step computed, without how long it took."""
    return {
        key: value for key, value in event.items() if key not in ("step_tokens_per_s", "memory_gb", "mfu")
    }


def relative(one: torch.Tensor, other: torch.Tensor, start: torch.Tensor) -> float:
    """Distance between two end points in units of the distance travelled."""
    return float((one - other).norm() / (other - start).norm())


@pytest.mark.parametrize("recipe", [{}, {"dropout": 0.3}, {"optimizer": "sgd", "momentum": 0.9}])
@pytest.mark.parametrize("stop_after", [1, 3, 7])
def test_an_interrupted_run_ends_bitwise_equal(tmp_path, recipe, stop_after):
    config = run_config(0.5, 1.0, **recipe)

    def model():
        built = tiny_model()
        for module in built.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = config.train.dropout
        return built

    undisturbed, progress = trained(tmp_path / "undisturbed", config, model=model())
    with pytest.raises(Interrupted):
        trained(tmp_path / "interrupted", config, stop_after=stop_after, model=model())
    resumed, resumed_progress = trained(tmp_path / "interrupted", config, model=model())
    assert torch.equal(undisturbed, resumed)
    assert (progress.step, progress.final_train_loss) == (
        resumed_progress.step,
        resumed_progress.final_train_loss,
    )
    logs = [
        [
            without_speed(json.loads(line))
            for line in (tmp_path / name / "events.jsonl").read_text().splitlines()
        ]
        for name in ("undisturbed", "interrupted")
    ]
    assert logs[0] == logs[1]
    assert [event["step"] for event in logs[0]] == list(range(1, progress.step + 1))


def test_a_lora_run_resumes_bitwise_equal_and_leaves_the_base_alone(tmp_path):
    config = run_config(1.0, 1.0, method="lora", lora_rank=4, epochs=2.0)

    def adapted():
        return add_adapters(tiny_model(), config.train, 5)

    undisturbed, _ = trained(tmp_path / "a", config, model=adapted())
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", config, stop_after=2, model=adapted())
    resumed, _ = trained(tmp_path / "b", config, model=adapted())
    assert torch.equal(undisturbed, resumed)
    model = adapted()
    trained(tmp_path / "c", config, model=model)
    assert torch.equal(flat(model.unload()), flat(tiny_model()))


def test_a_damaged_or_foreign_checkpoint_starts_over(tmp_path):
    config = run_config()
    expected, _ = trained(tmp_path / "clean", config)
    for name, damage in (("damaged", True), ("foreign", False)):
        with pytest.raises(Interrupted):
            trained(tmp_path / name, config, stop_after=2, fingerprint="e" * 32)
        if damage:
            (tmp_path / name / FOLDER_NAME / FILE_NAME).write_bytes(b"\x00" * 100)
        result, _ = trained(tmp_path / name, config)
        assert torch.equal(expected, result)


@pytest.mark.parametrize("micro_batch_tokens", [1, 30, 64, 100000])
def test_t3_the_result_does_not_depend_on_micro_batching(tmp_path, micro_batch_tokens):
    start = flat(tiny_model())
    config = run_config(0.25, 1.0, optimizer="sgd", learning_rate=0.1)
    expected, _ = trained(tmp_path / "a", config)
    result, _ = trained(
        tmp_path / "b",
        run_config(0.25, 1.0, optimizer="sgd", learning_rate=0.1, micro_batch_tokens=micro_batch_tokens),
    )
    assert relative(result, expected, start) < 1e-5


# T4: (w, w') and c * (w, w') are one experiment under AdamW without clipping, and only there.
PAIRS = [((0.5, 0.5), (1.0, 1.0)), ((0.0, 0.25), (0.0, 1.0)), ((0.25, 0.5), (0.5, 1.0))]


@pytest.mark.parametrize(("scaled", "canonical"), PAIRS)
def test_t4_cells_of_one_ray_are_one_experiment_under_adamw(tmp_path, scaled, canonical):
    start = flat(tiny_model())
    expected, _ = trained(tmp_path / "a", run_config(*canonical))
    result, _ = trained(tmp_path / "b", run_config(*scaled))
    other, _ = trained(tmp_path / "c", run_config(1.0, 0.25))
    assert relative(result, expected, start) < 2e-3
    assert relative(other, expected, start) > 20 * relative(result, expected, start)


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_t4_powers_of_two_are_bitwise_equal_when_epsilon_scales_along(tmp_path, scale):
    expected, _ = trained(tmp_path / "a", run_config(0.5, 1.0, epsilon=1e-8))
    result, _ = trained(tmp_path / "b", run_config(0.5 * scale, 1.0 * scale, epsilon=1e-8 * scale))
    assert torch.equal(expected, result)


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"epsilon": 1e-2},
    ],
)
def test_t4_the_merge_would_be_wrong_for_other_optimisers(tmp_path, recipe):
    start = flat(tiny_model())
    expected, _ = trained(tmp_path / "a", run_config(1.0, 1.0, **recipe))
    result, _ = trained(tmp_path / "b", run_config(0.25, 0.25, **recipe))
    assert relative(result, expected, start) > 0.02


def test_t4_the_merge_would_be_wrong_with_a_partly_active_clip(tmp_path):
    start = flat(tiny_model())
    recipe = {"clip_norm": 0.5}
    expected, _ = trained(tmp_path / "a", run_config(1.0, 1.0, **recipe))
    result, _ = trained(tmp_path / "b", run_config(0.1, 0.1, **recipe))
    unclipped, _ = trained(tmp_path / "c", run_config(0.1, 0.1))
    same, _ = trained(tmp_path / "d", run_config(1.0, 1.0))
    assert relative(result, expected, start) > 5 * relative(unclipped, same, start)


def test_t7_a_step_without_a_counted_token_teaches_nothing_and_is_not_nan(tmp_path):
    split = tiny_split()
    split.roles[split.roles == 2] = 1  # every target a prompt token: with prompt weight 0 nothing counts
    result, progress = trained(tmp_path, run_config(0.0, 1.0), split=split)
    assert torch.equal(result, flat(tiny_model()))
    assert progress.final_train_loss == 0.0


def test_a_non_finite_loss_names_its_step_and_rows(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 1 .* rows row-"):
        trained(tmp_path, run_config(), model=model)


def test_seeds_are_kept_apart(tmp_path):
    def end(**seeds):
        config = run_config(1.0, 1.0)
        values = {"init": 1, "data_order": 2, "dropout": 3} | seeds
        import dataclasses

        config = dataclasses.replace(config, seeds=dataclasses.replace(config.seeds, **values))
        return trained(tmp_path / repr(sorted(values.items())), config)[0]

    assert not torch.equal(end(), end(data_order=9))
    assert torch.equal(end(), end(dropout=9)), "no dropout, so its seed may not matter"
    assert torch.equal(end(), end(init=9)), "nothing is initialised in full fine-tuning"


def test_weight_decay_is_decoupled_and_on_every_parameter(tmp_path):
    split = tiny_split()
    start = tiny_model()
    model = tiny_model()
    config = run_config(
        1.0, 1.0, learning_rate=1e-2, weight_decay=0.5, max_steps=2, warmup_ratio=0.0, epsilon=1e30
    )
    trained(tmp_path, config, split=split, model=model)  # an infinite epsilon leaves the decay alone
    factor = (1 - 1e-2 * 0.5) * (1 - 0.5e-2 * 0.5)  # cosine over two steps: 1, then a half
    for before, after in zip(start.parameters(), model.parameters(), strict=True):
        assert torch.allclose(after, before * factor, rtol=1e-6, atol=1e-9)


def with_objective(config, **changes):
    import dataclasses

    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **changes))


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_t13_the_divergence_holds_the_model_more_the_more_it_weighs(tmp_path):
    """The released regulariser has no gradient at weight 1, and is only a rescale below."""
    last = []
    for kl_weight in (0.1, 1.0, 10.0):
        folder = tmp_path / str(kl_weight)
        end, _ = trained(folder, with_objective(run_config(0.0, 1.0), kl_weight=kl_weight))
        assert not torch.equal(end, flat(tiny_model()))
        divergences = [event["train_divergence"] for event in events(folder)]
        assert divergences[0] == pytest.approx(0.0, abs=1e-6), "nothing has moved before the first step"
        last.append(divergences[-1])
    assert last[0] > 1.2 * last[1] > 1.2 * 1.2 * last[2] > 0


def test_a_divergence_resumes_bitwise_and_is_the_same_by_every_path(tmp_path):
    config = with_objective(run_config(0.25, 1.0), kl_weight=0.5)
    undisturbed, _ = trained(tmp_path / "a", config)
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", config, stop_after=3)
    resumed, _ = trained(tmp_path / "b", config)
    assert torch.equal(undisturbed, resumed), "the reference is the model as loaded, not as restored"
    naive, _ = trained(tmp_path / "c", with_objective(run_config(0.25, 1.0, head="naive"), kl_weight=0.5))
    assert relative(naive, undisturbed, flat(tiny_model())) < 1e-2


def test_a_lora_run_diverges_from_its_own_base(tmp_path):
    def end(name, kl_weight):
        config = with_objective(run_config(1.0, 1.0, method="lora", lora_rank=4), kl_weight=kl_weight)
        model = add_adapters(tiny_model(), config.train, 5)
        trained(tmp_path / name, config, model=model)
        return events(tmp_path / name)

    held = end("held", 5.0)
    assert held[0]["train_divergence"] == pytest.approx(0.0, abs=1e-6)
    assert held[-1]["train_response_nll"] > end("free", 0.0)[-1]["train_response_nll"]


def test_noise_is_the_rows_own_exact_on_resume_and_from_its_own_seed(tmp_path):
    import dataclasses

    config = run_config(0.5, 1.0, neftune_alpha=5.0, packing="on")
    undisturbed, _ = trained(tmp_path / "a", config)
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", config, stop_after=3)
    assert torch.equal(undisturbed, trained(tmp_path / "b", config)[0])
    padded, _ = trained(
        tmp_path / "c", run_config(0.5, 1.0, neftune_alpha=5.0, packing="off", micro_batch_tokens=30)
    )
    plain, _ = trained(tmp_path / "d", run_config(0.5, 1.0, packing="on"))
    start = flat(tiny_model())
    assert relative(padded, undisturbed, start) < 0.05 * relative(plain, undisturbed, start)
    reseeded = dataclasses.replace(config, seeds=dataclasses.replace(config.seeds, noise=9))
    other, _ = trained(tmp_path / "e", reseeded)
    assert not torch.equal(other, undisturbed)


def test_noise_is_uniform_within_the_published_bound():
    from train.noise import row_noise

    noise = row_noise(5.0, 40, 32, 3, CPU)
    bound = 5.0 / math.sqrt(40 * 32)
    assert float(noise.abs().max()) <= bound
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_steps_without_a_counted_token_are_counted_and_the_count_survives_a_resume(tmp_path):
    split = tiny_split()
    split.roles[split.roles == 2] = 1
    with pytest.raises(Interrupted):
        trained(tmp_path, run_config(0.0, 1.0), split=split, stop_after=2)
    _, progress = trained(tmp_path, run_config(0.0, 1.0), split=split)
    assert progress.num_empty_steps == progress.step == 12


@pytest.mark.parametrize(("clip_norm", "clipped"), [(1e-6, 12), (1e6, 0), (None, 0)])
def test_clipped_steps_are_counted_and_the_count_survives_a_resume(tmp_path, clip_norm, clipped):
    config = run_config(0.5, 1.0, clip_norm=clip_norm)
    with pytest.raises(Interrupted):
        trained(tmp_path, config, stop_after=2)
    _, progress = trained(tmp_path, config)
    assert (progress.num_clipped_steps, progress.step) == (clipped, 12)


def test_a_clip_that_binds_for_some_steps_says_for_how_many(tmp_path):
    _, progress = trained(tmp_path, run_config(1.0, 1.0, clip_norm=0.8))
    assert 0 < progress.num_clipped_steps < progress.step


def test_the_log_has_the_unweighted_nll_of_every_role_that_went_through_the_head(tmp_path):
    trained(tmp_path / "a", run_config(0.25, 1.0, max_steps=2))
    trained(tmp_path / "b", run_config(0.0, 1.0, max_steps=2))
    both, response_only = events(tmp_path / "a")[0], events(tmp_path / "b")[0]
    assert {"train_prompt_nll", "train_response_nll"} <= set(both)
    assert "train_prompt_nll" not in response_only
    assert both["train_response_nll"] == pytest.approx(response_only["train_response_nll"], rel=1e-6)


@pytest.mark.parametrize("normalisation", ["weight_sum", "completion_count", "sequence_mean"])
def test_every_normalisation_is_exact_under_micro_batching_and_on_resume(tmp_path, normalisation):
    recipe = {"optimizer": "sgd", "learning_rate": 0.1}
    config = with_objective(run_config(0.25, 1.0, **recipe), normalisation=normalisation)
    undisturbed, _ = trained(tmp_path / "a", config)
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", config, stop_after=3)
    assert torch.equal(trained(tmp_path / "b", config)[0], undisturbed)
    cut = with_objective(run_config(0.25, 1.0, micro_batch_tokens=30, **recipe), normalisation=normalisation)
    assert relative(trained(tmp_path / "c", cut)[0], undisturbed, flat(tiny_model())) < 1e-5
    wit, _ = trained(tmp_path / "d", run_config(0.25, 1.0, **recipe))
    assert relative(wit, undisturbed, flat(tiny_model())) > 1e-3


def test_the_papers_bfloat16_loses_small_updates_says_so_and_ends_in_float32(tmp_path, capsys):
    model = tiny_model()
    start = flat(model).bfloat16().float()
    config = run_config(0.5, 1.0, precision="paper_bf16", learning_rate=2e-5)
    result, progress = trained(tmp_path, config, model=model)
    assert "bfloat16, as published" in capsys.readouterr().out
    assert progress.how["precision"] == "bfloat16 weights and optimiser states"
    assert result.dtype == torch.float32
    assert torch.equal(result, result.bfloat16().float())
    master, _ = trained(tmp_path / "master", run_config(0.5, 1.0, precision="bfloat16", learning_rate=2e-5))
    stayed, master_stayed = (
        (end == before).float().mean() for end, before in ((result, start), (master, flat(tiny_model())))
    )
    assert float(stayed) > 0.5 > float(master_stayed)


def test_the_papers_bfloat16_resumes_bitwise(tmp_path):
    config = run_config(0.5, 1.0, precision="paper_bf16")
    undisturbed, _ = trained(tmp_path / "a", config)
    with pytest.raises(Interrupted):
        trained(tmp_path / "b", config, stop_after=3)
    assert torch.equal(trained(tmp_path / "b", config)[0], undisturbed)


def test_one_rank_warns_and_runs(tmp_path, monkeypatch):
    from train.distributed import world_of

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    warned = pytest.warns(UserWarning, match=r"train\.distributed=fsdp with one rank")
    with warned, world_of("fsdp", CPU) as world:
        assert (world.size, world.kind) == (1, "none")
