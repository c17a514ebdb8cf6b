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


def nll_sums_by_row(logits_BTV: Tensor, ids_BT: Tensor, roles_BT: Tensor) -> Tensor:
    """The measuring stick that doesn't bend: unweighted nll summed by row and the target's role, and target counts.

    Shapes   logits (B, T, V), of which the last position may be left out; ids, roles (B, T); result (2, B, R) float64.
    Units    nats; tokens.
    """
    num_rows, length = ids_BT.shape
    nll_BT = token_nll(logits_BTV[:, : length - 1], ids_BT[:, 1:])
    rows_B = torch.arange(num_rows, device=ids_BT.device)
    places = (roles_BT[:, 1:].long() + len(Role) * rows_B[:, None]).flatten()
    sums = torch.zeros(2, num_rows * len(Role), dtype=torch.float64, device=ids_BT.device)
    sums[0].index_add_(0, places, nll_BT.double().flatten())
    sums[1] = torch.bincount(places, minlength=num_rows * len(Role))
    return sums.view(2, num_rows, len(Role))
