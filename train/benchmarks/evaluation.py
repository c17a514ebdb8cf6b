"""All benchmarks of one run: one generation for all of them, each written down when it is done, none done twice.

    <run>/evaluations/outputs.jsonl                 what the model wrote, by a hash of what it was asked
                      <protocol>/<name>.parquet     one row an item (`train.items`)
                                 result.json        the scores; written last, so what has one is whole

A process that is killed loses one batch: outputs are appended as they come, and a benchmark that has its result is
left alone. A benchmark that is scored again, by another judge for instance, finds its outputs there.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from train.benchmarks.aggregates import aggregate_scores, check_aggregates
from train.benchmarks.asking import Asking, Backends, OneModel, Stopped, generate_all
from train.benchmarks.config import KINDS, benchmark_configs
from train.benchmarks.interface import Backend, Benchmark, Context, Output
from train.benchmarks.outputs import Outputs
from train.config import EvalConfig
from train.failures import MEMORY, OF_THE_MACHINE, failure_kind
from train.files import read_json, write_json_atomic
from train.items import HALVES, Items, Score, score, write_items
from train.provenance import versions

__all__ = ["FOLDER", "Measured", "MeasuredRun", "Stopped", "evaluate_benchmarks", "evaluate_together"]

FOLDER = "evaluations"  # in the run's folder
RESULT_VERSION = 1

Scores = dict[str, dict[str, Score]]  # split (validation, test, all) -> benchmark.measure -> score


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Every metric of an evaluation, and what stands behind each: standard error, items, clusters, protocol."""

    metrics: dict[str, float]
    details: dict[str, dict[str, Any]]
    num_reused: int  # benchmarks that were there already
    seconds: float = 0.0  # its own, and its even share of what was done for several at once
    num_together: int = 1  # runs that were asked at once


@dataclasses.dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A run to be measured: where it lies, which parameters its record names, and what takes it out of company."""

    folder: Path
    parameters_sha256: str
    should_stop: Callable[[], bool] = lambda: False


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
    """Measure what isn't measured yet of one run.

    protocols       the fingerprint of each benchmark by name (`train.benchmarks.config.protocols`)
    make_backend    called once, and only if there is anything to measure
    Raises          Stopped; UserError for a benchmark that can't be asked.
    """
    found: list[Measured | Exception] = []
    evaluate_together(
        config,
        protocols,
        lambda missing: (OneModel(make_backend()), missing),
        [MeasuredRun(run_folder, parameters_sha256)],
        cache_folder=cache_folder,
        should_stop=should_stop,
        on_progress=lambda _, done, total: on_progress(done, total),
        ended=lambda _, what: found.append(what),
    )
    (measured,) = found
    if isinstance(measured, Exception):
        raise measured
    return measured


def evaluate_together(
    config: EvalConfig,
    protocols: Mapping[str, str],
    make_backends: Callable[[Sequence[int]], tuple[Backends, Sequence[int]]],
    runs: Sequence[MeasuredRun],
    *,
    cache_folder: Path | None,
    ended: Callable[[int, Measured | Exception], None],
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int, int], None] = lambda number, done, total: None,
) -> None:
    """The same for several runs over one base model, each under its own name and in its own folder.

    make_backends   called with the numbers of the runs that miss anything; the models, and whose they are: who has
                    none isn't asked, and nothing is said of it here
    ended           hears of each of the others once, as soon as it is over; what breaks the scores of one is its own
    Raises          Stopped; what breaks what is done for all, memory that is lacking, a full disk.
    """
    started = time.monotonic()
    configs = benchmark_configs(config.benchmarks)
    terms = check_aggregates(config.aggregates, list(configs))
    results = [
        {
            name: read_result(run.folder / FOLDER, name, protocols[name], run.parameters_sha256)
            for name in configs
        }
        for run in runs
    ]
    num_reused = [sum(scores is not None for scores in known.values()) for known in results]

    def measured(n: int) -> Measured:
        return _read_measured(results[n], terms, protocols, runs[n].folder / FOLDER, num_reused[n])

    missing = [n for n, known in enumerate(results) if None in known.values()]
    for n in range(len(runs)):
        if n not in missing:
            ended(n, measured(n))
    if not missing:
        return

    def benchmark_of(n: int, name: str) -> Benchmark:
        context = Context(
            eval=config, protocol=protocols[name], cache_folder=cache_folder, run_folder=runs[n].folder
        )
        return import_module(KINDS[configs[name].kind][1]).make_benchmark(name, configs[name], context)

    benchmarks = {
        n: [benchmark_of(n, name) for name, scores in results[n].items() if scores is None] for n in missing
    }
    backends, asked = make_backends(missing)
    asking: list[Asking] = []
    for n in asked:
        path = runs[n].folder / FOLDER / "outputs.jsonl"
        known = Outputs(path, runs[n].parameters_sha256, config.add_bos)
        asking.append(Asking(benchmarks[n], known, runs[n].should_stop))
    generate_all(asking, backends, should_stop, lambda place, *told: on_progress(asked[place], *told))
    common_s = (time.monotonic() - started) / max(1, len(asked))
    for place, (n, one) in enumerate(zip(asked, asking, strict=True)):
        begun = time.monotonic()
        try:
            for benchmark in one.benchmarks:
                if should_stop() or not one.stays():
                    raise Stopped("stopped between two benchmarks")
                scores = _scored(
                    benchmark,
                    one.outputs[benchmark.name],
                    backends.of(place),
                    runs[n],
                    configs[benchmark.name],
                )
                results[n][benchmark.name] = scores
            what: Measured | Exception = dataclasses.replace(
                measured(n), seconds=common_s + time.monotonic() - begun, num_together=len(asked)
            )
        except Exception as error:
            is_for_all = isinstance(error, Stopped) and should_stop()
            if is_for_all or failure_kind(error) in (*OF_THE_MACHINE, *MEMORY):
                raise
            what = error
        ended(n, what)


def _scored(
    benchmark: Benchmark, outputs: Mapping[str, Output], backend: Backend, run: MeasuredRun, config: Any
) -> Scores:
    """The scores of one benchmark, and all of it written down."""
    started = time.monotonic()
    items = benchmark.score(outputs, backend)
    scores = scores_of(items)
    folder = run.folder / FOLDER / benchmark.protocol
    write_items(folder, items)
    result = _result(items, scores, config, run.parameters_sha256, started)
    write_json_atomic(folder / "result.json", result)
    return scores


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


def _read_measured(
    known: Mapping[str, Scores | None],
    terms: Mapping[str, Any],
    protocols: Mapping[str, str],
    folder: Path,
    num_reused: int,
) -> Measured:
    results = {name: scores for name, scores in known.items() if scores is not None}
    items_of = {
        name: str((read_json(folder / protocols[name] / "result.json") or {}).get("items_sha256"))[:12]
        for name in results
    }
    return measured_of(results, terms, protocols, items_of, num_reused)
