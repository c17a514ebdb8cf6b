"""POSIX: the definition, the released library's transposed one, the wordings, and shared-prefix scoring."""

import json
import random

import numpy as np
import pytest
import torch

from train.errors import ConfigError
from train.sensitivity.posix import prompt_sensitivity
from train.sensitivity.scoring import score_answers, score_answers_one_by_one
from train.sensitivity.variants import KINDS, NEIGHBOURS, TEMPLATES, misspell, variants


def test_the_definition_by_hand():
    scores = np.array([[-2.0, -5.0], [-3.0, -1.0]])
    tokens = np.array([2, 4])
    assert prompt_sensitivity(scores, tokens) == pytest.approx((abs(-3 + 2) / 2 + abs(-5 + 1) / 4) / 2)
    package = prompt_sensitivity(scores, tokens, compat="package", max_new_tokens=10)
    assert package == pytest.approx((abs(-5 + 2) + abs(-3 + 1)) / 10 / 2)


def test_a_model_that_ignores_the_wording_has_none():
    scores = np.tile(np.array([-4.0, -7.0, -1.0]), (3, 1))
    assert prompt_sensitivity(scores, np.array([3, 3, 3])) == 0
    assert prompt_sensitivity(scores, np.array([3, 3, 3]), compat="package", max_new_tokens=3) > 0
    with pytest.raises(ValueError, match="takes two"):
        prompt_sensitivity(np.array([[-1.0]]), np.array([1]))


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_misspelling_touches_so_many_words(count):
    prompt = "What are the  names of some famous actors\nthat started their careers on Broadway?"
    for seed in range(50):
        wrong = misspell(prompt, count, random.Random(seed))
        before, after = prompt.split(), wrong.split()
        assert len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == count
        assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(before, after, strict=True))
        assert "  names" in wrong or "  " in wrong


def test_neighbours_are_neighbours():
    assert set(NEIGHBOURS["g"]) == set("tyfhvb")
    assert all(key in NEIGHBOURS[near] for key, keys in NEIGHBOURS.items() for near in keys)


def test_variants_keep_the_prompt_first_and_repeat_with_their_seed():
    prompt = "Name three rivers of northern Europe that freeze in winter, please."
    paraphrases = [f"{prompt} ({n})" for n in range(20)]
    for kind in KINDS:
        chosen = variants(prompt, kind, seed=0, paraphrases=paraphrases)
        assert chosen[0] == f"Q:{prompt}\nA: "
        assert len(chosen) == 21
        assert len(set(chosen)) == 21
        assert chosen == variants(prompt, kind, seed=0, paraphrases=paraphrases)
    assert len(set(TEMPLATES)) == 20
    mixture = variants(prompt, "mixture", seed=1, num_variants=9, paraphrases=paraphrases)[1:]
    assert sum(text in {f"Q:{p}\nA: " for p in paraphrases} for text in mixture) == 3
    assert sum(text in {t.format(prompt) for t in TEMPLATES} for text in mixture) == 3
    with pytest.raises(ConfigError, match="only 1 paraphrase variants"):
        variants(prompt, "paraphrase", seed=0, paraphrases=["Which rivers freeze?"])
    with pytest.raises(ConfigError, match="one of spelling, template"):
        variants(prompt, "typos", seed=0)


def _checkpoint(shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "stories260k" / "hf"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_shared_wordings_score_as_one_by_one(shared_data):
    model, tokenizer = _checkpoint(shared_data)
    rows = json.loads((shared_data / "prosa_prompt_variants" / "alpaca_eval_v1.json").read_text())
    texts = variants(rows[3]["question"], "spelling", seed=0, num_variants=7)
    wordings = [tokenizer(text)["input_ids"] for text in texts]
    how = {"end_id": tokenizer.eos_token_id, "pad_id": tokenizer.eos_token_id, "device": torch.device("cpu")}
    slow = score_answers_one_by_one(model, wordings, max_new_tokens=9, **how)
    fast = score_answers(model, wordings, max_new_tokens=9, **how)
    assert fast.answers == slow.answers
    np.testing.assert_allclose(fast.log_probability_NN, slow.log_probability_NN, atol=1e-4)
    # An answer that ends early: the token it ends with is taken for the end token.
    end_id = slow.answers[0][2]
    how["end_id"] = end_id
    slow = score_answers_one_by_one(model, wordings, max_new_tokens=9, **how)
    fast = score_answers(model, wordings, max_new_tokens=9, **how)
    assert len({len(answer) for answer in slow.answers}) > 1
    assert fast.answers == slow.answers
    np.testing.assert_allclose(fast.log_probability_NN, slow.log_probability_NN, atol=1e-4)
    one = score_answers(model, wordings, max_new_tokens=1, **how)
    np.testing.assert_allclose(
        one.log_probability_NN,
        score_answers_one_by_one(model, wordings, max_new_tokens=1, **how).log_probability_NN,
        atol=1e-4,
    )
