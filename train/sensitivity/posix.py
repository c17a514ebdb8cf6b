"""The prompt sensitivity index of one set of wordings, from a matrix of log-probabilities. Pure, numpy only.

Source   Chatterjee et al. 2024, POSIX (arXiv:2410.02185), equation 1. Lower is less sensitive. A flatter model
         scores lower by construction, so a low value of a base model is no evidence of useful robustness.
Letters: N wordings of one prompt.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def prompt_sensitivity(
    log_probability_NN: Floats,
    num_tokens_N: NDArray[np.int64],
    *,
    compat: Literal["paper", "package"] = "paper",
    max_new_tokens: int = 0,
) -> float:
    """psi: how far the log-probability of an answer moves when only the wording of its question does.

    log_probability_NN[i, j]   nats, of answer j after wording i; answer j is the greedy one to wording j
    num_tokens_N               of each answer, its end token included, so at least 1
    Unit     nats/token
    paper    1/(N(N-1)) sum_ij |log P(y_j|x_i) - log P(y_j|x_j)| / L_yj
    package  what the released library 0.0.1 computes: 1/(N(N-1)) sum_ij |log P(y_i|x_j) - log P(y_j|x_j)| / T with
             T = max_new_tokens. Its indices are transposed, so that the answer varies under one wording, and it
             divides by the longest length allowed. For comparison with published numbers only.
    """
    count = len(log_probability_NN)
    if count < 2:
        raise ValueError(f"{count} wordings have no sensitivity; it takes two")
    own_N = np.diag(log_probability_NN)
    if compat == "package":
        difference_NN = np.abs(log_probability_NN - own_N[:, None]) / max_new_tokens
    else:
        difference_NN = np.abs(log_probability_NN - own_N[None, :]) / num_tokens_N[None, :]
    return float(difference_NN.sum() / (count * (count - 1)))
