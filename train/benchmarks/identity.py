"""What an evaluation is: which run, under which protocols, on which data. Files are hashed and checked here.

Standard library only: planning asks it.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train.benchmarks.config import benchmark_configs, protocols
from train.benchmarks.judged_config import JUDGED_KINDS
from train.config import EvalConfig
from train.embedded.facts import GENERATOR_VERSION
from train.errors import ConfigError, DataError
from train.identity import content_hashes
from train.judges.config import check_judge

# What a row of these data sets must have; rows of others are only parsed.
_KEYS = {
    "cais/mmlu": ("question", "choices", "answer"),
    "SaylorTwift/bbh": ("input", "target"),
    "google/IFEval": ("key", "prompt", "instruction_id_list", "kwargs"),
}
_ID_KEYS = ("key", "id", "question_id")
_DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".md", ".gz")


def asked_protocols(config: EvalConfig, cache_folder: Path | None) -> dict[str, str]:
    """The fingerprint of each benchmark's protocol, local data included; DataError for a folder without them."""
    identities = {
        name: data_identity(config, name, benchmark, cache_folder)
        for name, benchmark in benchmark_configs(config.benchmarks).items()
        if config.data is not None or benchmark.kind != "lm_eval"
    }
    return protocols(config, identities)


def check_benchmarks(config: EvalConfig) -> None:
    """UserError for what would fail after the training only: an extra that isn't installed, rows of wrong shape."""
    for name, benchmark in benchmark_configs(config.benchmarks).items():
        if benchmark.kind in JUDGED_KINDS:
            check_judge(name, config.judge)
        if benchmark.kind != "lm_eval":
            continue
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError(
                f"eval.benchmarks.{name} needs lm-eval, which isn't installed",
                "the extra eval",
                "pip install -e '.[eval]'",
            )
        for path in benchmark.hub if config.data is not None else ():
            for file in sorted((_folder(config, name) / path).rglob("*.jsonl")):
                _check_rows(file, _KEYS.get(path, ()))
    if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "eval.backend=vllm, which isn't installed", "the extra vllm", "pip install -e '.[vllm]'"
        )


def data_identity(config: EvalConfig, name: str, benchmark: Any, cache_folder: Path | None) -> str:
    """The content of the local files that a benchmark reads; DataError where they are absent."""
    if benchmark.kind == "wordings":
        return f"embedded {GENERATOR_VERSION}"
    if benchmark.kind != "lm_eval":
        files = benchmark.files(config.data)
        hashes = content_hashes(files, cache_folder, DataError)
        return hashlib.sha256(json.dumps([hashes[file] for file in files]).encode()).hexdigest()
    folder = _folder(config, name)
    for path in benchmark.hub:
        if not (folder / path).is_dir():
            raise DataError(
                f"eval.data={folder} has no {path}, which eval.benchmarks.{name} reads",
                "a folder ORGANISATION/NAME for every data set",
                "put it there, or leave eval.data out to download it",
            )
    files = sorted(_data_files(folder, benchmark.hub))
    hashes = content_hashes(files, cache_folder, DataError)
    named = [[str(file.relative_to(folder)), hashes[file]] for file in files]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def _data_files(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    for place in [folder / name for name in names] or [folder]:
        yield from (path for path in place.rglob("*") if path.suffix in _DATA_SUFFIXES and path.is_file())


def _folder(config: EvalConfig, name: str) -> Path:
    folder = Path(str(config.data)).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"eval.data={folder} is no folder (eval.benchmarks.{name})",
            "a folder laid out like the hub, with ORGANISATION/NAME in it",
            "mend the path, or leave eval.data out to download",
        )
    return folder


def _check_rows(file: Path, keys: Sequence[str]) -> None:
    """Every line is an object with these keys, and no id comes twice."""
    seen: set[Any] = set()
    number = 0
    with open(file, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            place = f"{file} line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{place} is broken: {error.msg}", "a JSON object", "mend the file") from None
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing or not isinstance(row, dict):
                found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise DataError(
                    f"{place} has no {missing[0] if missing else 'keys'} (found: {found})",
                    f"keys {', '.join(keys) or 'and values'}",
                    "mend the file, or copy it again",
                )
            if row.get("choices") is not None and "answer" in keys and len(row["choices"]) != 4:
                raise DataError(f"{place} has {len(row['choices'])} choices", "4 choices", "mend the file")
            name = next((row[key] for key in _ID_KEYS if isinstance(row.get(key), str | int)), None)
            if name is not None and name in seen:
                raise DataError(f"{place} has the id {name} a second time", "each id once", "mend the file")
            seen.add(name)
    if number == 0:
        raise DataError(f"{file} is empty", "at least one row", "copy it again")
