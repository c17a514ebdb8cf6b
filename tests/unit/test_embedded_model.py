"""The shipped base model: small, of this generator's text, with a tokenizer that loses nothing."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import train.embedded
from train.embedded.world import GENERATOR_VERSION, make_documents, make_rows

FOLDER = Path(train.embedded.__file__).parent / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_weights_are_small_enough_to_ship() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 4_000_000


def test_provenance_is_of_this_generator() -> None:
    provenance = json.loads((FOLDER / "PROVENANCE.json").read_text(encoding="utf-8"))
    assert provenance["generator_version"] == GENERATOR_VERSION
    assert provenance["held_out_nll_nats_per_token"] < 2


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(index) for index in range(3)] == ["<pad>", "<s>", "</s>"]
    assert tokenizer.encode("the crow").ids == [
        1,
        *tokenizer.encode("the crow", add_special_tokens=False).ids,
    ]
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings["pad_token"], settings["bos_token"], settings["eos_token"]) == ("<pad>", "<s>", "</s>")


@pytest.mark.parametrize(
    "text", ["what colour is the crow?", ' "RED".', "  two  spaces\n", "caf\u00e9 \u4e16\u754c"]
)
def test_tokenizer_loses_nothing(tokenizer: Tokenizer, text: str) -> None:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoding.ids) == text
    if text.isascii():
        assert "".join(text[start:end] for start, end in encoding.offsets) == text


def test_rows_fit_the_training_length(tokenizer: Tokenizer) -> None:
    for row in make_rows("train", seed=0, num_rows=1000):
        text = " ".join(message["content"] for message in row["messages"])
        assert len(tokenizer.encode(text).ids) + 2 * row["num_turns"] <= 128


def test_words_of_the_world_are_few_tokens(tokenizer: Tokenizer) -> None:
    text = " ".join(make_documents(seed=1, num_documents=200))
    assert len(tokenizer.encode(text).ids) < 1.8 * len(text.split())
