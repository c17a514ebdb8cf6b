"""Instruction rows from any source, in one shape, and their splits.

A row that can't be used is counted by its reason and left out: one bad row among 50,000 is no reason to stop,
but a silent loss is no way to go on. A file that can't be read at all is a DataError naming file and line.

The splits depend on nothing but the content of the rows and `split_seed`: each row has a place in a hashed
order, so that reordering the file changes nothing, and rows with the same first prompt stay on one side.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from train.config import DatasetConfig
from train.errors import DataError
from train.row_files import RawRow, read_raw_rows
from train.scores import read_scores
from train.subsets import subset_rows

SPLITS = ("train", "validation", "test", "robustness")
EMBEDDED_TRAIN_ROWS = 512  # of the embedded dataset, where dataset.num_train_rows is null
HELD_OUT_SHARE = 0.1  # validation and test take at most this share of the rows each
PUBLISHED_END = "###eos_token###"  # ends the responses of WIT's published data; we add the EOS

Format: TypeAlias = Literal["pair", "alpaca", "messages", "sharegpt"]

_NUM_ROWS_TO_LOOK_AT = 100  # rows whose keys decide the format
_KEYS_BY_FORMAT: Mapping[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "pair": ("prompt", "response"),
}
_MESSAGE_ROLES = {name: name for name in ("system", "user", "assistant")}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance; `content` holds more than white space and is valid Unicode."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation: an optional system message, then user and assistant in turn, ending with assistant.

    `check` is what a greedy answer is verified against; None where the data carry nothing verifiable.
    """

    row_id: str  # unique within the dataset
    messages: tuple[Message, ...]
    check: Mapping[str, Any] | None = None
    source: str = ""  # the part of a mixture it came from, where the rows say so
    place: int = 0  # among all rows as they were written, unusable ones included
    place_in_source: int = 0  # the same among those of its source


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """The usable rows by split; `num_read` counts all rows of the source, `unusable` maps reason to count."""

    splits: Mapping[str, tuple[Row, ...]]
    num_read: int
    unusable: Mapping[str, int]


def load_rows(config: DatasetConfig) -> LoadedRows:
    """All usable rows of a dataset, split into train, validation, test and robustness.

    Raises   DataError where the source is missing, broken, empty or holds no usable row.
    """
    if config.source == "embedded":
        return _load_embedded(config)
    raw_rows, place = read_raw_rows(config)
    rows, unusable = usable_rows(raw_rows, config.columns, place=place)
    return LoadedRows(split_rows(rows, config, len(raw_rows)), len(raw_rows), unusable)


def embedded_row_dicts(config: DatasetConfig) -> dict[str, list[dict[str, Any]]]:
    """The embedded dataset as its generator makes it, by split."""
    from train.embedded.tasks import make_rows  # only the embedded experiment needs its world

    num_rows: dict[Any, int] = {
        "train": EMBEDDED_TRAIN_ROWS if config.num_train_rows is None else config.num_train_rows,
        "validation": config.num_validation_rows,
        "test": config.num_test_rows,
        "robustness": config.num_robustness_rows,
    }
    return {
        split: make_rows(split, seed=config.split_seed, num_rows=number) for split, number in num_rows.items()
    }


def usable_rows(raw_rows: Sequence[RawRow], columns: str, *, place: str) -> tuple[list[Row], dict[str, int]]:
    """The rows that can be used, and how many can't by reason.

    columns   a row format, or "auto": the format that most of the first rows have the keys of.
    Raises    DataError if no row is usable.
    """
    row_format = _detect_format(raw_rows) if columns == "auto" else cast(Format, columns)
    unusable: Counter[str] = Counter()
    kept: list[tuple[tuple[int, int], RawRow, tuple[Message, ...]]] = []
    of_source: Counter[str] = Counter()
    for number, raw in enumerate(raw_rows):
        source = _source_of(raw)
        places = number, of_source[source]
        of_source[source] += 1
        converted = "unknown_format" if row_format is None else convert(raw, row_format)
        if isinstance(converted, str):
            unusable[converted] += 1
        else:
            kept.append((places, raw, converted))
    if not kept:
        raise _nothing_usable(raw_rows, row_format, unusable, place)
    return _with_ids(kept), dict(sorted(unusable.items()))


def convert(raw: RawRow, row_format: Format) -> tuple[Message, ...] | str:
    """The conversation of one raw row, or the reason why it can't be used.

    Reasons  unknown_format, wrong_type, no_prompt, no_response, empty_prompt, empty_response, bad_role_order,
             invalid_unicode (a lone surrogate, which no tokenizer accepts).
    """
    if not isinstance(raw, Mapping):
        return "wrong_type"
    if not any(raw.get(key) is not None for key in _KEYS_BY_FORMAT[row_format]):
        return "unknown_format"
    turns = _TURNS_BY_FORMAT[row_format](raw)
    return turns if isinstance(turns, str) else _checked(turns)


def split_rows(
    rows: Sequence[Row], config: DatasetConfig, num_raw_rows: int = 0
) -> dict[str, tuple[Row, ...]]:
    """Deterministic splits: a function of the rows' content and `split_seed`, never of their order.

    Rows with the same first prompt form a group. Groups are visited in hashed order; each goes whole to test,
    else to validation, while it fits into min(wanted rows, a tenth of all rows), and else to train.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_first_prompt(row), []).append(row)
    most = int(len(rows) * HELD_OUT_SHARE)
    room = {"test": min(config.num_test_rows, most), "validation": min(config.num_validation_rows, most)}
    chosen: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for prompt in sorted(groups, key=lambda prompt: _place(config.split_seed, prompt)):
        group = groups[prompt]
        split = next((name for name, free in room.items() if len(group) <= free), "train")
        chosen[split].extend(group)
        if split in room:
            room[split] -= len(group)
    ordered = {
        split: tuple(
            sorted(chosen[split], key=lambda row: (_place(config.split_seed, _content(row)), row.row_id))
        )
        for split in SPLITS
    }
    ordered["train"] = _subset(ordered["train"], config, rows, num_raw_rows)
    if config.num_train_rows is not None:
        ordered["train"] = ordered["train"][: config.num_train_rows]
    return ordered


def _load_embedded(config: DatasetConfig) -> LoadedRows:
    row_dicts = embedded_row_dicts(config)
    splits = {
        split: tuple(
            Row(
                row["id"],
                tuple(Message(m["role"], m["content"]) for m in row["messages"]),
                row,
                row["family"],
                place,
            )
            for place, row in enumerate(rows)
        )
        for split, rows in row_dicts.items()
    }
    splits["train"] = _subset(splits["train"], config, splits["train"], len(splits["train"]))
    return LoadedRows(splits, sum(map(len, splits.values())), {})


def _subset(
    train: Sequence[Row], config: DatasetConfig, rows: Sequence[Row], num_raw_rows: int
) -> tuple[Row, ...]:
    """The training rows that dataset.subset keeps. rows: of all splits, as they were read."""
    scores = None
    if config.subset.uses_scores:
        scores = read_scores(config.subset.scores_file, rows, num_raw_rows)
    return subset_rows(train, config.subset, [row.row_id for row in rows], scores)


def _format_of(raw: RawRow) -> Format | None:
    """The first format whose keys are all there; else the first with any of them."""
    if not isinstance(raw, Mapping):
        return None
    for enough in (all, any):
        for row_format, keys in _KEYS_BY_FORMAT.items():
            if enough(key in raw for key in keys):
                return row_format
    return None


def _detect_format(raw_rows: Sequence[RawRow]) -> Format | None:
    found: Counter[Format] = Counter(
        row_format for raw in raw_rows[:_NUM_ROWS_TO_LOOK_AT] if (row_format := _format_of(raw))
    )
    return found.most_common(1)[0][0] if found else None


def _nothing_usable(
    raw_rows: Sequence[RawRow], row_format: Format | None, unusable: Mapping[str, int], place: str
) -> DataError:
    keys = sorted(
        {str(key) for raw in raw_rows[:_NUM_ROWS_TO_LOOK_AT] if isinstance(raw, Mapping) for key in raw}
    )
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(unusable.items()))
    wanted = {name: "/".join(names) for name, names in _KEYS_BY_FORMAT.items()}
    expected = wanted[row_format] if row_format else " or ".join(wanted.values())
    return DataError(
        f"{place}: no row has a response (keys found: {', '.join(keys[:20]) or 'none'}; {reasons})",
        f"keys {expected}",
        "set dataset.columns=... or another dataset.path=...",
    )


def _pair_turns(raw: Mapping[str, Any]) -> list[tuple[Any, Any]] | str:
    response = raw.get("response")
    if isinstance(response, str):
        response = response.removesuffix(PUBLISHED_END)
    return [("user", raw.get("prompt")), ("assistant", response)]


def _alpaca_turns(raw: Mapping[str, Any]) -> list[tuple[Any, Any]] | str:
    instruction, context = raw.get("instruction"), raw.get("input")
    if context is not None and not isinstance(context, str):
        return "wrong_type"
    if context and context.strip() and isinstance(instruction, str):
        instruction = f"{instruction}\n\n{context}" if instruction.strip() else context
    return [("user", instruction), ("assistant", raw.get("output"))]


def _message_turns(raw: Mapping[str, Any]) -> list[tuple[Any, Any]] | str:
    return _list_turns(raw.get("messages"), "role", "content", _MESSAGE_ROLES)


def _sharegpt_turns(raw: Mapping[str, Any]) -> list[tuple[Any, Any]] | str:
    return _list_turns(raw.get("conversations"), "from", "value", _SHAREGPT_ROLES)


def _list_turns(
    turns: Any, role_key: str, text_key: str, roles: Mapping[str, str]
) -> list[tuple[Any, Any]] | str:
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        return "wrong_type"
    if not all(isinstance(turn.get(role_key), str) for turn in turns):
        return "wrong_type"
    if any(turn[role_key] not in roles for turn in turns):
        return "bad_role_order"
    return [(roles[turn[role_key]], turn.get(text_key)) for turn in turns]


_TURNS_BY_FORMAT: Mapping[Format, Callable[[Mapping[str, Any]], list[tuple[Any, Any]] | str]] = {
    "pair": _pair_turns,
    "alpaca": _alpaca_turns,
    "messages": _message_turns,
    "sharegpt": _sharegpt_turns,
}


def _checked(turns: Sequence[tuple[Any, Any]]) -> tuple[Message, ...] | str:
    """The turns as a conversation this project can train on, or the reason why they aren't one."""
    is_system_first = bool(turns) and turns[0][0] == "system"
    system, spoken = (turns[:1], turns[1:]) if is_system_first else ([], turns)
    while spoken and spoken[-1][0] == "user":  # a question without an answer teaches nothing
        spoken = spoken[:-1]
    if not spoken:
        return "no_response"
    if any(role != ("user", "assistant")[index % 2] for index, (role, _) in enumerate(spoken)):
        return "bad_role_order"
    if system and (system[0][1] is None or (isinstance(system[0][1], str) and not system[0][1].strip())):
        system = []  # an empty system message is none
    for role, content in [*system, *spoken]:
        side = "response" if role == "assistant" else "prompt"
        if content is None:
            return f"no_{side}"
        if not isinstance(content, str):
            return "wrong_type"
        if not content.strip():
            return f"empty_{side}"
        if not _is_encodable(content):
            return "invalid_unicode"
    return tuple(Message(role, content) for role, content in [*system, *spoken])


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _given_id(raw: RawRow) -> str | None:
    value = raw.get("id") if isinstance(raw, Mapping) else None
    return (
        str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None
    )


def _source_of(raw: RawRow) -> str:
    named = [raw.get(key) for key in ("dataset", "source")] if isinstance(raw, Mapping) else []
    return next((name for name in named if isinstance(name, str)), "")


def _with_ids(kept: list[tuple[tuple[int, int], RawRow, tuple[Message, ...]]]) -> list[Row]:
    """Rows with unique ids that don't depend on their order: the given id if it is unique, else content."""
    given = Counter(_given_id(raw) for _, raw, _ in kept)
    seen: Counter[str] = Counter()
    rows = []
    for (place, place_in_source), raw, messages in kept:
        row_id = _given_id(raw)
        digest = hashlib.sha256(_content_of(messages)).hexdigest()[:16]
        name = digest if row_id is None else row_id if given[row_id] == 1 else f"{row_id}-{digest}"
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}-{seen[name]}"
        rows.append(Row(unique, messages, None, _source_of(raw), place, place_in_source))
    return rows


def _content_of(messages: tuple[Message, ...]) -> bytes:
    return json.dumps([[message.role, message.content] for message in messages]).encode()


def _content(row: Row) -> str:
    return _content_of(row.messages).decode()


def _first_prompt(row: Row) -> str:
    return next(message.content for message in row.messages if message.role == "user")


def _place(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()
