"""log P(answer j | wording i) for all pairs of many prompt sets of few short wordings, all sets at once.

As `train.sensitivity.scoring` does for one set, where a pass over one set costs its start only: wordings of all sets
are read and answered together, and each different answer of a set is scored once after each of its wordings.

Letters: N wordings of all sets, B rows of a pass, T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from train.batches import micro_batches
from train.decoding import Begun, begin, decode, go_on
from train.sensitivity.scoring import AnswerScores
from train.states import Cache, States, joined, num_plain_layers

_PADDED_TOKENS = 1024  # of a pass
_WORDINGS_AT_ONCE = 256  # of whole sets; what is read of them is kept until their answers are scored

Tokens = tuple[int, ...]
Pair = tuple[int, Tokens]  # the number of a wording, and an answer


@dataclass(frozen=True, slots=True)
class _How:
    model: nn.Module
    max_new_tokens: int
    end_id: int
    pad_id: int
    device: torch.device


@torch.no_grad()
def score_answers_of_sets(
    model: nn.Module,
    sets: Sequence[Sequence[Sequence[int]]],
    *,
    max_new_tokens: int,
    end_id: int,
    pad_id: int,
    device: torch.device,
) -> list[AnswerScores]:
    """Of each set what `score_answers_one_by_one` gives; `model` in evaluation mode.

    Raises   TypeError or ValueError where the model takes no mask or keeps no cache.
    """
    how = _How(model, max_new_tokens, end_id, pad_id, device)
    score = _score_from_states if num_plain_layers(model) else _score_read_again
    return [one for part in _parts(sets) for one in score(how, part)]


def _parts(sets: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[Sequence[Sequence[int]]]]:
    part: list[Sequence[Sequence[int]]] = []
    for wordings in sets:
        if part and sum(map(len, part)) + len(wordings) > _WORDINGS_AT_ONCE:
            yield part
            part = []
        part.append(wordings)
    if part:
        yield part


def _score_from_states(how: _How, sets: Sequence[Sequence[Sequence[int]]]) -> list[AnswerScores]:
    """From what is read of each wording its answer is written, and the set's answers are scored."""
    wordings = [wording for own in sets for wording in own]
    order: list[int] = []
    begun: list[Begun] = []
    first: list[Tensor] = []
    for rows in micro_batches(range(len(wordings)), list(map(len, wordings)), _PADDED_TOKENS):
        logits_BV, states = begin(how.model, [wordings[row] for row in rows], how.pad_id, how.device)
        if states is None:
            return _score_read_again(how, sets)
        begun.append(Begun(rows, states))
        first.append(logits_BV.float())
        order += rows
    first_NV = torch.cat(first)
    written = {row: [token] for row, token in zip(order, first_NV.argmax(-1).tolist(), strict=True)}
    choose = _Keeping()
    go_on(how.model, [begun], [written], max_new_tokens=how.max_new_tokens, end_id=how.end_id, choose=choose)
    answers = [tuple(written[row]) for row in range(len(wordings))]
    known = choose.sums([len(answers[row]) - 1 for row in order])
    starts = np.cumsum([0, *(len(one.rows) for one in begun)])[:-1].tolist()
    states = joined([one.states for one in begun], starts, len(order), 0)
    place_of = {row: place for place, row in enumerate(order)}
    pairs = _pairs(sets, answers)
    places_P = torch.tensor([place_of[row] for row, _ in pairs], device=how.device)
    tokens_P = torch.tensor([answer[0] for _, answer in pairs], device=how.device)
    sums_P = first_NV.log_softmax(-1)[places_P, tokens_P].double()
    own = [index for index, (row, answer) in enumerate(pairs) if answer == answers[row]]
    sums_P[own] += known.to(how.device)[places_P[own]]
    lengths = [len(answer) - 1 for _, answer in pairs]
    others = [index for index, (row, answer) in enumerate(pairs) if answer != answers[row] and lengths[index]]
    for some in micro_batches(others, lengths, _PADDED_TOKENS):
        sums_P[some] += _rest(
            how, states.chosen(places_P[some], lengths[some[0]]), [pairs[index][1] for index in some]
        )
    return _by_set(sets, answers, dict(zip(pairs, sums_P.tolist(), strict=True)))


class _Keeping:
    """Chooses greedily and keeps how likely that was."""

    def __init__(self) -> None:
        self._said: list[tuple[list[int], Tensor]] = []

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        best_B, tokens_B = logits_BV.float().max(dim=-1)
        self._said.append((list(rows), best_B - logits_BV.float().logsumexp(-1)))
        return tokens_B

    def sums(self, lengths: Sequence[int]) -> Tensor:
        """log P of the first so many choices of each row, float64."""
        sums_N = torch.zeros(len(lengths), dtype=torch.float64)
        for step, (rows, said_B) in enumerate(self._said):
            places = [place for place, row in enumerate(rows) if step < lengths[row]]
            sums_N[[rows[place] for place in places]] += said_B.cpu().double()[places]
        return sums_N


def _rest(how: _How, states: States, answers: Sequence[Tokens]) -> Tensor:
    """log P of each answer (B,), but for its first token; the longest answer first."""
    ids_BT = _padded_right(answers, how)
    fed_BT, next_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    steps_T = torch.arange(fed_BT.shape[1], device=how.device)
    logits_BTV = how.model(
        input_ids=fed_BT,
        attention_mask=torch.cat([states.is_read_BT, torch.ones_like(fed_BT)], dim=1),
        position_ids=states.is_read_BT.sum(dim=1, keepdim=True) + steps_T,
        past_key_values=Cache(num_plain_layers(how.model), states),
        use_cache=True,
    ).logits.float()
    said_BT = logits_BTV.gather(2, next_BT[..., None])[..., 0] - logits_BTV.logsumexp(-1)
    lengths_B = torch.tensor([len(answer) - 1 for answer in answers], device=how.device)
    return torch.where(steps_T < lengths_B[:, None], said_BT.double(), 0.0).sum(dim=1)


def _score_read_again(how: _How, sets: Sequence[Sequence[Sequence[int]]]) -> list[AnswerScores]:
    """The same where layers keep something else: each pair is read whole."""
    wordings = [wording for own in sets for wording in own]
    answers: list[Tokens] = [()] * len(wordings)
    for rows in micro_batches(range(len(wordings)), list(map(len, wordings)), _PADDED_TOKENS):
        written = decode(
            how.model,
            [wordings[row] for row in rows],
            max_new_tokens=how.max_new_tokens,
            end_ids=[how.end_id],
            pad_id=how.pad_id,
            device=how.device,
            is_penalised=False,
        )
        for row, tokens in zip(rows, written, strict=True):
            answers[row] = tuple(tokens)
    pairs = _pairs(sets, answers)
    texts = [(*wordings[row], *answer) for row, answer in pairs]
    sums_P = torch.zeros(len(pairs), dtype=torch.float64, device=how.device)
    for some in micro_batches(range(len(pairs)), list(map(len, texts)), _PADDED_TOKENS):
        ids_BT = _padded_right([texts[n] for n in some], how)
        logits_BTV = how.model(input_ids=ids_BT[:, :-1], use_cache=False).logits.float()
        said_BT = logits_BTV.gather(2, ids_BT[:, 1:, None])[..., 0] - logits_BTV.logsumexp(-1)
        place_T = torch.arange(1, ids_BT.shape[1], device=how.device)
        ends_B = torch.tensor([len(texts[n]) for n in some], device=how.device)[:, None]
        starts_B = ends_B - torch.tensor([len(pairs[n][1]) for n in some], device=how.device)[:, None]
        is_answer_BT = (place_T >= starts_B) & (place_T < ends_B)
        sums_P[some] = torch.where(is_answer_BT, said_BT.double(), 0.0).sum(dim=1)
    return _by_set(sets, answers, dict(zip(pairs, sums_P.tolist(), strict=True)))


def _padded_right(rows: Sequence[Sequence[int]], how: _How) -> Tensor:
    """(B, T); what follows a row changes nothing of it."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[how.pad_id] * (longest - len(row))] for row in rows], device=how.device)


def _pairs(sets: Sequence[Sequence[Sequence[int]]], answers: Sequence[Tokens]) -> list[Pair]:
    """Each wording with each different answer of its set."""
    numbers = _numbers(sets)
    return [
        (row, answer) for own in numbers for row in own for answer in dict.fromkeys(answers[n] for n in own)
    ]


def _by_set(
    sets: Sequence[Sequence[Sequence[int]]], answers: Sequence[Tokens], scores: dict[Pair, float]
) -> list[AnswerScores]:
    return [
        AnswerScores(
            tuple(answers[row] for row in own),
            np.array([[scores[row, answers[other]] for other in own] for row in own]),
        )
        for own in _numbers(sets)
    ]


def _numbers(sets: Sequence[Sequence[Sequence[int]]]) -> list[range]:
    """Of each set, its wordings' places among all."""
    ends = np.cumsum([0, *map(len, sets)]).tolist()
    return [range(start, end) for start, end in pairwise(ends)]
