"""The loss that training computes against a float64 loop, cross-entropy, and its laws (science.md part 5, T1-T7).

Every loss here comes out of the real loop and its kernel, not out of a formula beside it.
"""

import itertools

import numpy
import pytest
import torch
from tiny import loss_of_first_step, run_config, tiny_model, tiny_split
from torch.nn import functional

from train.batches import collate
from train.loss import nll_sums_by_row, token_nll
from train.objective import role_counts, role_weights, step_scale, with_target_roles
from train.spans import Role

CPU = torch.device("cpu")
NUM_ROWS = 6


def batch_and_logits(dtype: torch.dtype = torch.float32):
    """All rows at once, and what the untrained model says of them."""
    batch = collate(tiny_split(NUM_ROWS), list(range(NUM_ROWS)), CPU)
    return batch, tiny_model(dtype=dtype)(input_ids=batch.ids_BT).logits.detach()


def loss_of(prompt_weight: float, response_weight: float, folder, **recipe) -> float:
    config = run_config(prompt_weight, response_weight, **recipe)
    return loss_of_first_step(config, tiny_split(NUM_ROWS), folder)


def num_targets(prompt_weight: float, response_weight: float, **split) -> int:
    """The denominator of a step over all rows."""
    objective = run_config(prompt_weight, response_weight).objective
    rows, weights = with_target_roles(tiny_split(NUM_ROWS, **split), objective), role_weights(objective)
    counts = role_counts(rows.roles, rows.offsets)
    return step_scale(counts, list(range(NUM_ROWS)), weights, "nonzero_count").num_targets


def float64_loop(prompt_weight: float, response_weight: float, batch, logits) -> float:
    """Equation 3 of arXiv 2507.07817, written out."""
    numerator, count = 0.0, 0
    for row in range(batch.ids_BT.shape[0]):
        for position in range(1, batch.ids_BT.shape[1]):
            role = int(batch.roles_BT[row, position])
            weight = {Role.PROMPT: prompt_weight, Role.RESPONSE: response_weight}.get(Role(role), 0.0)
            if weight == 0:
                continue
            scores = logits[row, position - 1].double()
            numerator += weight * float(scores.logsumexp(0) - scores[batch.ids_BT[row, position]])
            count += 1
    return numerator / count


@pytest.mark.parametrize(
    ("prompt_weight", "response_weight"),
    [pair for pair in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), repeat=2) if any(pair)],
)
def test_all_35_pairs_of_the_paper_equal_the_float64_loop(tmp_path, prompt_weight, response_weight):
    expected = float64_loop(prompt_weight, response_weight, *batch_and_logits())
    assert loss_of(prompt_weight, response_weight, tmp_path) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pair", [(0.25, 0.75), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
def test_gradient_equals_the_float64_model(tmp_path, pair):
    """One SGD step of a huge learning rate shows the gradient to float32's last digits."""
    rate = 1e4
    start, model = tiny_model(), tiny_model()
    config = run_config(
        *pair,
        optimizer="sgd",
        learning_rate=rate,
        weight_decay=0.0,
        schedule="constant",
        micro_batch_tokens=30,
    )
    loss_of_first_step(config, tiny_split(NUM_ROWS), tmp_path, model)
    batch, _ = batch_and_logits()
    exact = tiny_model(dtype=torch.float64)
    scores = exact(input_ids=batch.ids_BT).logits[:, :-1]
    weights_R = torch.from_numpy(numpy.array([0.0, pair[0], pair[1], 0.0, 0.0]))
    weights = weights_R[batch.roles_BT[:, 1:]]
    nll = scores.logsumexp(-1) - scores.gather(-1, batch.ids_BT[:, 1:, None]).squeeze(-1)
    ((weights * nll).sum() / (weights != 0).sum()).backward()
    for before, after, reference in zip(
        start.parameters(), model.parameters(), exact.parameters(), strict=True
    ):
        assert reference.grad is not None
        gradient = (before.detach().double() - after.detach().double()) / rate
        assert ((gradient - reference.grad).norm() / reference.grad.norm()).item() < 1e-5


def test_t1_conventional_tuning_is_the_token_mean_over_responses_and_eos(tmp_path):
    batch, logits = batch_and_logits()
    labels = batch.ids_BT.masked_fill(batch.roles_BT != Role.RESPONSE, -100)
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert loss_of(0.0, 1.0, tmp_path) == pytest.approx(expected.item(), rel=1e-6)
    assert (batch.ids_BT[batch.roles_BT == Role.RESPONSE] == 2).any(), "EOS must be a response target"


def test_t2_continual_pretraining_is_the_token_mean_over_everything_after_bos(tmp_path):
    batch, logits = batch_and_logits()
    labels = batch.ids_BT.masked_fill(batch.roles_BT == Role.NONE, -100)
    expected = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    assert loss_of(1.0, 1.0, tmp_path) == pytest.approx(expected.item(), rel=1e-6)


def test_t4_scaling_both_weights_scales_the_loss(tmp_path):
    small = loss_of(0.1, 0.2, tmp_path / "small")
    assert loss_of(0.5, 1.0, tmp_path / "large") == pytest.approx(5 * small, rel=1e-6)


def test_t5_numerator_is_continuous_at_zero_and_the_denominator_jumps(tmp_path):
    at_zero = loss_of(0.0, 1.0, tmp_path / "zero") * num_targets(0.0, 1.0)
    beside_it = loss_of(1e-9, 1.0, tmp_path / "tiny") * num_targets(1e-9, 1.0)
    assert at_zero == pytest.approx(beside_it, rel=1e-6)
    roles_BT = batch_and_logits()[0].roles_BT[:, 1:]
    responses, prompts = int((roles_BT == Role.RESPONSE).sum()), int((roles_BT == Role.PROMPT).sum())
    assert num_targets(0.0, 1.0) == responses
    assert num_targets(1e-9, 1.0) == responses + prompts


def test_t6_the_first_position_never_counts_with_or_without_bos():
    split = tiny_split(NUM_ROWS, has_bos=False)
    assert num_targets(1.0, 1.0, has_bos=False) == len(split.ids) - NUM_ROWS
    assert num_targets(1.0, 1.0) == len(tiny_split(NUM_ROWS).ids) - NUM_ROWS


def test_template_tokens_weigh_nothing_and_system_tokens_weigh_as_prompt_by_default():
    weights = role_weights(run_config(0.25, 0.75).objective)
    assert weights.tolist() == [0.0, 0.25, 0.75, 0.25, 0.0]


def test_the_measuring_stick_does_not_bend():
    batch, logits = batch_and_logits()
    sums_R, counts_R = nll_sums_by_row(logits, batch.ids_BT, batch.roles_BT).sum(dim=1)
    for role, pair in ((Role.RESPONSE, (0.0, 1.0)), (Role.PROMPT, (1.0, 0.0))):
        expected = float64_loop(*pair, batch, logits)
        assert (sums_R[role] / counts_R[role]).item() == pytest.approx(expected, rel=1e-6)


def test_softmax_is_float32_whatever_the_logits():
    batch, logits = batch_and_logits()
    half = logits.bfloat16()
    nll = token_nll(half[:, :-1], batch.ids_BT[:, 1:])
    exact = half[:, :-1].double()
    expected = exact.logsumexp(-1) - exact.gather(-1, batch.ids_BT[:, 1:, None]).squeeze(-1)
    assert nll.dtype == torch.float32
    assert torch.allclose(nll.double(), expected, rtol=1e-6, atol=1e-6)
