"""log P(answer j | wording i) for all pairs of one prompt set, each wording computed once.

The straightforward way runs the model N + N^2 times over wording and answer. Here the wordings are computed once,
padded on the left; the answers are read off that state greedily; and then, from the same state, all N answers are
scored after each wording in one pass: laid end to end, each seeing the wording and itself only (a mask of tree
attention), each numbered from the wording's end. Measured against the straightforward way in tests/bench.

Letters: N wordings, L length of the longest wording, T answer tokens laid end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LOGITS_AT_ONCE = 2**27  # values of float32: half a gigabyte
# Answers laid end to end in one pass: attention among them is wasted, but a pass costs its start.
_TOKENS_AT_ONCE = {"cpu": 90, "cuda": 1024}


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Greedy answers to N wordings and how likely each is after every wording."""

    answers: tuple[tuple[int, ...], ...]  # token ids, the end token included where the model wrote one
    log_probability_NN: NDArray[np.float64]  # [i, j]: nats, of answer j after wording i

    @property
    def num_tokens_N(self) -> NDArray[np.int64]:
        return np.array([len(answer) for answer in self.answers])


@torch.no_grad()
def score_answers(
    model: nn.Module,
    wordings: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    device: torch.device,
) -> AnswerScores:
    """Answers and scores of one prompt set; `model` in evaluation mode.

    Raises   RuntimeError, TypeError or ValueError where the model takes no mask of tree attention or no cache:
             `score_answers_one_by_one` then does the same, slower.
    """
    ids_NL, mask_NL = _pad_left(wordings, pad_id, device)
    lengths_N = mask_NL.sum(dim=1)
    first = model(
        input_ids=ids_NL,
        attention_mask=mask_NL,
        position_ids=(mask_NL.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache, start_NV = first.past_key_values, first.logits[:, -1].float()
    answers = _greedy(model, cache, start_NV, mask_NL, lengths_N, max_new_tokens, end_id)
    num_generated = cache.get_seq_length() - ids_NL.shape[1]
    if num_generated:
        cache.crop(-num_generated)  # back to the wordings alone
    return AnswerScores(
        tuple(map(tuple, answers)),
        _score_all(model, cache, start_NV, mask_NL, lengths_N, answers).cpu().double().numpy(),
    )


@torch.no_grad()
def score_answers_one_by_one(
    model: nn.Module,
    wordings: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    device: torch.device,
) -> AnswerScores:
    """The same by the definition: every answer after every wording, one forward pass each."""
    answers = []
    for wording in wordings:
        ids = list(wording)
        while len(ids) < len(wording) + max_new_tokens and end_id not in ids[len(wording) :]:
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        answers.append(tuple(ids[len(wording) :]))
    scores_NN = np.zeros((len(wordings), len(wordings)))
    for i, wording in enumerate(wordings):
        for j, answer in enumerate(answers):
            ids = torch.tensor([[*wording, *answer]], device=device)
            log_probabilities = model(input_ids=ids, use_cache=False).logits[0, len(wording) - 1 : -1].float()
            chosen = log_probabilities.log_softmax(-1)[range(len(answer)), list(answer)]
            scores_NN[i, j] = float(chosen.double().sum())
    return AnswerScores(tuple(answers), scores_NN)


def _greedy(
    model: nn.Module,
    cache: Any,
    logits_NV: Tensor,
    mask_NL: Tensor,
    lengths_N: Tensor,
    max_new_tokens: int,
    end_id: int,
) -> list[list[int]]:
    """Extends the cache by up to max_new_tokens and returns each row's answer, its end token included."""
    chosen: list[Tensor] = []
    ended_N = torch.zeros(len(mask_NL), dtype=torch.bool, device=mask_NL.device)
    mask = mask_NL
    for step in range(max_new_tokens):
        token_N = logits_NV.argmax(dim=-1)
        chosen.append(token_N)
        ended_N |= token_N == end_id
        if step + 1 == max_new_tokens or bool(ended_N.all()):
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        logits_NV = (
            model(
                input_ids=token_N[:, None],
                attention_mask=mask,
                position_ids=(lengths_N + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: row.index(end_id) + 1] if end_id in row else row for row in rows]


def _score_all(
    model: nn.Module,
    cache: Any,
    start_NV: Tensor,
    mask_NL: Tensor,
    lengths_N: Tensor,
    answers: Sequence[Sequence[int]],
) -> Tensor:
    """log P of every answer after every wording, (N wordings, N answers), nats; the cache as it came."""
    # The first token of every answer is predicted by the wording's own end, which is known already.
    first_tokens = [answer[0] for answer in answers]
    scores_NN = start_NV.log_softmax(-1)[:, first_tokens].double()
    for group in _groups(answers, _TOKENS_AT_ONCE["cuda" if mask_NL.is_cuda else "cpu"]):
        # The last token of an answer predicts nothing and isn't fed.
        fed = [(j, t) for j in group for t in range(len(answers[j]) - 1)]
        if not fed:
            continue
        logits = _logits_after(model, cache, mask_NL, lengths_N, answers, fed)
        cache.crop(-len(fed))
        owner_T = torch.tensor([j for j, _ in fed], device=mask_NL.device)
        next_T = torch.tensor([answers[j][t + 1] for j, t in fed], device=mask_NL.device)
        rows = max(1, _LOGITS_AT_ONCE // (logits.shape[1] * logits.shape[2]))
        for start in range(0, len(logits), rows):
            part = logits[start : start + rows].float()
            picked_NT = part.gather(2, next_T.expand(len(part), -1)[..., None]).squeeze(2) - part.logsumexp(
                -1
            )
            scores_NN[start : start + rows].index_add_(1, owner_T, picked_NT.double())
    return scores_NN


def _logits_after(
    model: nn.Module,
    cache: Any,
    mask_NL: Tensor,
    lengths_N: Tensor,
    answers: Sequence[Sequence[int]],
    fed: Sequence[tuple[int, int]],
) -> Tensor:
    """Logits after each fed (answer, step), in every row; each sees its wording and its own answer so far."""
    device = mask_NL.device
    owner_T, step_T = (torch.tensor(values, device=device) for values in zip(*fed, strict=True))
    ids_T = torch.tensor([answers[j][t] for j, t in fed], device=device)
    own_TT = (owner_T[:, None] == owner_T) & (step_T[:, None] >= step_T)
    seen_NTK = torch.cat(
        [mask_NL.bool()[:, None].expand(-1, len(fed), -1), own_TT.expand(len(mask_NL), -1, -1)], dim=2
    )
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(seen_NTK.shape, dtype=dtype, device=device)
    mask.masked_fill_(~seen_NTK, torch.finfo(dtype).min)
    return model(
        input_ids=ids_T.expand(len(mask_NL), -1),
        attention_mask=mask[:, None],
        position_ids=lengths_N[:, None] + step_T,
        past_key_values=cache,
        use_cache=True,
    ).logits


def _groups(answers: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Answers in order, as many at once as their tokens allow, one at least."""
    groups: list[list[int]] = []
    room = 0
    for j, answer in enumerate(answers):
        if not groups or len(answer) > room:
            groups.append([])
            room = most_tokens
        groups[-1].append(j)
        room -= len(answer)
    return groups


def _pad_left(wordings: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, wordings))
    ids_NL = torch.full((len(wordings), longest), pad_id, dtype=torch.int64)
    mask_NL = torch.zeros_like(ids_NL)
    for row, wording in enumerate(wordings):
        ids_NL[row, longest - len(wording) :] = torch.tensor(list(wording))
        mask_NL[row, longest - len(wording) :] = 1
    return ids_NL.to(device), mask_NL.to(device)
