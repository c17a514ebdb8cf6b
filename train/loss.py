"""The weighted objective written out plainly over full logits: the reference of every faster path, and the
computation behind unweighted evaluation and models that can't be split. Pure tensors.

Letters: B rows, T positions, V vocabulary, R roles (train.spans.Role).
"""

import torch
from torch import Tensor
from torch.nn import functional

from train.config import ObjectiveConfig
from train.objective import role_weights
from train.spans import Role


def weight_by_role(objective: ObjectiveConfig) -> Tensor:
    """`train.objective.role_weights` as a tensor (R,), float32."""
    return torch.from_numpy(role_weights(objective)).float()


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target.

    Shapes   logits (..., V); targets (...); result (...), float32.
    Units    nats per token.
    Exact    log-softmax in float32 whatever the type of the logits.
    """
    flat = functional.cross_entropy(logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), reduction="none")
    return flat.view(targets_BT.shape)


def num_active_targets(roles_BT: Tensor, weights_R: Tensor) -> int:
    """How many targets count: positions from 1 on whose weight isn't 0.

    Shapes   roles (B, T) of whole rows, the first position included; result a count.
    Note     The denominator of one optimiser step: call it with every row of the step, of all micro-batches
             and all ranks, before the first backward.
    """
    return int((weights_R[roles_BT[:, 1:].long()] != 0).sum())


def weighted_nll_sum(logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor, weights_R: Tensor) -> Tensor:
    """The numerator of the WIT loss: the sum of w * nll over the active targets of some rows.

        loss = sum_t w(t) * nll(t) / sum_t [w(t) != 0]

    The weight belongs to the *target* token, so logits at position t-1 meet id, role and weight at t. The
    first position (BOS) is never a target. Divide by `num_active_targets` of the whole optimiser step.

    Shapes   logits (B, T, V); ids, roles (B, T); weights (R,); result ().
    Units    nats.
    Exact    1e-6 relative to a float64 loop (tests/unit/test_loss.py).
    Source   WIT, arXiv 2507.07817, equation 3.
    Differs  The paper's formula normalises over the data set; its code, and we, over one optimiser step.
    Note     The denominator counts tokens and does not sum weights: it jumps as a weight leaves 0.
    """
    nll_N, roles_N = active_nll(logits_BTV, ids_BT, roles_BT, weights_R)
    return (weights_R[roles_N] * nll_N).sum()


def active_nll(
    logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor, weights_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Unweighted nll and role of each active target; a target of zero weight never reaches the softmax.

    Shapes   as `weighted_nll_sum`; results (N,) float32 and (N,) int64, N active targets in reading order.
    Units    nats per token.
    """
    roles = roles_BT[:, 1:].long()
    active_BT = weights_R[roles] != 0
    return token_nll(logits_BTV[:, :-1][active_BT], ids_BT[:, 1:][active_BT]), roles[active_BT]


def nll_sums_by_role(logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The measuring stick that doesn't bend: unweighted nll summed by the target's role, and target counts.

    Shapes   logits (B, T, V); ids, roles (B, T); results (R,) float64 and (R,) int64.
    Units    nats; tokens.
    """
    roles = roles_BT[:, 1:].long().flatten()
    nll = token_nll(logits_BTV[:, :-1], ids_BT[:, 1:]).double().flatten()
    sums_R = torch.zeros(len(Role), dtype=torch.float64, device=nll.device).index_add_(0, roles, nll)
    return sums_R, torch.bincount(roles, minlength=len(Role))
