"""One sum, many papers: coefficients by hand, the literature as settings, weights that would do nothing."""

import numpy
import pytest
import torch
from tiny import run_config, tiny_split
from torch.nn import functional

from train.batches import training_batch, training_batches, used_lengths
from train.config import ObjectiveConfig
from train.errors import TemplateError
from train.objective import (
    check_roles,
    last_exchange,
    role_counts,
    role_weights,
    step_scale,
    target_roles,
    with_target_roles,
)
from train.spans import Role
from train.tokens import TokenSplit

N, P, R, S, T = (int(role) for role in (Role.NONE, Role.PROMPT, Role.RESPONSE, Role.SYSTEM, Role.TEMPLATE))
# A chat of two turns with a system message, one turn without BOS, and a prompt-heavy row.
CHATS = [[N, T, S, S, T, P, P, T, R, R, T, P, T, R, R, R, T], [P, P, R], [N, P, P, P, P, P, P, R, R]]


def split_of(rows: list[list[int]]) -> TokenSplit:
    roles = numpy.array([role for row in rows for role in row], dtype=numpy.uint8)
    return TokenSplit(
        ids=numpy.arange(3, 3 + len(roles), dtype=numpy.int32) % 60,
        roles=roles,
        offsets=numpy.cumsum([0, *map(len, rows)]),
        role_bytes=numpy.ones((len(rows), 5), numpy.int64),
        prompt_lengths=numpy.ones(len(rows), numpy.int32),
        row_ids=tuple(map(str, range(len(rows)))),
        checks=(None,) * len(rows),
    )


def objective(prompt: float, response: float, **others) -> ObjectiveConfig:
    return ObjectiveConfig(prompt_weight=prompt, response_weight=response, **others)


def coefficients(asked: ObjectiveConfig, rows: list[list[int]] = CHATS) -> list[list[float]]:
    """Row by row and position by position, as a step of all rows computes them."""
    split, weights = with_target_roles(split_of(rows), asked), role_weights(asked)
    scale = step_scale(
        role_counts(split.roles, split.offsets), range(len(rows)), weights, asked.normalisation
    )
    table = []
    for index, row in enumerate(rows):
        roles = split.roles[split.offsets[index] : split.offsets[index + 1]]
        table.append((weights[roles] * scale.nll_by_row[index]).tolist())
        assert len(table[-1]) == len(row)
    return table


def test_conventional_tuning_continual_pretraining_and_prompt_only_are_token_means():
    for asked, counted in (
        (objective(0, 1), {R}),
        (objective(1, 1, template_weight=1), {P, R, S, T}),
        (objective(1, 0, system_weight=0), {P}),
        (objective(1, 1), {P, R, S}),
    ):
        active = [[role in counted and position > 0 for position, role in enumerate(row)] for row in CHATS]
        share = 1 / sum(map(sum, active))
        assert coefficients(asked) == [[share if is_active else 0 for is_active in row] for row in active]


def test_wit_counts_tokens_of_non_zero_weight():
    table = coefficients(objective(0.25, 0.5))
    num = sum(role in (P, R, S) and position > 0 for row in CHATS for position, role in enumerate(row))
    assert table[2] == pytest.approx([0, *[0.25 / num] * 6, 0.5 / num, 0.5 / num])


def test_prompt_loss_weight_divides_by_completions_whatever_the_weights():
    num_responses = sum(row.count(R) for row in CHATS)
    assert coefficients(objective(0.01, 1, normalisation="completion_count"))[2] == pytest.approx(
        [0, *[0.01 / num_responses] * 6, *[1 / num_responses] * 2]
    )
    assert coefficients(objective(1, 0, normalisation="completion_count"))[1] == pytest.approx(
        [0, 1 / num_responses, 0]
    )


def test_weight_sum_is_a_weighted_mean():
    table = coefficients(objective(0.3, 0.7, template_weight=0.1, normalisation="weight_sum"))
    assert sum(map(sum, table)) == pytest.approx(1.0)


def test_instruction_modelling_gives_every_row_the_same_say():
    table = coefficients(objective(1, 1, normalisation="sequence_mean"))
    assert [sum(row) for row in table] == pytest.approx([1 / 3] * 3)
    first_turn_markers = [position for position, role in enumerate(CHATS[0]) if role == T]
    assert all(table[0][position] == 0 for position in first_turn_markers), "every marker, not only the first"


def test_a_row_without_a_target_has_no_say_in_a_sequence_mean():
    rows = [[N, P, P], [N, P, R]]
    assert coefficients(objective(0, 1, normalisation="sequence_mean"), rows) == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "normalisation", ["nonzero_count", "weight_sum", "completion_count", "sequence_mean"]
)
def test_a_step_without_a_target_is_zero_and_never_divides(normalisation):
    assert coefficients(objective(0, 1, normalisation=normalisation), [[N, P, P]]) == [[0, 0, 0]]
    assert coefficients(objective(1, 0, normalisation="completion_count"), [[N, P, P]]) == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (CHATS[0], (10, 17)),
        (CHATS[1], (0, 3)),
        ([N, P, R, P, R, P], (3, 5)),
        ([P, R, T, R], (0, 4)),
        ([P, R, P, R, R, T, S, P], (2, 6)),
        ([N, S, P], (3, 3)),
        ([N, R, P, R], (2, 4)),
    ],
)
def test_the_last_exchange(row, expected):
    assert last_exchange(numpy.array(row, dtype=numpy.uint8)) == expected


def test_the_last_turn_alone_keeps_its_targets():
    roles = target_roles(split_of(CHATS), objective(1, 1, turns="last"))
    assert roles[:17].tolist() == [N] * 10 + CHATS[0][10:]
    assert roles[17:].tolist() == [N, P, R, *CHATS[2]]


def test_a_first_position_is_never_a_target():
    assert target_roles(split_of(CHATS), objective(1, 1))[17] == N


def test_the_reference_cross_entropy_of_transformers_equals_ours():
    """Its own loss with labels of -100 and num_items_in_batch, in two micro-batches, at (0, 1) and (1, 1)."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    generator = torch.Generator().manual_seed(0)
    split = tiny_split()
    for prompt_weight in (0.0, 1.0):
        asked = run_config(prompt_weight, 1.0).objective
        ours = with_target_roles(split, asked)
        weights, rows = role_weights(asked), [0, 1, 2, 3]
        scale = step_scale(role_counts(ours.roles, ours.offsets), rows, weights, "nonzero_count")
        total, known = 0.0, 0.0
        for part in (rows[:1], rows[1:]):
            lengths = numpy.diff(split.offsets).tolist()
            batch = training_batch(ours, part, lengths, weights, scale, torch.device("cpu"), is_packed=False)
            logits = torch.randn(*batch.ids_BT.shape, 61, generator=generator)
            nll = functional.cross_entropy(
                logits.flatten(0, 1)[batch.predictors_N], batch.targets_N, reduction="none"
            )
            total += float((nll * batch.coefficients_N).sum())
            labels = torch.full_like(batch.ids_BT, -100)
            for index, row in enumerate(part):
                kept = torch.from_numpy(
                    weights[split.roles[split.offsets[row] : split.offsets[row + 1]]] != 0
                )
                labels[index, : len(kept)][kept] = batch.ids_BT[index, : len(kept)][kept]
            known += float(
                ForCausalLMLoss(logits, labels, 61, num_items_in_batch=torch.tensor(scale.num_targets))
            )
        assert total == pytest.approx(known, rel=1e-6)


def test_used_lengths_end_at_the_last_target():
    split, weights = with_target_roles(split_of(CHATS), objective(1, 0)), role_weights(objective(1, 0))
    assert used_lengths(split, weights) == [12, 2, 7]
    assert used_lengths(split, role_weights(objective(0, 1))) == [16, 3, 9]
    assert used_lengths(split_of([[N, P, P]]), role_weights(objective(0, 1))) == [0]


def test_a_weight_for_tokens_that_the_template_never_writes_names_both():
    with pytest.raises(
        TemplateError, match=r"template_weight=0.5, but model.template=raw marks no template token"
    ):
        check_roles(tiny_split(), objective(1, 1, template_weight=0.5), "raw")
    check_roles(split_of(CHATS), objective(1, 1, template_weight=0.5), "tulu")


def test_an_explicit_system_weight_is_harmless_without_system_messages():
    check_roles(tiny_split(), objective(1, 1, system_weight=0.5), "raw")


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("normalisation", ["nonzero_count", "sequence_mean"])
def test_batches_for_several_weights_are_those_of_each_and_send_the_rows_once(is_packed, normalisation):
    split, rows, device = with_target_roles(tiny_split(), objective(1, 1)), [2, 0, 3], torch.device("cpu")
    lengths = numpy.diff(split.offsets).tolist()
    rows.sort(key=lambda row: -lengths[row])
    counts = role_counts(split.roles, split.offsets)
    weighings = [
        (weights, step_scale(counts, rows, weights, normalisation))
        for weights in (role_weights(objective(p, r)) for p, r in ((0.2, 1), (0, 1), (1, 0.3), (0, 0)))
    ]
    found = training_batches(split, rows, lengths, weighings, device, is_packed=is_packed)
    assert all(batch.ids_BT is found[0].ids_BT for batch in found)
    assert [len(batch.targets_N) > 0 for batch in found] == [True, True, True, False]
    for batch, (weights, scale) in zip(found, weighings, strict=True):
        own = training_batch(split, rows, lengths, weights, scale, device, is_packed=is_packed)
        for name in ("ids_BT", "predictors_N", "targets_N", "roles_N", "coefficients_N", "kl_coefficients_N"):
            assert torch.equal(getattr(batch, name), getattr(own, name)), name
        roles = numpy.concatenate([split.roles[split.offsets[r] : split.offsets[r + 1]] for r in rows])
        expected = weights[roles[weights[roles] != 0]] * numpy.repeat(
            [scale.nll_by_row[row] for row in rows],
            [int((weights[split.roles[split.offsets[r] : split.offsets[r + 1]]] != 0).sum()) for r in rows],
        )
        assert batch.coefficients_N.tolist() == expected.astype("float32").tolist()
