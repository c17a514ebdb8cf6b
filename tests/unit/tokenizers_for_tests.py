"""Tokenizers of every family, built in a moment and without a download, and the real one where it is there.

They differ where roles are at risk: what happens to spaces at a seam, to offsets, to bytes and to BOS.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

CORPUS = [
    "Where is the cat? The cat is in the garden, and the dog is in the house.",
    "Name the colour of snow. White is the colour of snow; coal is black.",
    "Count from one to ten:\n1 2 3 4 5 6 7 8 9 10\n\n  - item one\n  - item two",
    "How do I start running? Answer in one word. Thank you! (Really) [maybe] \"so\" 'it' <is>",
    "user assistant system prompt response <|user|> <|assistant|> <|system|> / * # @ ~ ^ & % $ = + { } | _ `",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ?!,.;:-",
] * 3
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def shared_data() -> Path:
    """The folder of real data beside the checkout; a test without it is skipped."""
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set SHARED_DATA)")
    return folder


def byte_level() -> Any:
    """As Llama 3: byte-level BPE whose post-processor trims the spaces off the offsets, and adds BOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin|>", "<|end|>", "<|eot|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
    ])  # fmt: skip
    return wrapped(tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>")


def gpt2_like() -> Any:
    """As GPT-2: byte-level BPE, one special token for everything and no BOS of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return wrapped(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def sentence_piece() -> Any:
    """As Llama 2: SentencePiece-style BPE, a space put in front, bytes for unknown characters, and BOS."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    words = [f"\u2581{word}" for text in CORPUS for word in text.split()]
    tokenizer.train_from_iterator(words, trainer)
    plain = _with_plain_bytes(tokenizer)
    plain.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    _put_first(plain, "<s>")
    return wrapped(plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> Any:
    """As BERT: white space is lost, unknown words become [UNK]; [SEP] serves as EOS and [CLS] as BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _put_first(tokenizer, "[CLS]")
    return wrapped(tokenizer, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")


def unigram() -> Any:
    """As T5: Unigram with a Metaspace pre-tokenizer; an EOS of its own and no BOS at all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def stories260k() -> Any:
    """The tokenizer of a real checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(shared_data() / "stories260k" / "hf"))


FAMILIES: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "gpt2_like": gpt2_like,
    "sentence_piece": sentence_piece,
    "word_piece": word_piece,
    "unigram": unigram,
    "stories260k": stories260k,
}
LOSSLESS = (
    "byte_level",
    "gpt2_like",
    "sentence_piece",
    "stories260k",
)  # every text comes back from its tokens


@cache
def tokenizer_of(family: str) -> Any:
    """The tokenizer of a family; built once in a test session."""
    return FAMILIES[family]()


def wrapped(tokenizer: Any, **special_tokens: str) -> Any:
    """The tokenizer as `transformers` wraps it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def _put_first(tokenizer: Any, token: str) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def _with_plain_bytes(tokenizer: Any) -> Any:
    """The byte tokens as ordinary entries: as added special tokens the text "<0x41>" would be read as one."""
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(state))
