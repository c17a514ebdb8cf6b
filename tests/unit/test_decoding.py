"""Tokens of our loop are those of transformers' generate, whoever ends when, on any shape of cache."""

import pytest
import torch
from test_stacked import shaped
from tiny import tiny_model

from train.decoding import _Batch, decode
from train.model import trainable_parameters
from train.stacked.evaluating import fill
from train.stacked.stacking import stacked

CPU = torch.device("cpu")
END, PAD = 7, 0
PROMPTS = [[1, *(3 + (7 * i + k) % 50 for k in range(2 + i % 6))] for i in range(12)]


def known(model, prompts, limit):
    """One prompt after another by transformers' generate, to the limit."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        row = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            use_cache=True,
            min_new_tokens=limit,
            max_new_tokens=limit,
            eos_token_id=None,
            pad_token_id=PAD,
        )
        found.append(row[0, len(prompt) :].tolist())
    return found


def until(end, texts):
    return [row[: row.index(end) + 1] if end in row else row for row in texts]


def an_end(texts):
    """The token that cuts the texts to the most different lengths, so that rows end early, late and never."""
    return max(range(61), key=lambda token: len({len(row) for row in until(token, texts)}))


def ours(model, prompts, limit, num_cells=1, end=END):
    return decode(
        model,
        prompts,
        max_new_tokens=limit,
        end_ids=[end],
        pad_id=PAD,
        device=CPU,
        num_cells=num_cells,
    )


def lively(model):
    """Its random weights enlarged: it writes this and that, and some rows end, early and late."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 6
    return model


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "GPTNeoX"])
def test_tokens_are_those_of_generate_and_rows_that_ended_leave(name, monkeypatch):
    extra = {
        "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
        "Gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    }.get(name, {})
    model = lively(tiny_model() if name == "Llama" else shaped(name, **extra))
    free = known(model, PROMPTS, 40)
    end = an_end(free)
    expected = until(end, free)
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 2
    sizes = []
    original = _Batch.logits
    monkeypatch.setattr(_Batch, "logits", lambda self: sizes.append(len(self.rows)) or original(self))
    assert ours(model, PROMPTS, 40, end=end) == expected
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], len(sizes)) == (len(PROMPTS), max(lengths))
    assert sizes[-1] < len(PROMPTS)


def test_a_checkpoints_own_penalty_is_applied():
    model = lively(tiny_model())
    plain = ours(model, PROMPTS, 12)
    model.generation_config.repetition_penalty = 1.3
    penalised = [ours(model, [prompt], 12)[0] for prompt in PROMPTS]
    assert penalised == until(END, known(model, PROMPTS, 12))
    assert penalised != plain


def test_cells_that_end_at_different_tokens_write_what_each_writes_alone():
    model = lively(tiny_model())
    torch.manual_seed(0)
    start = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    cells = [{name: value + 0.2 * torch.randn_like(value) for name, value in start.items()} for _ in range(3)]
    alone = []
    for cell in cells:
        fill(trainable_parameters(model), cell)
        alone += ours(model, PROMPTS, 30)
    with stacked(model, 3, "full") as stack:
        for views, cell in zip(stack.cells, cells, strict=True):
            fill(views, cell)
        together = ours(model, PROMPTS * 3, 30, num_cells=3)
    assert together == alone
    assert len({len(tokens) for tokens in alone}) > 4
