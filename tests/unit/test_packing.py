"""Rows laid end to end: the same losses and gradients as padded, and no row that knows another."""

import pytest
import torch
from tiny import run_config, tiny_model, tiny_split

from train.attention import make_layout, packed_attention
from train.batches import end_to_end_batches, share_by_rank, training_batch, used_lengths
from train.distributed import World
from train.engine import choose_packing, prepared
from train.heads import base_model, choose_path
from train.linear_cross_entropy import EAGER
from train.objective import role_counts, role_weights, step_scale, with_target_roles
from train.step import LossModule

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def model_of(kind: str, **changes):
    """A tiny model of an architecture, exactly as transformers makes it."""
    import transformers as library

    grouped = SIZES | {"num_key_value_heads": 2}
    configs = {
        "llama": lambda: library.LlamaConfig(**grouped, tie_word_embeddings=True, **changes),
        "mistral": lambda: library.MistralConfig(**grouped, head_dim=8, sliding_window=5, **changes),
        "qwen2": lambda: library.Qwen2Config(**grouped, **changes),
        "gemma2": lambda: library.Gemma2Config(
            **grouped,
            head_dim=8,
            sliding_window=5,
            query_pre_attn_scalar=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            **changes,
        ),
        "gpt_neox": lambda: library.GPTNeoXConfig(**SIZES, **changes),
        "granite": lambda: library.GraniteConfig(**grouped, logits_scaling=4.0, **changes),
        "cohere": lambda: library.CohereConfig(**grouped, logit_scale=0.25, **changes),
    }
    torch.manual_seed(0)
    model = library.AutoModelForCausalLM.from_config(configs[kind]()).float().eval()
    model.config.use_cache = False
    return model


KINDS = ["llama", "mistral", "qwen2", "gemma2", "gpt_neox", "granite", "cohere"]


def losses(
    model, rows, *, packing: str, head: str = "auto", split=None, prompt_weight: float = 0.5, **objective
):
    """Each target's nll by row, and the gradient of the whole loss, as the engine computes them."""
    import dataclasses

    config = run_config(prompt_weight, 1.0, packing=packing, head=head)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, **objective))
    split = with_target_roles(split or tiny_split(), config.objective)
    weights = role_weights(config.objective)
    lengths = used_lengths(split, weights)
    rows = sorted(rows, key=lambda row: -lengths[row])
    scale = step_scale(role_counts(split.roles, split.offsets), rows, weights, config.objective.normalisation)
    batch = training_batch(split, rows, lengths, weights, scale, CPU, is_packed=packing == "on")
    model.zero_grad()
    with prepared(model, split, config, CPU, World()) as training:
        loss, nll, _ = training.module(batch, 0)
        loss.backward()
    counts = [
        int((weights[split.roles[split.offsets[row] : split.offsets[row + 1]]] != 0).sum()) for row in rows
    ]
    gradient = torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )
    return dict(zip(rows, nll.split(counts), strict=True)), gradient, loss.detach().item()


def close(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_losses_and_gradients_of_padded_ones(kind):
    model, rows = model_of(kind), [0, 1, 2, 3, 4, 5]
    assert choose_packing(model, run_config(packing="on").train, CPU)[0] == "pack"
    padded, padded_gradient, padded_loss = losses(model, rows, packing="off", head="naive")
    packed, packed_gradient, packed_loss = losses(model, rows, packing="on")
    assert packed_loss == pytest.approx(padded_loss, rel=1e-6)
    for row in rows:
        assert torch.allclose(packed[row], padded[row], atol=2e-5)
    assert close(packed_gradient, padded_gradient) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_without_full_logits_is_taken_and_right(kind):
    model, rows = model_of(kind), [0, 1, 2, 3]
    assert choose_path(model, "auto", CPU).kernel is EAGER, choose_path(model, "auto", CPU).reason
    _, naive, naive_loss = losses(model, rows, packing="off", head="naive")
    _, ours, our_loss = losses(model, rows, packing="off")
    assert our_loss == pytest.approx(naive_loss, rel=1e-6)
    assert close(ours, naive) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox"])
def test_no_document_sees_another(kind):
    """Every token of one row is changed; the losses of the others stay, bit for bit."""
    model, rows, split = model_of(kind), [0, 1, 2, 3, 4, 5], tiny_split()
    before, *_ = losses(model, rows, packing="on")
    changed = tiny_split()
    where = slice(int(split.offsets[2]) + 1, int(split.offsets[3]))
    changed.ids[where] = (changed.ids[where] + 5) % 55 + 3
    after, *_ = losses(model, rows, packing="on", split=changed)
    assert not torch.allclose(before[2], after[2])
    assert all(torch.equal(before[row], after[row]) for row in rows if row != 2)


def test_a_model_that_mixes_neighbouring_rows_is_padded_and_says_why():
    from train.errors import ConfigError

    model = tiny_model()
    layer = model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda hidden: (
        plain(hidden) + 0.1 * hidden.roll(1, dims=1)
    )  # a convolution in disguise
    kind, reason = choose_packing(model, run_config().train, CPU)
    assert (kind, reason) == ("pad", "rows laid end to end come out differently than alone")
    with pytest.raises(ConfigError, match=r"train\.packing=on"):
        choose_packing(model, run_config(packing="on").train, CPU)


def test_a_model_whose_logits_are_made_otherwise_falls_back_to_the_plain_loss():
    model = tiny_model()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: plain(hidden) * 1.5
    path = choose_path(model, "auto", CPU)
    assert (path.name, path.reason) == ("naive", "decoder and output layer don't give the model's logits")
    _, ours, loss = losses(model, [0, 1], packing="off")
    _, naive, expected = losses(model, [0, 1], packing="off", head="naive")
    assert loss == expected
    assert torch.equal(ours, naive)


def test_attention_is_the_models_own_again_afterwards():
    model = tiny_model()
    with packed_attention(base_model(model)):
        assert model.config._attn_implementation == "end_to_end"
    assert model.config._attn_implementation == "sdpa"


def test_a_mask_is_refused_where_transformers_would_contaminate_silently():
    model = tiny_model()
    ids = torch.arange(9)[None]
    layout = make_layout([5, 4], CPU)
    with packed_attention(model):
        model.set_attn_implementation("end_to_end")
        positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
        ours = model.model(
            input_ids=ids, position_ids=positions, packed=layout, attention_mask=torch.ones_like(ids)
        ).last_hidden_state
        alone = model.model(input_ids=ids[:, 5:]).last_hidden_state
    assert torch.allclose(ours[0, 5:], alone[0], atol=1e-5)


def test_prompt_only_rows_end_after_their_last_prompt_token():
    """Exact: cutting what follows the last target changes no gradient."""
    model, rows = tiny_model(dtype=torch.float64), [0, 1, 2, 3]
    split = tiny_split()
    config = run_config(1.0, 0.0)
    targets, weights = with_target_roles(split, config.objective), role_weights(config.objective)
    whole = [int(split.offsets[row + 1] - split.offsets[row]) for row in range(len(split))]
    cut = used_lengths(targets, weights)
    assert all(cut[row] == split.prompt_lengths[row] < whole[row] for row in rows)
    scale = step_scale(role_counts(targets.roles, targets.offsets), rows, weights, "nonzero_count")
    module, gradients = LossModule(model, None, choose_path(model, "eager", CPU), config), []
    for lengths in (whole, cut):
        batch = training_batch(targets, rows, lengths, weights, scale, CPU, is_packed=False)
        model.zero_grad()
        module(batch, 0)[0].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert close(*gradients) < 1e-14


def test_activation_checkpointing_changes_no_gradient():
    model, rows = tiny_model(), [0, 1, 2]
    config = run_config(0.5, 1.0, activation_checkpointing=True, packing="on")
    split = with_target_roles(tiny_split(), config.objective)
    weights = role_weights(config.objective)
    lengths = used_lengths(split, weights)
    rows.sort(key=lambda row: -lengths[row])
    scale = step_scale(role_counts(split.roles, split.offsets), rows, weights, "nonzero_count")
    batch = training_batch(split, rows, lengths, weights, scale, CPU, is_packed=True)
    _, expected, _ = losses(model, rows, packing="on")
    model.zero_grad()
    with prepared(model, split, config, CPU, World()) as training:
        training.module.train()
        calls = []
        handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        training.module(batch, 0)[0].backward()
        handle.remove()
    assert len(calls) == 2, "once forwards, once again backwards"
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert close(gradient, expected) < 1e-6
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_buckets_hold_every_token_once_and_little_padding():
    layout = make_layout([9, 8, 8, 3, 3, 3, 1], CPU)
    assert [bucket.tokens for bucket in layout.buckets] == [slice(0, 25), slice(25, 35)]
    assert layout.starts.tolist() == [0, 9, 17, 25, 28, 31, 34, 35]
    for bucket in layout.buckets:
        assert bucket.gather is not None
        assert bucket.gather[bucket.scatter].tolist() == list(range(bucket.tokens.stop - bucket.tokens.start))


def test_micro_batches_end_to_end_and_shares_partition_the_rows():
    lengths = [5, 9, 2, 7, 7, 1, 12]
    parts = list(end_to_end_batches(range(7), lengths, 14))
    assert sorted(row for part in parts for row in part) == list(range(7))
    assert all(len(part) == 1 or sum(lengths[row] for row in part) <= 14 for part in parts)
    shares = share_by_rank(range(7), lengths, 3)
    assert sorted(row for share in shares for row in share) == list(range(7))
    assert max(sum(lengths[row] for row in share) for share in shares) <= 17
    assert share_by_rank([3, 1], lengths, 1) == [[3, 1]]
