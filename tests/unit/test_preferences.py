"""Pairs in any usual shape come out as one; what can't be used is counted by its reason."""

import json

import pytest

from train.config import ModelConfig, PreferenceConfig
from train.embedded.preferences import make_pairs
from train.errors import ConfigError, DataError
from train.preferences import (
    Pair,
    convert_pair,
    encode_pairs,
    load_token_pairs,
    preference_identity,
    split_pairs,
    usable_pairs,
)
from train.rows import Message
from train.tokenizer import load_tokenizer

MODEL = ModelConfig(name="embedded", source="embedded")
WANTED = Pair((Message("user", "hi"),), "good", "bad")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


def said(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "hi", "chosen": "good", "rejected": "bad"},
        {"prompt": [said("user", "hi")], "chosen": "good", "rejected": "bad"},
        {
            "prompt": [said("user", "hi")],
            "chosen": [said("assistant", "good")],
            "rejected": [said("assistant", "bad")],
        },
        {
            "prompt": "hi",
            "prompt_id": "x",
            "chosen": [said("user", "hi"), said("assistant", "good")],
            "rejected": [said("user", "hi"), said("assistant", "bad")],
            "score_chosen": 9.0,
        },
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
    ids=["texts", "messages", "conversational", "ultrafeedback", "sharegpt"],
)
def test_every_shape_is_one_pair(raw):
    assert convert_pair(raw) == WANTED


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("text", "wrong_type"),
        ({"prompt": "hi", "response": "good"}, "unknown_format"),
        ({"prompt": "hi", "chosen": "good"}, "no_rejected"),
        ({"prompt": "hi", "rejected": "good"}, "no_chosen"),
        ({"prompt": "hi", "chosen": None, "rejected": "bad"}, "no_chosen"),
        ({"prompt": "hi", "chosen": "good", "rejected": ""}, "empty_rejected"),
        ({"prompt": "hi", "chosen": " ", "rejected": "bad"}, "empty_chosen"),
        ({"prompt": "hi", "chosen": "same", "rejected": "same "}, "identical_answers"),
        ({"prompt": "", "chosen": "good", "rejected": "bad"}, "empty_prompt"),
        ({"chosen": "good", "rejected": "bad"}, "no_prompt"),
        ({"prompt": "hi", "chosen": 3, "rejected": "bad"}, "wrong_type"),
        ({"prompt": "hi", "chosen": "good\udcff", "rejected": "bad"}, "invalid_unicode"),
        ({"prompt": "hi", "chosen": [said("user", "hi")], "rejected": [said("user", "hi")]}, "no_chosen"),
        (
            {
                "chosen": [said("user", "hi"), said("assistant", "good")],
                "rejected": [said("user", "ho"), said("assistant", "bad")],
            },
            "different_prompts",
        ),
        ({"prompt": [said("assistant", "hi")], "chosen": "good", "rejected": "bad"}, "bad_role_order"),
    ],
)
def test_what_is_no_pair_has_a_reason(raw, reason):
    assert convert_pair(raw) == reason


def test_the_real_demonstration_file(shared_data):
    path = shared_data / "dpo_demo" / "dpo_en_demo.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand")
    pairs, unusable = usable_pairs(json.loads(path.read_text(encoding="utf-8")), place=path.name)
    assert (len(pairs), unusable) == (300, {})
    assert sum(pair.prompt[0].role == "system" for pair in pairs) >= 80
    assert sum(len(pair.prompt) > 2 for pair in pairs) == 106, "conversations of several turns"
    with pytest.raises(DataError, match="unknown_format 300"):
        usable_pairs(json.loads(path.with_name("kto_en_demo.json").read_text(encoding="utf-8")), place="kto")


@pytest.mark.parametrize("template", ["raw", "tulu", "chatml"])
def test_tokens_are_those_of_training(tokenizer, template):
    model = ModelConfig(name="embedded", source="embedded", template=template)
    prompt = (
        Message("user", "name a thing"),
        Message("assistant", "a bell"),
        Message("user", "name another"),
    )
    kept, unusable = encode_pairs(
        [Pair(prompt, "the red drum", "the coin")], model, tokenizer, max_tokens=200
    )
    assert not unusable
    [pair] = kept
    before, chosen, rejected = map(tokenizer.decode, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    assert "a bell" in before
    assert before.rstrip().endswith(
        "another" if template == "raw" else "assistant|>" if template == "tulu" else "assistant"
    )
    assert chosen.replace(tokenizer.eos_token, "").replace("<|im_end|>", "").strip() == "the red drum"
    assert rejected.split()[:1] == ["the"]
    assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == tokenizer.eos_token_id


def test_what_does_not_fit_is_counted(tokenizer):
    long = (Message("user", "name the home of the dog " * 20),)
    turns = (Message("user", "hi"), Message("assistant", "well " * 30), Message("user", "name another"))
    alike = Pair((Message("user", "hi"),), "red " * 40 + "one", "red " * 40 + "two")
    kept, unusable = encode_pairs(
        [Pair(long, "a", "b"), Pair(turns, "a", "b"), alike, WANTED], MODEL, tokenizer, max_tokens=24
    )
    assert len(kept) == 1
    assert unusable == {"prompt_too_long": 2, "identical_when_cut": 1}


def test_too_many_unusable_pairs_fail_before_training(tmp_path, tokenizer):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"p{index}", "chosen": "good", "rejected": "good" if index < 3 else "bad"}
        for index in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {"name": "x", "source": "local", "path": str(path)}
    with pytest.raises(DataError, match=r"3 of 10 pairs can't be used \(identical_answers 3\)"):
        load_token_pairs(PreferenceConfig(**local), MODEL, tokenizer, context_length=None)
    pairs = load_token_pairs(
        PreferenceConfig(**local, max_unusable_share=0.3), MODEL, tokenizer, context_length=None
    )
    assert pairs.counts == {
        "pairs_read": 10,
        "unusable_pairs.identical_answers": 3,
        "train_pairs": 7,
        "validation_pairs": 0,
    }, "a tenth of seven pairs is none"


def test_pairs_of_one_prompt_stay_on_one_side_whatever_the_order():
    pairs = [Pair((Message("user", f"p{index // 2}"),), f"good{index}", "bad") for index in range(60)]
    config = PreferenceConfig(name="x", source="local", path="x", num_validation_pairs=6)
    splits = split_pairs(pairs, config)
    assert len(splits["validation"]) == 6
    assert not {pair.prompt for pair in splits["validation"]} & {pair.prompt for pair in splits["train"]}
    assert split_pairs(pairs[::-1], config) == splits


def test_the_identity_is_the_content(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"prompt": "hi", "chosen": "good", "rejected": "bad"}]))
    config = PreferenceConfig(name="x", source="local", path=str(path))
    first = preference_identity(config, cache_folder=None)
    path.write_text(json.dumps([{"prompt": "hi", "chosen": "bad", "rejected": "good"}]))
    assert preference_identity(config, cache_folder=None) != first
    path.write_text(json.dumps([{"prompt": "hi", "chosen": "bad", "rejected": "bad"}]))
    with pytest.raises(DataError, match="identical_answers 1"):
        preference_identity(config, cache_folder=None)
    with pytest.raises(DataError, match=r"^preference\.path=.* does not exist"):
        preference_identity(
            PreferenceConfig(name="x", source="local", path=str(path / "x")), cache_folder=None
        )
    with pytest.raises(ConfigError, match=r"has no preference\.path"):
        PreferenceConfig(name="x", source="local")
    embedded = preference_identity(PreferenceConfig(), cache_folder=None)
    assert embedded != preference_identity(PreferenceConfig(split_seed=1), cache_folder=None)


def test_the_embedded_corpus_is_made_of_usable_pairs():
    train, validation = (make_pairs(split, seed=0, num_pairs=60) for split in ("train", "validation"))
    assert all(isinstance(convert_pair(pair), Pair) for pair in [*train, *validation])
    assert make_pairs("train", seed=0, num_pairs=10) == train[:10]
    assert {pair["fault"] for pair in train} == {"wrong", "disobedient", "incomplete"}
    last = [{pair["prompt"][-1]["content"] for pair in part} for part in (train, validation)]
    assert not last[0] & last[1]
