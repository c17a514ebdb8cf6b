"""The objective against a float64 loop, cross-entropy, and the laws it must obey (science.md part 5, T1-T7)."""

import itertools

import pytest
import torch
from tiny import run_config, tiny_model, tiny_split
from torch.nn import functional

from train.batches import collate
from train.loss import nll_sums_by_role, num_active_targets, weight_by_role, weighted_nll_sum
from train.spans import Role

CPU = torch.device("cpu")


def item(value: torch.Tensor) -> float:
    return value.detach().item()


def batch_and_logits(dtype: torch.dtype = torch.float32):
    batch = collate(tiny_split(), list(range(6)), CPU)
    model = tiny_model(dtype=dtype)
    return batch, model(input_ids=batch.ids_BT).logits, model


def loss_of(prompt_weight: float, response_weight: float, batch, logits) -> torch.Tensor:
    weights_R = weight_by_role(run_config(prompt_weight, response_weight).objective)
    return weighted_nll_sum(logits, batch.ids_BT, batch.roles_BT, weights_R) / num_active_targets(
        batch.roles_BT, weights_R
    )


def float64_loop(prompt_weight: float, response_weight: float, batch, logits) -> float:
    """Equation 3 of arXiv 2507.07817, written out."""
    numerator, count = 0.0, 0
    for row in range(batch.ids_BT.shape[0]):
        for position in range(1, batch.ids_BT.shape[1]):
            role = int(batch.roles_BT[row, position])
            weight = {Role.PROMPT: prompt_weight, Role.RESPONSE: response_weight}.get(Role(role), 0.0)
            if weight == 0:
                continue
            scores = logits[row, position - 1].detach().double()
            numerator += weight * float(scores.logsumexp(0) - scores[batch.ids_BT[row, position]])
            count += 1
    return numerator / count


@pytest.mark.parametrize(
    ("prompt_weight", "response_weight"),
    [pair for pair in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), repeat=2) if any(pair)],
)
def test_all_35_pairs_of_the_paper_equal_the_float64_loop(prompt_weight, response_weight):
    batch, logits, _ = batch_and_logits()
    expected = float64_loop(prompt_weight, response_weight, batch, logits)
    assert item(loss_of(prompt_weight, response_weight, batch, logits)) == pytest.approx(expected, rel=1e-6)


def test_gradient_equals_the_float64_model():
    batch, logits, model = batch_and_logits()
    loss_of(0.25, 0.75, batch, logits).backward()
    exact = tiny_model(dtype=torch.float64)
    scores = exact(input_ids=batch.ids_BT).logits[:, :-1]
    weights = weight_by_role(run_config(0.25, 0.75).objective).double()[batch.roles_BT[:, 1:]]
    nll = scores.logsumexp(-1) - scores.gather(-1, batch.ids_BT[:, 1:, None]).squeeze(-1)
    ((weights * nll).sum() / (weights != 0).sum()).backward()
    for ours, reference in zip(model.parameters(), exact.parameters(), strict=True):
        difference = (ours.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert float(difference) < 1e-5


def test_t1_conventional_tuning_is_the_token_mean_over_responses_and_eos():
    batch, logits, _ = batch_and_logits()
    labels = batch.ids_BT.masked_fill(batch.roles_BT != Role.RESPONSE, -100)
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert item(loss_of(0.0, 1.0, batch, logits)) == pytest.approx(item(expected), rel=1e-6)
    assert (batch.ids_BT[batch.roles_BT == Role.RESPONSE] == 2).any(), "EOS must be a response target"


def test_t2_continual_pretraining_is_the_token_mean_over_everything_after_bos():
    batch, logits, _ = batch_and_logits()
    labels = batch.ids_BT.masked_fill(batch.roles_BT == Role.NONE, -100)
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert item(loss_of(1.0, 1.0, batch, logits)) == pytest.approx(item(expected), rel=1e-6)


def test_t4_scaling_both_weights_scales_the_loss():
    batch, logits, _ = batch_and_logits()
    assert item(loss_of(0.5, 1.0, batch, logits)) == pytest.approx(
        5 * item(loss_of(0.1, 0.2, batch, logits)), rel=1e-6
    )


def test_t5_numerator_is_continuous_at_zero_and_the_denominator_jumps():
    batch, logits, _ = batch_and_logits()
    weights_zero = weight_by_role(run_config(0.0, 1.0).objective)
    weights_tiny = weight_by_role(run_config(1e-9, 1.0).objective)
    numerators = [
        item(weighted_nll_sum(logits, batch.ids_BT, batch.roles_BT, weights_R))
        for weights_R in (weights_zero, weights_tiny)
    ]
    assert numerators[0] == pytest.approx(numerators[1], rel=1e-6)
    responses = int((batch.roles_BT[:, 1:] == Role.RESPONSE).sum())
    prompts = int((batch.roles_BT[:, 1:] == Role.PROMPT).sum())
    assert num_active_targets(batch.roles_BT, weights_zero) == responses
    assert num_active_targets(batch.roles_BT, weights_tiny) == responses + prompts


def test_t6_bos_padding_and_the_first_position_never_count():
    without_bos = collate(tiny_split(has_bos=False), [0, 1], CPU)
    weights_R = weight_by_role(run_config(1.0, 1.0).objective)
    real_tokens = int((without_bos.roles_BT != Role.NONE).sum())
    assert num_active_targets(without_bos.roles_BT, weights_R) == real_tokens - 2
    assert weights_R[Role.NONE] == 0


def test_t7_rows_without_a_counted_token_give_zero_and_no_nan():
    batch, logits, model = batch_and_logits()
    roles = torch.full_like(batch.roles_BT, Role.PROMPT)
    weights_R = weight_by_role(run_config(0.0, 1.0).objective)
    numerator = weighted_nll_sum(logits, batch.ids_BT, roles, weights_R)
    numerator.backward()
    assert item(numerator) == 0.0
    assert num_active_targets(roles, weights_R) == 0
    assert all(
        parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        for parameter in model.parameters()
    )


def test_template_tokens_weigh_nothing_and_system_tokens_weigh_as_prompt_by_default():
    weights_R = weight_by_role(run_config(0.25, 0.75).objective)
    assert weights_R.tolist() == [0.0, 0.25, 0.75, 0.25, 0.0]


def test_padding_changes_nothing():
    split, model = tiny_split(), tiny_model()
    weights_R = weight_by_role(run_config(0.5, 1.0).objective)

    def numerator(rows):
        batch = collate(split, rows, CPU)
        return item(
            weighted_nll_sum(model(input_ids=batch.ids_BT).logits, batch.ids_BT, batch.roles_BT, weights_R)
        )

    assert numerator([0, 1, 2]) == pytest.approx(sum(numerator([row]) for row in range(3)), rel=1e-6)


def test_the_measuring_stick_does_not_bend():
    batch, logits, _ = batch_and_logits()
    sums_R, counts_R = nll_sums_by_role(logits, batch.ids_BT, batch.roles_BT)
    assert item(sums_R[Role.RESPONSE] / counts_R[Role.RESPONSE]) == pytest.approx(
        float64_loop(0.0, 1.0, batch, logits), rel=1e-6
    )
    assert item(sums_R[Role.PROMPT] / counts_R[Role.PROMPT]) == pytest.approx(
        float64_loop(1.0, 0.0, batch, logits), rel=1e-6
    )


def test_softmax_is_float32_whatever_the_logits():
    batch, logits, _ = batch_and_logits()
    half = logits.detach().bfloat16()
    expected = float64_loop(1.0, 1.0, batch, half)
    assert item(loss_of(1.0, 1.0, batch, half)) == pytest.approx(expected, rel=1e-6)
