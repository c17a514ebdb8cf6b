"""All benchmarks of one run: one generation for all of them, each written down when it is done, none done twice.

    <run>/evaluations/outputs.jsonl                 what the model wrote, by a hash of what it was asked
                      <protocol>/<name>.parquet     one row an item (`train.items`)
                                 result.json        the scores; written last, so what has one is whole

A process that is killed loses one batch: outputs are appended as they come, and a benchmark that has its result is
left alone. A benchmark that is scored again, by another judge for instance, finds its outputs there.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from train.benchmarks.aggregates import aggregate_scores, check_aggregates
from train.benchmarks.config import KINDS, benchmark_configs
from train.benchmarks.interface import Backend, Benchmark, Context, Output, Request
from train.config import EvalConfig
from train.files import read_json, write_json_atomic, write_text_atomic
from train.items import HALVES, Items, Score, score, write_items
from train.provenance import versions

FOLDER = "evaluations"  # in the run's folder
RESULT_VERSION = 1
_SLAB = 256  # requests between two looks at whether to stop; a slab is batched by length within itself

Scores = dict[str, dict[str, Score]]  # split (validation, test, all) -> benchmark.measure -> score


class Stopped(Exception):
    """Asked to stop; what is done is on disk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Every metric of an evaluation, and what stands behind each: standard error, items, clusters, protocol."""

    metrics: dict[str, float]
    details: dict[str, dict[str, Any]]
    num_reused: int  # benchmarks that were there already


def evaluate_benchmarks(
    config: EvalConfig,
    protocols: Mapping[str, str],
    make_backend: Callable[[], Backend],
    *,
    run_folder: Path,
    parameters_sha256: str,
    cache_folder: Path | None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Measure what isn't measured yet.

    protocols       the fingerprint of each benchmark by name (`train.benchmarks.config.protocols`)
    make_backend    called once, and only if there is anything to measure
    Raises          Stopped; UserError for a benchmark that can't be asked.
    """
    configs = benchmark_configs(config.benchmarks)
    terms = check_aggregates(config.aggregates, list(configs))
    folder = run_folder / FOLDER
    results = {name: read_result(folder, name, protocols[name], parameters_sha256) for name in configs}
    missing = [name for name, result in results.items() if result is None]
    if missing:
        benchmarks = []
        for name in missing:
            context = Context(
                eval=config, protocol=protocols[name], cache_folder=cache_folder, run_folder=run_folder
            )
            module = import_module(KINDS[configs[name].kind][1])
            benchmarks.append(module.make_benchmark(name, configs[name], context))
        backend = make_backend()
        cache = _Outputs(folder / "outputs.jsonl", parameters_sha256, config.add_bos)
        outputs = _generate(benchmarks, backend, cache, should_stop, on_progress)
        for benchmark in benchmarks:
            if should_stop():
                raise Stopped("stopped between two benchmarks")
            started = time.monotonic()
            items = benchmark.score(outputs[benchmark.name], backend)
            scores = scores_of(items)
            write_items(folder / benchmark.protocol, items)
            result = _result(items, scores, configs[benchmark.name], parameters_sha256, started)
            write_json_atomic(folder / benchmark.protocol / "result.json", result)
            results[benchmark.name] = scores
    found = {name: scores for name, scores in results.items() if scores is not None}
    items_of = {
        name: str((read_json(folder / protocols[name] / "result.json") or {}).get("items_sha256"))[:12]
        for name in found
    }
    return measured_of(found, terms, protocols, items_of, len(configs) - len(missing))


def scores_of(items: Items) -> Scores:
    """The score of every column on both halves and on all items; what has no item is left out."""
    scores: Scores = {}
    for split in (*HALVES, "all"):
        for column in items.values:
            found = score(items, column, None if split == "all" else split)
            if found is not None:
                scores.setdefault(split, {})[f"{items.benchmark}.{column}"] = found
    return scores


def read_result(folder: Path, name: str, protocol: str, parameters_sha256: str) -> Scores | None:
    """What was measured under a protocol; None if it isn't whole, or is of other weights."""
    result = read_json(folder / protocol / "result.json")
    if (
        result is None
        or result.get("version") != RESULT_VERSION
        or (result.get("benchmark"), result.get("parameters_sha256")) != (name, parameters_sha256)
    ):
        return None
    return {
        split: {metric: Score(**values) for metric, values in scores.items()}
        for split, scores in result["scores"].items()
    }


def items_sha256(items: Items) -> str:
    """Names the items, whatever they scored."""
    return hashlib.sha256("\n".join(items.item_ids).encode()).hexdigest()


def _result(
    items: Items, scores: Scores, config: Any, parameters_sha256: str, started: float
) -> dict[str, Any]:
    return {
        "version": RESULT_VERSION,
        "benchmark": items.benchmark,
        "protocol": items.protocol,
        "config": {key: value for key, value in dataclasses.asdict(config).items() if value is not None},
        "parameters_sha256": parameters_sha256,
        "items_sha256": items_sha256(items),
        "num_items": len(items),
        "num_validation_items": items.splits.count("validation"),
        "scores": {
            split: {name: dataclasses.asdict(found) for name, found in part.items()}
            for split, part in scores.items()
        },
        "versions": versions(("lm_eval", "transformers", "torch")),
        "scoring_s": time.monotonic() - started,
        "finished_at": time.time(),
    }


def measured_of(
    results: Mapping[str, Scores],
    terms: Mapping[str, Any],
    protocols: Mapping[str, str],
    known_items: Mapping[str, str],
    num_reused: int = 0,
) -> Measured:
    """Scores of some benchmarks and averages over them as metrics. known_items: names of the items of each."""
    metrics: dict[str, float] = {}
    details: dict[str, dict[str, Any]] = {}
    for split in (*HALVES, "all"):
        known = {name: found for scores in results.values() for name, found in scores.get(split, {}).items()}
        known |= aggregate_scores(terms, known)
        for name, found in known.items():
            metrics[f"{split}_{name}"] = found.mean
            protocol = protocols.get(name.partition(".")[0])
            details[f"{split}_{name}"] = {
                **({"standard_error": found.standard_error} if found.standard_error is not None else {}),
                "num_items": found.num_items,
                "num_clusters": found.num_clusters,
                **({"protocol": protocol} if protocol else {}),
                **({"items": known_items[name.partition(".")[0]]} if protocol else {}),
            }
    return Measured(metrics, details, num_reused)


def _generate(
    benchmarks: Sequence[Benchmark],
    backend: Backend,
    cache: "_Outputs",
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> dict[str, dict[str, Output]]:
    """Everything that every benchmark asks for: outputs by benchmark and key. A conversation takes several rounds."""
    outputs: dict[str, dict[str, Output]] = {benchmark.name: {} for benchmark in benchmarks}
    num_done = 0
    while True:
        asked = [
            (benchmark.name, request)
            for benchmark in benchmarks
            for request in benchmark.requests(outputs[benchmark.name])
            if request.key not in outputs[benchmark.name]
        ]
        if not asked:
            return outputs
        wanted = list({cache.name(request): request for _, request in asked if request not in cache}.values())
        wanted.sort(key=lambda one: (one.temperature, -one.max_new_tokens, -_length(one)))
        num_total = num_done + len(wanted)
        for start in range(0, len(wanted), _SLAB):
            if should_stop():
                raise Stopped(f"stopped after {num_done} of {num_total} outputs")
            slab = wanted[start : start + _SLAB]
            cache.add(slab, backend.generate(slab))
            num_done += len(slab)
            on_progress(num_done, num_total)
        for name, request in asked:
            outputs[name][request.key] = cache[request]


def _length(request: Request) -> int:
    return len(request.prompt) + sum(len(text) for _, text in request.messages)


class _Outputs:
    """What one model wrote, on disk: a line an output, the first line says whose. A torn last line is ignored."""

    def __init__(self, path: Path, parameters_sha256: str, add_bos: bool | None) -> None:
        self._path, self._add_bos = path, add_bos
        self._known: dict[str, Output] = {}
        header = {"version": RESULT_VERSION, "parameters_sha256": parameters_sha256}
        lines, is_whole = _lines(path)
        if not lines or lines[0] != header:
            lines, is_whole = [header], False
        if not is_whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines[1:]:
            self._known[line["name"]] = Output(
                line["text"], line["num_tokens"], line["is_truncated"], line["is_cut"]
            )

    def name(self, request: Request) -> str:
        """The hash of everything that decides what the model writes, its parameters aside."""
        asked = {**dataclasses.asdict(request), "add_bos": self._add_bos}
        if request.temperature == 0:
            asked |= {"key": "", "seed": 0}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    def __contains__(self, request: Request) -> bool:
        return self.name(request) in self._known

    def __getitem__(self, request: Request) -> Output:
        return self._known[self.name(request)]

    def add(self, requests: Sequence[Request], outputs: Sequence[Output]) -> None:
        """Remember a slab, on disk in one write."""
        with open(self._path, "a", encoding="utf-8") as stream:
            for request, output in zip(requests, outputs, strict=True):
                name = self.name(request)
                self._known[name] = output
                stream.write(
                    json.dumps({"name": name, **dataclasses.asdict(output)}, ensure_ascii=True) + "\n"
                )


def _lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a file, and whether that is all of it: a kill tears the last one."""
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], False
    found: list[dict[str, Any]] = []
    for text in texts[:-1]:
        try:
            found.append(json.loads(text))
        except ValueError:
            return found, False
    return found, not texts[-1]
