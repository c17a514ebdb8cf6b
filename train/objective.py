"""The family of objectives as settings of one sum. Pure arrays: no model, no device.

    loss = sum over the step's targets t of  c(t) nll(t)  +  kl_weight d(t) KL(t)

A weight belongs to a role, a selection of turns takes targets away, and a normalisation turns weights into
the coefficients c. All of it is known from the tokens' roles before the first forward pass, so the
coefficients of a micro-batch don't depend on how the step was cut or on which rank it lies.

What a normalisation does to the meaning of a weight (w, in [0, 1] by custom; n targets of non-zero weight):

    nonzero_count     c = w / n          WIT. A weight is what a token is worth next to a token of weight 1.
                                         The denominator counts, so the loss jumps as a weight leaves 0, and
                                         its scale follows the weights': half the weights, half the loss.
    weight_sum        c = w / sum of w   LLaMA-Factory's. The weighted mean: only ratios of weights exist, for
                                         every optimiser. Near an axis the loss is continuous.
    completion_count  c = w / responses  Prompt loss weight (arXiv 2401.13586). The response term is what it
                                         is without prompts; the prompt's is added to it in proportion to w
                                         and to its length: a long prompt weighs more than under the above.
    sequence_mean     c = w / (n of the  Instruction Modelling's code (batch 1 per device, then the mean). A
                          row * rows)    weight is a share of its own row; a token of a short row counts more.
                                         Changes which examples matter, not only the scale.

The first three differ by a factor per step only; under a scale-free optimiser (sweep.rays) they differ by how
that factor varies from step to step. KL coefficients d never see a weight: they count targets, as c does at
weight 1, and 1 / n under weight_sum.

Letters: T tokens of all rows one after another, N targets of non-zero weight, R roles.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from train.config import ObjectiveConfig
from train.errors import TemplateError
from train.templates import Role
from train.tokens import TokenSplit

Normalisation = Literal["nonzero_count", "weight_sum", "completion_count", "sequence_mean"]


def role_weights(objective: ObjectiveConfig) -> NDArray[np.float64]:
    """The loss weight of a target token by its role.

    Shapes   result (R,); NONE (BOS, padding, first positions) is always 0.
    Source   WIT, arXiv 2507.07817, equation 3, for prompt and response. Template tokens weigh nothing by
             default, as in Instruction Modelling, arXiv 2405.14394, equation 4.
    Differs  The released WIT code gives a chat template's tokens the weight of the column they stand in; the
             released IM code masks only the first marker of a conversation.
    """
    weights_R = np.zeros(len(Role))
    weights_R[Role.PROMPT] = objective.prompt_weight
    weights_R[Role.RESPONSE] = objective.response_weight
    weights_R[Role.TEMPLATE] = objective.template_weight
    system_weight = objective.system_weight
    weights_R[Role.SYSTEM] = objective.prompt_weight if system_weight is None else system_weight
    return weights_R


def target_roles(split: TokenSplit, objective: ObjectiveConfig) -> NDArray[np.uint8]:
    """Each token's role as a target: NONE where no loss may be taken, whatever the weights.

    That is the first position of a row, which nothing predicts, and with `turns=last` everything outside the
    last exchange: its prompt, its response and the template's tokens around them.

    Shapes   result (T,), beside split.ids.
    """
    roles_T = np.array(split.roles, copy=True)
    starts = split.offsets[:-1]
    if objective.turns == "last":
        for start, end in zip(starts.tolist(), split.offsets[1:].tolist(), strict=True):
            first, last = last_exchange(roles_T[start:end])
            roles_T[start : start + first] = Role.NONE
            roles_T[start + last : end] = Role.NONE
    roles_T[starts] = Role.NONE
    return roles_T


def last_exchange(roles: NDArray[np.uint8]) -> tuple[int, int]:
    """Where the last answered exchange of a row begins and ends (exclusive).

    It begins after the response before its prompt, and ends before a further prompt, which a row cut at its
    length may have. A row with one exchange is all of it, system message included.
    """
    responses = np.flatnonzero(roles == Role.RESPONSE)
    if len(responses) == 0:
        return len(roles), len(roles)
    last_response = int(responses[-1])
    prompts = np.flatnonzero(roles[:last_response] == Role.PROMPT)
    earlier = responses[responses < prompts[-1]] if len(prompts) else responses[:0]
    later = np.flatnonzero((roles == Role.PROMPT) | (roles == Role.SYSTEM))
    later = later[later > last_response]
    return (int(earlier[-1]) + 1 if len(earlier) else 0), (int(later[0]) if len(later) else len(roles))


def check_roles(split: TokenSplit, objective: ObjectiveConfig, template: str) -> None:
    """Refuse a weight for tokens that the template never writes, or that no row has.

    A template whose roles can't be told apart has been refused before (train.templates), so no weight is ever
    silently spread over other tokens. What is left is a weight that does nothing, such as a template weight
    under raw: a plane with an axis that isn't one. Every row has response tokens (train.spans). Harmless is
    an explicit system_weight on data without system messages: the template marks them, the next dataset of
    the grid may have them, and the record counts none.

    Raises   TemplateError naming template and role.
    """
    weights_R = role_weights(objective)
    counts = np.bincount(split.roles, minlength=len(Role))
    for role in (Role.TEMPLATE, Role.PROMPT):
        if weights_R[role] and not counts[role]:
            name = role.name.lower()
            raise TemplateError(
                f"objective.{name}_weight={weights_R[role]:g}, but model.template={template} marks no {name} "
                "token in any training row",
                f"a template that writes {name} tokens",
                f"set objective.{name}_weight=0 (the same experiment) or another model.template",
            )


@dataclass(frozen=True, slots=True)
class StepScale:
    """What turns a role's weight into coefficients in one optimiser step: by row, because of sequence_mean.

    nll_by_row, kl_by_row   row number -> factor of w(t), factor of kl_weight
    num_targets             of non-zero weight, in the step
    """

    nll_by_row: dict[int, float]
    kl_by_row: dict[int, float]
    num_targets: int


def step_scale(
    counts_MR: NDArray[np.int64],
    rows: Sequence[int],
    weights_R: NDArray[np.float64],
    normalisation: Normalisation,
) -> StepScale:
    """The factors of an optimiser step from the role counts of *all* its rows, of every rank.

    A step without a counted target has factors and num_targets 0: its loss is zero, and it teaches nothing.

    Shapes   counts (M, R), targets of each of the split's M rows by role.
    Exact    The same floats on every rank, as each computes them from the same counts.
    """
    counts_BR = counts_MR[list(rows)]
    active_B = counts_BR @ (weights_R != 0)
    num_targets = int(active_B.sum())
    zeros = dict.fromkeys(rows, 0.0)
    if num_targets == 0:
        return StepScale(zeros, zeros, 0)
    if normalisation == "sequence_mean":
        num_rows = int((active_B > 0).sum())
        by_row = {
            row: 1.0 / (int(count) * num_rows) if count else 0.0
            for row, count in zip(rows, active_B, strict=True)
        }
        return StepScale(by_row, by_row, num_targets)
    denominator = {
        "nonzero_count": float(num_targets),
        "weight_sum": float(counts_BR.sum(axis=0) @ weights_R),
        "completion_count": float(counts_BR[:, Role.RESPONSE].sum()),
    }[normalisation]
    if denominator == 0:  # prompts to count by completions, and no completion
        return StepScale(zeros, zeros, 0)
    of_kl = num_targets if normalisation == "weight_sum" else denominator
    return StepScale(dict.fromkeys(rows, 1.0 / denominator), dict.fromkeys(rows, 1.0 / of_kl), num_targets)


def role_counts(roles_T: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Targets of each row by role. Shapes: roles (T,), offsets (M + 1,), result (M, R)."""
    num_rows = len(offsets) - 1
    row_of_T = np.repeat(np.arange(num_rows), np.diff(offsets))
    flat = row_of_T * len(Role) + roles_T
    return np.bincount(flat, minlength=num_rows * len(Role)).reshape(num_rows, len(Role))


def with_target_roles(split: TokenSplit, objective: ObjectiveConfig) -> TokenSplit:
    """The split with its roles as targets; ids and offsets are shared."""
    return dataclasses.replace(split, roles=target_roles(split, objective))
