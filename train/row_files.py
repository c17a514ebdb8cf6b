"""Raw rows from files, folders and hubs: one decoded value for each row, and one line for what is broken.

JSON, JSON lines (both also compressed) and CSV need the standard library only; pyarrow and `datasets` are
imported where a file asks for them.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from train.config import DatasetConfig
from train.errors import DataError
from train.tokenizer import first_line, quiet

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".parquet")

RawRow: TypeAlias = Any  # one decoded JSON value, CSV line or Parquet row

# Files that the `datasets` library and exports leave beside the data.
_NOT_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "hashes.json",
    "meta.json",
}


def read_raw_rows(config: DatasetConfig) -> tuple[Sequence[RawRow], str]:
    """The rows of a local or hub dataset as they were written, and the name of the place for messages."""
    if config.source == "hub":
        return _read_hub(config), f"dataset.path={config.path}"
    path = Path(str(config.path))
    if not path.exists():
        raise DataError(
            f"dataset.path={path} does not exist",
            "a data file or folder",
            "mend dataset.path=..., or use dataset=embedded, which needs no file",
        )
    rows = _read_folder(path, config.hub_split) if path.is_dir() else read_file(path)
    if not rows:
        raise DataError(f"{path} is empty", "at least one row", "set dataset.path=... to a file with rows")
    return rows, str(path)


def parse_json(text: str, place: str) -> list[RawRow]:
    """The rows of a JSON text: a list, an object with one list, or (as many `.json` files are) JSON lines."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[: error.pos].strip().startswith("{"):
            return parse_jsonl(text, place)
        raise _broken(place, error.lineno, error.msg) from None
    except RecursionError:
        raise _broken(place, 1, "nested too deeply") from None
    if isinstance(value, Mapping):
        lists = [key for key, element in value.items() if isinstance(element, list)]
        if len(lists) == 1:
            return value[lists[0]]
        keys = ", ".join(map(str, list(value)[:10]))
        raise DataError(
            f"{place} holds an object with {len(lists)} lists (keys: {keys})",
            "a list of rows, or an object with one list",
            "rename it to .jsonl if it is JSON lines",
        )
    if not isinstance(value, list):
        raise DataError(
            f"{place} holds a {type(value).__name__}", "a list of rows", "set another dataset.path=..."
        )
    return value


def parse_jsonl(text: str, place: str) -> list[RawRow]:
    """The rows of JSON lines; blank lines are skipped."""
    # str.splitlines() would also cut at U+2028 and its like, which JSON allows inside a string.
    return list(_parsed_lines(text.split("\n"), place))


def _parsed_lines(lines: Iterable[str], place: str) -> Iterator[RawRow]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(place, number, error.msg) from None
            except RecursionError:
                raise _broken(place, number, "nested too deeply") from None


def _broken(place: str, line: int, why: str) -> DataError:
    return DataError(f"{place} line {line} is broken: {why}", "valid JSON", f"mend line {line}")


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read, such as `.jsonl.gz`; "" if it can't be read."""
    return next(
        (suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix)),
        "",
    )


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def data_files(folder: Path, split: str) -> list[Path]:
    """The data files of a folder in sorted order: those named after `split` if there are any, else all."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and suffix_of(path)
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    named = [path for path in files if re.match(rf"{re.escape(split)}([^a-zA-Z]|$)", path.name)]
    return named or files


def read_text(path: Path) -> str:
    """The text of a plain or gzip-compressed UTF-8 file, without a byte order mark."""
    import gzip
    import zlib

    try:
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line} is not UTF-8", "UTF-8 text", "convert it: iconv -t utf-8"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}", "a gzip file", "copy it again") from None
    except OSError as error:
        raise DataError(
            f"{path} can't be read: {error.strerror}", "a readable file", "check its rights"
        ) from None


def read_file(path: Path) -> Sequence[RawRow]:
    """The rows of one data file, by its suffix; DataError naming file and line where it is broken."""
    suffix = suffix_of(path)
    if not suffix:
        raise DataError(
            f"{path} has an unsupported suffix",
            f"one of {', '.join(SUFFIXES)}",
            "convert the file or set another dataset.path=...",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", "at least one row", "set dataset.path=... to a file with rows")
    if suffix == ".parquet":
        return _read_parquet(path)
    text = read_text(path)
    if suffix == ".csv":
        return _read_csv(text, path)
    return parse_jsonl(text, str(path)) if suffix.startswith(".jsonl") else parse_json(text, str(path))


def _read_csv(text: str, path: Path) -> list[RawRow]:
    import csv
    import io

    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # responses are longer than the default 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return list(reader)
    except csv.Error as error:
        raise DataError(
            f"{path} line {reader.line_num} is broken: {error}",
            "valid CSV with a header line",
            f"mend line {reader.line_num}",
        ) from None


def _read_parquet(path: Path) -> list[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a whole Parquet file: {first_line(error)}",
            "a Parquet file",
            "copy or download it again",
        ) from None


def _read_folder(folder: Path, split: str) -> Sequence[RawRow]:
    if is_saved_dataset(folder):
        return _read_saved(folder, split)
    files = data_files(folder, split)
    if not files:
        raise DataError(
            f"{folder} holds no data file",
            f"files with one of {', '.join(SUFFIXES)}",
            "set dataset.path=... to the file itself",
        )
    return [row for path in files for row in read_file(path)]


def _read_saved(folder: Path, split: str) -> Sequence[RawRow]:
    import datasets

    try:
        data: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises what its file layer raises
        raise DataError(
            f"{folder} can't be loaded: {first_line(error)}",
            "a folder written by datasets.save_to_disk",
            "save it again",
        ) from error
    if isinstance(data, Mapping):
        if split not in data:
            raise DataError(
                f"dataset.hub_split={split} is not in {folder}",
                f"one of {', '.join(data)}",
                f"set dataset.hub_split={next(iter(data), '...')}",
            )
        data = data[split]
    return data.to_list()


def _read_hub(config: DatasetConfig) -> Sequence[RawRow]:
    """The rows of a hub dataset: its files are brought to the local cache, then loaded from there.

    Two steps, because the files of a snapshot (also one made by `hf download`) can be read without network,
    while the library's own loader only knows its own cache.
    """
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise DataError(
            f"dataset.source=hub needs a library that is missing: {error.name}",
            "datasets and huggingface_hub",
            "pip install datasets",
        ) from None
    path, revision = str(config.path), config.revision
    try:
        with quiet():
            folder = huggingface_hub.snapshot_download(path, repo_type="dataset", revision=revision)
    except Exception as error:  # network, rights, names: a dozen classes of three libraries, one remedy
        command = f"hf download --repo-type dataset {path}" + (f" --revision {revision}" if revision else "")
        raise DataError(
            f"dataset.path={path} can't be downloaded and is not in the hub cache: {first_line(error)}",
            "a dataset id (organisation/name) and a network or a filled cache",
            f"run `{command}` on a machine with network, or use dataset.source=local dataset.path=/folder",
        ) from error
    try:
        if is_saved_dataset(Path(folder)):
            return _read_saved(Path(folder), config.hub_split)
        data: Any = datasets.load_dataset(folder, split=config.hub_split)
        return data.to_list()
    except DataError:
        raise
    except Exception as error:  # see above; the library's message says which split or file
        raise DataError(
            f"dataset.path={path} split {config.hub_split} can't be loaded: {first_line(error)}",
            "a dataset with that split",
            "set dataset.hub_split=... or use dataset.source=local",
        ) from error
