"""Pairs of answers from any source, in one shape, in tokens, and their splits.

Formats, told apart by their keys, row by row:
  UltraFeedback   prompt (text), chosen and rejected as whole conversations that differ in the last answer
  pair            prompt (text or messages), chosen and rejected as texts
  ShareGPT        conversations (from/value), chosen and rejected as one {from, value} each

A pair that can't be used is counted by its reason, as rows are; a pair whose two answers are the same says
nothing and is one of them.
"""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import DatasetConfig, ModelConfig, PreferenceConfig
from train.errors import DataError
from train.row_files import RawRow, read_raw_rows
from train.rows import Message, convert

EMBEDDED_TRAIN_PAIRS = 512  # of the embedded corpus, where preference.num_train_pairs is null
HELD_OUT_SHARE = 0.1  # validation takes at most this share of the pairs
SPLITS = ("train", "validation")
_UNCUT = 2**31


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, which ends with a user's message, and two different answers to it."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class TokenPair:
    """In tokens: what comes before both answers, and the two answers with their end token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True)
class TokenPairs:
    """The usable pairs by split. counts: pairs_read, unusable_pairs.<reason>, <split>_pairs."""

    splits: Mapping[str, tuple[TokenPair, ...]]
    counts: Mapping[str, int]


def preference_identity(
    config: PreferenceConfig, *, cache_folder: Path | None, allow_unresolved: bool = False
) -> str:
    """The content of a preference corpus in one string; see `train.identity.dataset_identity`."""
    if config.source == "embedded":
        text = json.dumps(_embedded_pairs(config), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    from train.identity import dataset_identity

    with _in_our_words():
        return dataset_identity(
            _as_dataset(config),
            cache_folder=cache_folder,
            allow_unresolved=allow_unresolved,
            check_rows=usable_pairs,
        )


def load_token_pairs(
    config: PreferenceConfig, model: ModelConfig, tokenizer: Any, *, context_length: int | None
) -> TokenPairs:
    """The corpus in the tokenizer's tokens, written as the model's template writes conversations.

    Raises   DataError where the source is broken, too large a share is unusable, or no pair is left.
    """
    pairs, num_read, unusable = _load_pairs(config)
    max_tokens = min(config.max_tokens, context_length or config.max_tokens)
    splits, lost = dict[str, tuple[TokenPair, ...]](), Counter(unusable)
    for split in SPLITS:
        kept, reasons = encode_pairs(pairs[split], model, tokenizer, max_tokens=max_tokens)
        splits[split] = tuple(kept)
        lost.update(reasons)
    _check_usable(config, splits, num_read, lost)
    counts = {
        "pairs_read": num_read,
        **{f"unusable_pairs.{reason}": lost[reason] for reason in sorted(lost)},
        **{f"{split}_pairs": len(splits[split]) for split in SPLITS},
    }
    return TokenPairs(splits, counts)


def usable_pairs(
    raw_rows: Sequence[RawRow], _columns: str = "auto", *, place: str
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs that can be used, and how many rows can't by reason. DataError if none can."""
    unusable, pairs = Counter[str](), list[Pair]()
    for raw in raw_rows:
        converted = convert_pair(raw)
        if isinstance(converted, str):
            unusable[converted] += 1
        else:
            pairs.append(converted)
    if not pairs:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(unusable.items()))
        raise DataError(
            f"{place}: no row is a pair of two different answers ({reasons})",
            "chosen and rejected beside prompt or conversations",
            "set another preference.path=...",
        )
    return pairs, dict(sorted(unusable.items()))


def convert_pair(raw: RawRow) -> Pair | str:
    """The pair of one raw row, or the reason why it can't be used.

    Reasons  unknown_format, wrong_type, no_chosen, no_rejected, empty_chosen, empty_rejected, no_prompt,
             empty_prompt, different_prompts, identical_answers, bad_role_order, invalid_unicode
    """
    if not isinstance(raw, Mapping):
        return "wrong_type"
    if "chosen" not in raw and "rejected" not in raw:
        return "unknown_format"
    sides: dict[str, tuple[Message, ...]] = {}
    for side in ("chosen", "rejected"):
        if not raw.get(side):
            return f"no_{side}" if raw.get(side) is None or raw.get(side) == [] else f"empty_{side}"
        turns = _turns(raw, raw[side])
        if isinstance(turns, str):
            return turns
        converted = convert({"messages": turns}, "messages")
        if isinstance(converted, str):
            return converted.replace("response", side)
        if len(converted) < len(turns):  # an unanswered question at the end was cut off
            return f"no_{side}"
        sides[side] = converted
    chosen, rejected = sides["chosen"], sides["rejected"]
    if chosen[:-1] != rejected[:-1]:
        return "different_prompts"
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        return "identical_answers"
    return Pair(chosen[:-1], chosen[-1].content, rejected[-1].content)


def encode_pairs(
    pairs: Sequence[Pair], model: ModelConfig, tokenizer: Any, *, max_tokens: int
) -> tuple[list[TokenPair], Counter[str]]:
    """Pairs in tokens, and how many can't be used by reason.

    Each answer is tokenized inside its whole conversation, as in training; where the tokens before the two
    answers differ (a token merged across the seam), what they share is the prompt.
    Reasons  as `Encoder.encode_batch`, and identical_when_cut: equal up to max_tokens
    """
    from train.spans import Encoder

    # Not cut by the encoder, which would take an earlier answer for the last one where that one is cut off.
    encoder = Encoder(tokenizer, template=model.template, add_bos=model.add_bos, max_tokens=_UNCUT)
    chosen = encoder.encode_batch([(*pair.prompt, Message("assistant", pair.chosen)) for pair in pairs])
    rejected = encoder.encode_batch([(*pair.prompt, Message("assistant", pair.rejected)) for pair in pairs])
    kept: list[TokenPair] = []
    unusable: Counter[str] = Counter()
    for first, second in zip(chosen, rejected, strict=True):
        if isinstance(first, str) or isinstance(second, str):
            unusable[first if isinstance(first, str) else str(second)] += 1
            continue
        ids, other = first.ids.tolist()[:max_tokens], second.ids.tolist()[:max_tokens]
        length = _common_length(ids[: first.prompt_length], other[: second.prompt_length])
        if min(len(ids), len(other)) <= length:
            unusable["prompt_too_long"] += 1
            continue
        if ids[length:] == other[length:]:
            unusable["identical_when_cut"] += 1
            continue
        kept.append(TokenPair(ids[:length], ids[length:], other[length:]))
    return kept, unusable


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, two) in enumerate(pairs) if one != two), min(len(first), len(second)))


def _turns(raw: Mapping[str, Any], answer: Any) -> list[dict[str, Any]] | str:
    """One side of a row as messages with role and content, or the reason why it has none."""
    if isinstance(answer, list):  # a whole conversation, or the last messages of one
        turns = [_message(turn) for turn in answer]
        prompt = raw.get("prompt")
        is_whole = any(turn is not None and turn["role"] == "user" for turn in turns)
        before = [] if is_whole else _prompt_turns(prompt)
    else:
        turns = [
            _message(answer) if isinstance(answer, Mapping) else {"role": "assistant", "content": answer}
        ]
        before = _prompt_turns(raw["conversations"] if "conversations" in raw else raw.get("prompt"))
    if before is None or None in turns or None in before:
        return "no_prompt" if before is None else "wrong_type"
    return [turn for turn in [*before, *turns] if turn is not None]


def _prompt_turns(prompt: Any) -> list[dict[str, Any] | None] | None:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [_message(turn) for turn in prompt] if isinstance(prompt, list) and prompt else None


def _message(turn: Any) -> dict[str, Any] | None:
    if not isinstance(turn, Mapping):
        return None
    role = turn.get("role", turn.get("from"))
    names = {"human": "user", "gpt": "assistant"}
    return {"role": names.get(str(role), role), "content": turn.get("content", turn.get("value"))}


def _load_pairs(config: PreferenceConfig) -> tuple[dict[str, list[Pair]], int, dict[str, int]]:
    if config.source == "embedded":
        splits = {
            split: [pair for raw in rows if isinstance(pair := convert_pair(raw), Pair)]
            for split, rows in _embedded_pairs(config).items()
        }
        return splits, sum(map(len, splits.values())), {}
    with _in_our_words():
        raw_rows, place = read_raw_rows(_as_dataset(config))
    pairs, unusable = usable_pairs(raw_rows, place=place)
    return split_pairs(pairs, config), len(raw_rows), unusable


def split_pairs(pairs: Sequence[Pair], config: PreferenceConfig) -> dict[str, list[Pair]]:
    """Train and validation: a function of content and split_seed; pairs of one prompt stay on one side."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(
            json.dumps([[message.role, message.content] for message in pair.prompt]), []
        ).append(pair)
    room = min(config.num_validation_pairs, int(len(pairs) * HELD_OUT_SHARE))
    splits: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for prompt in sorted(
        groups, key=lambda text: hashlib.sha256(f"{config.split_seed}\n{text}".encode()).digest()
    ):
        group = sorted(groups[prompt], key=lambda pair: (pair.chosen, pair.rejected))
        split = "validation" if len(group) <= room else "train"
        splits[split] += group
        room -= len(group) if split == "validation" else 0
    splits["train"] = splits["train"][: config.num_train_pairs]
    return splits


def _embedded_pairs(config: PreferenceConfig) -> dict[str, list[dict[str, Any]]]:
    from train.embedded.preferences import make_pairs  # only the embedded experiment needs its world

    number = EMBEDDED_TRAIN_PAIRS if config.num_train_pairs is None else config.num_train_pairs
    return {
        "train": make_pairs("train", seed=config.split_seed, num_pairs=number),
        "validation": make_pairs("validation", seed=config.split_seed, num_pairs=config.num_validation_pairs),
    }


def _as_dataset(config: PreferenceConfig) -> DatasetConfig:
    return DatasetConfig(
        name=config.name,
        source=config.source,
        path=config.path,
        revision=config.revision,
        hub_split=config.hub_split,
    )


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """The readers of rows speak of dataset.path; here it is preference.path that must be mended."""
    try:
        yield
    except DataError as error:
        parts = (error.problem, error.expected, error.fix)
        raise DataError(*(re.sub(r"\bdataset(?=[.=])", "preference", part) for part in parts)) from error


def _check_usable(
    config: PreferenceConfig, splits: Mapping[str, Sequence[TokenPair]], num_read: int, lost: Counter[str]
) -> None:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(lost.items()))
    if lost.total() > config.max_unusable_share * num_read + 1e-9:
        raise DataError(
            f"preference {config.name}: {lost.total()} of {num_read} pairs can't be used ({reasons})",
            f"at most preference.max_unusable_share={config.max_unusable_share:g} of them",
            "mend the data, raise preference.max_tokens, or raise preference.max_unusable_share",
        )
    if not splits["train"]:
        raise DataError(
            f"preference {config.name}: no pair is left to train on ({reasons or 'all are held out'})",
            "at least one usable pair",
            "lower preference.num_validation_pairs or add pairs",
        )
