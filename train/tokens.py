"""A dataset in tokens, made once and shared by every run of a sweep.

What is stored is roles, not weights: the two weights of a run turn roles into numbers when a batch is made,
so that a grid of a thousand pairs tokenizes once. The cache is content-addressed by our own key; the
fingerprints of the `datasets` library change with everything a closure happens to hold.

Shapes: T tokens of all rows one after another, M rows, R = 5 roles.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.config import DatasetConfig, ModelConfig, config_to_dict
from train.errors import DataError
from train.files import read_json, write_json_atomic
from train.rows import SPLITS, LoadedRows, Row, load_rows
from train.spans import NUM_ROLES, Encoded, Encoder
from train.templates import Role

# Raise it when a change of code alters tokens or roles that the key can't show.
TOKENS_VERSION = 1
_ARRAYS = ("ids", "roles", "offsets", "role_bytes", "prompt_lengths")
# Fields of DatasetConfig that the dataset's identity replaces, or that don't change the tokens.
_NOT_IN_KEY = ("name", "source", "path", "revision", "max_tokens", "max_unusable_share")


@dataclass(frozen=True, slots=True, eq=False)
class TokenRow:
    """One row of a split; the arrays are views.

    Shapes   ids (N,) int32; roles (N,) uint8; role_bytes (R,) int64.
    """

    row_id: str
    ids: NDArray[np.int32]
    roles: NDArray[np.uint8]
    role_bytes: NDArray[np.int64]
    prompt_length: int
    check: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class TokenSplit:
    """The rows of one split, flat.

    Shapes   ids (T,) int32; roles (T,) uint8; offsets (M + 1,) int64, row i is [offsets[i], offsets[i + 1]);
             role_bytes (M, R) int64; prompt_lengths (M,) int32.
    Units    role_bytes in UTF-8 bytes, see `train.spans.Encoded`.
    """

    ids: NDArray[np.int32]
    roles: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    role_bytes: NDArray[np.int64]
    prompt_lengths: NDArray[np.int32]
    row_ids: tuple[str, ...]
    checks: tuple[Mapping[str, Any] | None, ...]

    def __len__(self) -> int:
        return len(self.row_ids)

    def row(self, index: int) -> TokenRow:
        """Row `index`, 0 <= index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        where = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return TokenRow(
            self.row_ids[index],
            self.ids[where],
            self.roles[where],
            self.role_bytes[index],
            int(self.prompt_lengths[index]),
            self.checks[index],
        )


def joined(splits: Sequence[TokenSplit]) -> TokenSplit:
    """The rows of all splits, one after another."""

    def flat(name: str, empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([empty, *(getattr(split, name) for split in splits)])

    lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(split.offsets) for split in splits)])
    return TokenSplit(
        ids=flat("ids", np.zeros(0, np.int32)),
        roles=flat("roles", np.zeros(0, np.uint8)),
        offsets=lengths.cumsum(),
        role_bytes=flat("role_bytes", np.zeros((0, NUM_ROLES), np.int64)),
        prompt_lengths=flat("prompt_lengths", np.zeros(0, np.int32)),
        row_ids=tuple(row_id for split in splits for row_id in split.row_ids),
        checks=tuple(check for split in splits for check in split.checks),
    )


@dataclass(frozen=True, slots=True, eq=False)
class TokenData:
    """All splits, and what was counted on the way; `unusable` maps reason to number of rows.

    counts   rows_read, unusable_rows.<reason>, and for each split with rows <split>_encoded_rows (tried),
             <split>_rows (kept), <split>_truncated_rows and <split>_{prompt,response,system,template}_tokens
    """

    splits: Mapping[str, TokenSplit]
    counts: Mapping[str, int]
    unusable: Mapping[str, int]


def load_token_data(
    dataset: DatasetConfig,
    model: ModelConfig,
    tokenizer: Any,
    *,
    context_length: int | None,
    dataset_identity: str,
    model_identity: str,
    cache_folder: Path | None,
) -> TokenData:
    """The dataset in the tokenizer's tokens, from the cache if it is there.

    context_length   tokens that the model can hold; rows are cut to it or to dataset.max_tokens, if smaller
    cache_folder     None: nothing is stored. Concurrent writers are harmless: the first to finish wins.
    Raises           DataError where too large a share of rows is unusable or no row is left to train on;
                     TemplateError, ModelError
    """
    max_tokens = dataset.max_tokens if context_length is None else min(dataset.max_tokens, context_length)
    encoder = Encoder(tokenizer, template=model.template, add_bos=model.add_bos, max_tokens=max_tokens)
    folder = None
    if cache_folder is not None and not dataset_identity.endswith("@unresolved"):
        folder = cache_folder / _key(dataset, dataset_identity, encoder, max_tokens)
    data = _read(folder) if folder is not None else None
    if data is None:
        data = _make(load_rows(dataset), encoder)
        if folder is not None:
            _write(
                folder,
                data,
                {
                    "dataset_identity": dataset_identity,
                    "model_identity": model_identity,
                    "max_tokens": max_tokens,
                },
            )
    _check_usable(data, dataset, max_tokens)
    return data


def _key(dataset: DatasetConfig, dataset_identity: str, encoder: Encoder, max_tokens: int) -> str:
    settings = {name: value for name, value in config_to_dict(dataset).items() if name not in _NOT_IN_KEY}
    parts = {
        "version": TOKENS_VERSION,
        "dataset": dataset_identity,
        "settings": settings,
        "encoder": encoder.identity_parts,
        "max_tokens": max_tokens,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(loaded: LoadedRows, encoder: Encoder) -> TokenData:
    unusable = Counter(dict(loaded.unusable))
    counts: dict[str, int] = {"rows_read": loaded.num_read}
    splits: dict[str, TokenSplit] = {}
    for split in SPLITS:
        rows = loaded.splits.get(split, ())
        encoded = encoder.encode_batch([row.messages for row in rows])
        unusable.update(result for result in encoded if isinstance(result, str))
        kept = [
            (row, result) for row, result in zip(rows, encoded, strict=True) if isinstance(result, Encoded)
        ]
        splits[split] = _flatten(kept)
        if rows:
            counts |= {f"{split}_encoded_rows": len(rows)} | _counts(split, splits[split], kept)
    counts |= {f"unusable_rows.{reason}": unusable[reason] for reason in sorted(unusable)}
    return TokenData(splits, counts, dict(sorted(unusable.items())))


def _flatten(kept: Sequence[tuple[Row, Encoded]]) -> TokenSplit:
    encoded = [result for _, result in kept]
    offsets = np.zeros(len(kept) + 1, np.int64)
    np.cumsum([len(result.ids) for result in encoded], out=offsets[1:])
    return TokenSplit(
        ids=np.concatenate([result.ids for result in encoded]) if kept else np.zeros(0, np.int32),
        roles=np.concatenate([result.roles for result in encoded]) if kept else np.zeros(0, np.uint8),
        offsets=offsets,
        role_bytes=np.array([result.role_bytes for result in encoded], np.int64).reshape(-1, NUM_ROLES),
        prompt_lengths=np.array([result.prompt_length for result in encoded], np.int32),
        row_ids=tuple(row.row_id for row, _ in kept),
        # Through JSON, so that a fresh check equals one from the cache (a tuple becomes a list).
        checks=tuple(json.loads(json.dumps([row.check for row, _ in kept]))),
    )


def _counts(split: str, tokens: TokenSplit, kept: Sequence[tuple[Row, Encoded]]) -> dict[str, int]:
    by_role = np.bincount(tokens.roles, minlength=NUM_ROLES).tolist()
    return {
        f"{split}_rows": len(tokens),
        f"{split}_truncated_rows": sum(result.is_truncated for _, result in kept),
    } | {f"{split}_{role.name.lower()}_tokens": by_role[role] for role in Role if role is not Role.NONE}


def _check_usable(data: TokenData, dataset: DatasetConfig, max_tokens: int) -> None:
    num_read, num_encoded = (
        data.counts["rows_read"],
        sum(data.counts.get(f"{split}_encoded_rows", 0) for split in SPLITS),
    )
    num_kept = sum(len(split) for split in data.splits.values())
    lost_in_tokens = num_encoded - num_kept
    lost_in_rows = sum(data.unusable.values()) - lost_in_tokens
    # Where num_train_rows leaves rows out, tokens were made of a sample only: the two shares multiply.
    usable_share = (1 - lost_in_rows / max(num_read, 1)) * (1 - lost_in_tokens / max(num_encoded, 1))
    reasons = ", ".join(f"{reason} {count}" for reason, count in data.unusable.items())
    place = f"dataset {dataset.name}"
    if 1 - usable_share > dataset.max_unusable_share + 1e-12:
        raise DataError(
            f"{place}: {sum(data.unusable.values())} of {num_read} rows can't be used "
            f"({reasons}; {max_tokens} tokens at most)",
            f"at most dataset.max_unusable_share={dataset.max_unusable_share:g} of the rows",
            "mend the data, raise dataset.max_tokens, or raise dataset.max_unusable_share",
        )
    if len(data.splits["train"]) == 0:
        raise DataError(
            f"{place}: no row is left to train on ({reasons or 'all rows are held out'})",
            "at least one usable training row",
            "lower dataset.num_validation_rows or add rows",
        )


def _write(folder: Path, data: TokenData, about: Mapping[str, Any]) -> None:
    """Store the data whole: into a temporary folder, then renamed. A lost race leaves the winner's."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir(parents=True)
    try:
        for split, tokens in data.splits.items():
            for name in _ARRAYS:
                np.save(temporary / f"{split}.{name}.npy", getattr(tokens, name), allow_pickle=False)
        # The lengths let a reader tell a folder that lost its content in a crash of the machine.
        write_json_atomic(
            temporary / "meta.json",
            {
                "version": TOKENS_VERSION,
                "about": dict(about),
                "counts": data.counts,
                "unusable": data.unusable,
                "splits": {
                    split: {"row_ids": tokens.row_ids, "checks": tokens.checks, "num_tokens": len(tokens.ids)}
                    for split, tokens in data.splits.items()
                },
            },
        )
        _move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, folder: Path) -> None:
    for _ in range(2):
        try:
            os.rename(temporary, folder)
            return
        except OSError:
            if _read(folder) is not None:
                return  # another run was faster, with the same content
            # Whatever is there is not whole: out of the way with it, without a moment of half-deleted files.
            broken = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.broken")
            if folder.exists():
                os.rename(folder, broken)
                shutil.rmtree(broken, ignore_errors=True)


def _read(folder: Path) -> TokenData | None:
    """The stored data; None if it isn't there or isn't whole."""
    meta = read_json(folder / "meta.json")
    if meta is None or meta.get("version") != TOKENS_VERSION:
        return None
    try:
        splits = {split: _read_split(folder, split, about) for split, about in meta["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if set(splits) != set(SPLITS):
        return None
    return TokenData(splits, meta["counts"], meta["unusable"])


def _read_split(folder: Path, split: str, about: Mapping[str, Any]) -> TokenSplit:
    arrays = {name: _load_array(folder / f"{split}.{name}.npy") for name in _ARRAYS}
    num_rows, num_tokens = len(about["row_ids"]), about["num_tokens"]
    lengths = {
        "ids": num_tokens,
        "roles": num_tokens,
        "offsets": num_rows + 1,
        "role_bytes": num_rows,
        "prompt_lengths": num_rows,
    }
    if any(len(arrays[name]) != length for name, length in lengths.items()):
        raise ValueError(f"{folder}: lengths disagree")
    return TokenSplit(**arrays, row_ids=tuple(about["row_ids"]), checks=tuple(about["checks"]))


def _load_array(path: Path) -> NDArray[Any]:
    """Mapped, so that runs of one machine share the memory; copy-on-write, as torch warns of read-only."""
    return np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)
