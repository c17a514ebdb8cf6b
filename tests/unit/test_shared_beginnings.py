"""Beginnings that many rows share are read once, and change no likelihood."""

import random

import numpy
import pytest
import torch
from tiny import VOCABULARY, tiny_model

from train.benchmarks import likelihoods
from train.benchmarks.likelihoods import Row, beginnings, likelihoods_of

CPU = torch.device("cpu")
SETTINGS = {"context_length": 64, "batch_tokens": 300, "pad_id": 0, "device": CPU}


def row(*ids, widest=1):
    return Row(tuple(ids), (0,), widest)


@pytest.mark.parametrize("worth", [0, 3, 8])
def test_rows_are_shared_once_and_only_where_it_saves(worth):
    chance = random.Random(0)
    for _ in range(150):
        ids = {tuple(chance.choices([1, 2], k=chance.randint(2, 6))) for _ in range(chance.randint(1, 9))}
        parts = beginnings([row(*one, widest=chance.randint(1, 2)) for one in ids], worth)
        assert sorted(one.ids for _, part in parts for one in part) == sorted(ids)
        for length, part in parts:
            assert len({one.ids[:length] for one in part}) == 1
            assert all(length <= one.num_shareable for one in part)
            assert not length or length * (len(part) - 1) > worth


def test_the_examples_of_a_subject_or_the_question_of_an_item_whichever_saves_more():
    def subject(first, items, question):
        return [
            row(*[first] * 20, item, *[item] * question, choice) for item in items for choice in (1, 2, 3)
        ]

    def lengths(rows, worth=0):
        return sorted((length, len(part)) for length, part in beginnings(rows, worth))

    short, long = subject(5, (6, 7, 8), 2), subject(9, (10, 11), 30)
    assert lengths(short + long) == [(20, 9), (51, 3), (51, 3)]
    assert lengths(short + long, worth=200) == [(0, 15)]


def quiz():
    """Two subjects of eight items behind 20 tokens of examples, four choices each of one or three tokens."""
    chance = random.Random(1)
    pairs = []
    for _ in range(2):
        examples = chance.choices(range(3, VOCABULARY), k=20)
        for _ in range(8):
            question = chance.choices(range(3, VOCABULARY), k=chance.randint(2, 8))
            for size in (1, 1, 3, 3):
                pairs.append(([*examples, *question], chance.choices(range(3, VOCABULARY), k=size)))
    return pairs


def test_likelihoods_are_the_same_with_and_without(monkeypatch):
    pairs, model = quiz(), tiny_model()
    passes = []
    original = likelihoods._Reader.read_beginning
    monkeypatch.setattr(
        likelihoods._Reader,
        "read_beginning",
        lambda self, ids: passes.append(len(ids)) or original(self, ids),
    )
    (shared,) = likelihoods_of(model, pairs, **SETTINGS)
    assert passes == [20, 20]
    monkeypatch.setitem(likelihoods._TOKENS_OF_A_PASS, "cpu", 10**9)
    (plain,) = likelihoods_of(model, pairs, **SETTINGS)
    assert len(passes) == 2
    numpy.testing.assert_allclose(
        [one.log_probability for one in shared], [one.log_probability for one in plain], rtol=0, atol=2e-6
    )
    assert [one.is_greedy for one in shared] == [one.is_greedy for one in plain]
    for (context, continuation), one in list(zip(pairs, shared, strict=True))[::7]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0]
        log_p = torch.log_softmax(logits.double(), -1)[len(context) - 1 : -1]
        expected = log_p.gather(1, torch.tensor(continuation)[:, None]).sum()
        assert one.log_probability == pytest.approx(float(expected), abs=1e-5)


def test_a_sliding_window_sees_the_same(monkeypatch):
    import transformers

    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            max_position_embeddings=64,
        )
    ).eval()
    (shared,) = likelihoods_of(model, quiz(), **SETTINGS)
    monkeypatch.setitem(likelihoods._TOKENS_OF_A_PASS, "cpu", 10**9)
    (plain,) = likelihoods_of(model, quiz(), **SETTINGS)
    numpy.testing.assert_allclose(
        [one.log_probability for one in shared], [one.log_probability for one in plain], rtol=0, atol=2e-6
    )
