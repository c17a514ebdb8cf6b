"""Plain per-token losses over full logits: behind unweighted evaluation, and models that can't be split.

Training goes through `train.linear_cross_entropy`, which never holds full logits; `train.objective` says what a
weight means. Pure tensors. Letters: B rows, T positions, V vocabulary, R roles (train.spans.Role).
"""

import torch
from torch import Tensor
from torch.nn import functional

from train.spans import Role


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target.

    Shapes   logits (..., V); targets (...); result (...), float32.
    Units    nats per token.
    Exact    log-softmax in float32 whatever the type of the logits.
    """
    flat = functional.cross_entropy(logits_BTV.flatten(0, -2).float(), targets_BT.flatten(), reduction="none")
    return flat.view(targets_BT.shape)


def nll_sums_by_role(logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The measuring stick that doesn't bend: unweighted nll summed by the target's role, and target counts.

    Shapes   logits (B, T, V); ids, roles (B, T); results (R,) float64 and (R,) int64.
    Units    nats; tokens.
    """
    nll_BT = token_nll(logits_BTV[:, :-1], ids_BT[:, 1:]).double()
    return _sums(nll_BT.flatten(), roles_BT[:, 1:].long().flatten(), len(Role))


def nll_sums_by_role_and_row(
    logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`nll_sums_by_role`, and the same for each row.

    Shapes   logits (B, T, V); ids, roles (B, T); results (R,), (R,), (B, R) float64 and (B, R) int64.
    """
    num_roles, num_rows = len(Role), len(ids_BT)
    roles = roles_BT[:, 1:].long()
    nll = token_nll(logits_BTV[:, :-1], ids_BT[:, 1:]).double().flatten()
    sums_R, counts_R = _sums(nll, roles.flatten(), num_roles)
    places = roles + num_roles * torch.arange(num_rows, device=roles.device)[:, None]
    sums, counts = _sums(nll, places.flatten(), num_rows * num_roles)
    return sums_R, counts_R, sums.view(num_rows, num_roles), counts.view(num_rows, num_roles)


def _sums(values: Tensor, places: Tensor, num_places: int) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(num_places, dtype=torch.float64, device=values.device).index_add_(0, places, values)
    return sums, torch.bincount(places, minlength=num_places)
