"""One pass tells likelihoods and the beginnings of answers; the texts are those written token by token."""

from functools import wraps
from typing import Any

import numpy
import pytest
import torch
from test_decoding import END, PROMPTS, an_end, known, lively, until
from test_stacked import shaped
from tiny import VOCABULARY, tiny_model
from transformers.cache_utils import DynamicCache

import train.answers as module_of_answers
from train import reading
from train.answers import answers_of
from train.config import EvalConfig
from train.model import trainable_parameters
from train.reading import Asked, read
from train.spans import Role
from train.stacked.evaluating import fill
from train.stacked.stacking import stacked
from train.states import Cache, num_plain_layers
from train.tokens import TokenSplit, joined

CPU = torch.device("cpu")
SHAPES = {
    "Llama": {},
    "Qwen2": {"num_key_value_heads": 2},
    "GPTNeoX": {},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
}
LIMIT = 20


class Ids:
    eos_token_id, pad_token_id = END, 0


def model_of(name):
    return lively(tiny_model() if name == "Llama" else shaped(name, **SHAPES[name]))


def split_of(prompts, responses):
    """Rows in tokens; the last has no check. Role NONE holds padding, too."""
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    lengths = list(map(len, rows))
    roles = [
        [Role.NONE, *[Role.PROMPT] * (len(prompt) - 1), *[Role.RESPONSE] * len(response)]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return TokenSplit(
        ids=numpy.concatenate(rows).astype(numpy.int32),
        roles=numpy.concatenate(roles).astype(numpy.uint8),
        offsets=numpy.array([0, *numpy.cumsum(lengths)], dtype=numpy.int64),
        role_bytes=numpy.ones((len(rows), len(Role)), dtype=numpy.int64),
        prompt_lengths=numpy.array(list(map(len, prompts)), dtype=numpy.int32),
        row_ids=tuple(f"row-{index}" for index in range(len(rows))),
        checks=(*[{}] * (len(rows) - 1), None),
    )


def responses_to(free, end):
    """Known responses that the model agrees with to the end, to the limit, half the way, not at all; and none."""
    found = []
    for index, (whole, own) in enumerate(zip(free, until(end, free), strict=True)):
        other = [(token + 1) % VOCABULARY for token in own[len(own) // 2 :]]
        kinds = [
            own,
            [*own[: len(own) // 2], *other],
            own[:-1] or own,
            whole,
            [(own[0] + 1) % VOCABULARY],
            [],
        ]
        found.append(kinds[index % len(kinds)])
    return found


def answered(model, split, end, room, **settings):
    config = EvalConfig(max_new_tokens=LIMIT, batch_rows=5, **settings)
    asked = Asked(end, LIMIT)
    reads = read(model, split, CPU, asked=asked, kept_bytes=room)
    sums, begun = reads[0].sums_2IR, sum(len(part.rows) for part in reads[0].begun)
    (answers,) = answers_of(model, split, reads, asked, config, Ids(), CPU)
    return sums, begun, answers


@pytest.mark.parametrize("name", SHAPES)
def test_answers_are_those_of_generate_and_likelihoods_those_of_each_row_alone(name):
    model = model_of(name)
    free = known(model, PROMPTS, 40)
    end = an_end([row[:LIMIT] for row in free])
    split = split_of(PROMPTS, responses_to(free, end))
    expected = until(end, [row[:LIMIT] for row in free])
    for room in (0, 1 << 30):
        sums, begun, answers = answered(model, split, end, room)
        assert sorted(answers) == list(range(len(PROMPTS) - 1))
        for row, (tokens, ended) in answers.items():
            assert (tokens, ended) == (
                (expected[row][:-1], True) if expected[row][-1] == end else (expected[row], False)
            )
        is_kept = room > 0 and num_plain_layers(model) > 0
        assert bool(begun) == is_kept == (room > 0 and name not in ("Mistral", "Gemma2"))
        for row in range(len(split)):
            alone, counts = nll_by_role(model, split.row(row))
            numpy.testing.assert_allclose(sums[0, row, 1:], alone[1:], rtol=0, atol=1e-4)
            assert sums[1, row, 1:].tolist() == counts[1:]


@torch.no_grad()
def nll_by_role(model, row):
    sums, counts = [0.0] * len(Role), [0] * len(Role)
    said = model(input_ids=torch.from_numpy(row.ids.astype(numpy.int64))[None]).logits[0].log_softmax(-1)
    for place in range(1, len(row.ids)):
        sums[row.roles[place]] -= float(said[place - 1, row.ids[place]])
        counts[row.roles[place]] += 1
    return sums, counts


def test_a_response_the_model_agrees_with_is_not_written_again(monkeypatch):
    model = model_of("Llama")
    free = known(model, PROMPTS, LIMIT)
    end = an_end(free)
    split = split_of(PROMPTS, until(end, free))
    reads = read(model, split, CPU, asked=Asked(end, LIMIT), kept_bytes=1 << 30)
    assert not reads[0].begun
    monkeypatch.setattr(type(model), "forward", None)  # no pass more
    (answers,) = answers_of(model, split, reads, Asked(end, LIMIT), EvalConfig(), Ids(), CPU)
    assert [tokens for tokens, _ in answers.values()] == [
        [token for token in row if token != end] for row in until(end, free)[:-1]
    ]


def test_cells_write_together_what_each_writes_alone_and_few_that_are_left_join_the_next(monkeypatch):
    model = model_of("Llama")
    torch.manual_seed(0)
    start = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    cells = [{name: value + 0.2 * torch.randn_like(value) for name, value in start.items()} for _ in range(3)]
    monkeypatch.setitem(reading._PADDED_TOKENS, "cpu", 40)  # passes of few rows
    split = split_of(PROMPTS, [[*row[:2], 3, END] for row in known(model, PROMPTS, 2)])
    alone = []
    for cell in cells:
        fill(trainable_parameters(model), cell)
        alone.append(answered(model, split, END, 1 << 30)[::2])
    assert len({len(tokens) for _, answers in alone for tokens, _ in answers.values()}) > 3
    monkeypatch.setitem(module_of_answers._ROWS_OF_A_PASS, "cpu", 12)
    monkeypatch.setattr(module_of_answers, "_FEW", 1)  # all are few
    left = []
    original = module_of_answers.go_on
    monkeypatch.setattr(
        module_of_answers, "go_on", lambda *given, **named: left.append(original(*given, **named)) or left[-1]
    )
    asked, config = Asked(END, LIMIT), EvalConfig(max_new_tokens=LIMIT, batch_rows=4)
    for room in (1 << 30, 3000, 0):
        with stacked(model, 3, "full") as stack:
            for views, cell in zip(stack.cells, cells, strict=True):
                fill(views, cell)
            reads = read(model, split, CPU, num_cells=3, asked=asked, kept_bytes=room)
            num_begun = sum(len(part.rows) for one in reads for part in one.begun)
            together = answers_of(model, split, reads, asked, config, Ids(), CPU)
        assert together == [answers for _, answers in alone]
        for one, (sums, _) in zip(reads, alone, strict=True):
            numpy.testing.assert_allclose(one.sums_2IR, sums, rtol=0, atol=1e-4)
        if room == 1 << 30:
            most = num_begun
            assert any(part is not None for parts in left for part in parts)
        else:
            assert (0 < num_begun < most) if room else num_begun == 0


def test_a_model_that_keeps_a_cache_of_its_own_reads_again(monkeypatch):
    model = model_of("Llama")
    free = known(model, PROMPTS, LIMIT)
    end = an_end(free)
    split = split_of(PROMPTS, responses_to(free, end))
    known_sums, _, known_answers = answered(model, split, end, 1 << 30)
    original = type(model).forward

    @wraps(original)
    def own(self, *given, past_key_values=None, **named):
        foreign = DynamicCache() if isinstance(past_key_values, Cache) else past_key_values
        return original(self, *given, past_key_values=foreign, **named)

    monkeypatch.setattr(type(model), "forward", own)
    sums, begun, answers = answered(model, split, end, 1 << 30)
    assert not begun
    assert answers == known_answers
    numpy.testing.assert_array_equal(sums, known_sums)


def test_a_checkpoints_own_penalty_is_kept():
    model: Any = model_of("Llama")
    plain = known(model, PROMPTS, LIMIT)
    model.generation_config.repetition_penalty = 1.3
    penalised = known(model, PROMPTS, LIMIT)
    assert penalised != plain
    split = split_of(PROMPTS, [row[:6] for row in plain])
    end = VOCABULARY  # none
    _, _, answers = answered(model, split, end, 1 << 30)
    for row, (tokens, _) in answers.items():
        assert tokens == known(model, PROMPTS[row : row + 1], LIMIT)[0]


def test_rows_of_all_splits_come_one_after_another():
    first, second = (split_of(PROMPTS[part], [[9, END]] * 6) for part in (slice(6), slice(6, 12)))
    both = joined([first, second])
    assert len(both) == 12
    for row in range(12):
        mine, theirs = both.row(row), (first, second)[row // 6].row(row % 6)
        assert mine.ids.tolist() == theirs.ids.tolist()
        assert mine.roles.tolist() == theirs.roles.tolist()
        assert (mine.prompt_length, mine.check) == (theirs.prompt_length, theirs.check)
    assert len(joined([])) == 0
    assert read(tiny_model(), joined([]), CPU)[0].sums_2IR.shape == (2, 0, len(Role))
