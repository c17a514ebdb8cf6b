"""lm-evaluation-harness as a benchmark: its tasks, prompts, filters and per-document scores; our model and items.

Its Python API is used phase by phase (load, build requests, filter, score), because its own `evaluate` would
generate for its tasks alone, while all benchmarks of a run share one generation. A test holds every item equal to
what the plain `lm_eval` command line says.

lm-eval is an extra (`pip install -e '.[eval]'`), imported when a benchmark is made.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.benchmarks import ifeval
from train.benchmarks.columns import OUTPUT_MEASURES, Columns, output_values
from train.benchmarks.config import LmEvalConfig, effective_limit
from train.benchmarks.identity import data_identity
from train.benchmarks.interface import Backend, Choice, Context, Output, Request
from train.benchmarks.lm_eval_load import LoadedTask, data_from, import_lm_eval, load_tasks, quiet, seeded
from train.errors import ConfigError, UserError
from train.items import Items, half_of
from train.metrics import MEASURES

MIN_SAMPLED_TASKS = 10  # from so many tasks on, tasks count as a sample of tasks: each is a cluster

# What lm-eval calls our measures, where it isn't said in the configuration.
_MEASURE_OF = {
    "acc": "accuracy",
    "acc_norm": "normalised_accuracy",
    "exact_match": "exact_match",
    "em": "exact_match",
    "f1": "f1",
    "pass@1": "pass_at_1",
    "pass_at_1": "pass_at_1",
    "mc2": "truthful_probability",
    "ter": "translation_edit_rate",
    "prompt_level_strict_acc": "prompt_strict",
    "prompt_level_loose_acc": "prompt_loose",
    "inst_level_strict_acc": "instruction_strict",
    "inst_level_loose_acc": "instruction_loose",
}
_loaded: dict[tuple[Any, ...], list["LoadedTask"]] = {}  # data sets and requests serve every run of a process


def make_benchmark(name: str, config: LmEvalConfig, context: Context) -> "LmEvalBenchmark":
    """The benchmark, its data loaded and its requests built.

    Raises   ConfigError where lm-eval or a task is missing; DataError where a data set can't be loaded.
    """
    import_lm_eval(name)
    data = Path(context.eval.data).expanduser() if context.eval.data else None
    limit = effective_limit(config, context.eval.limit)
    identity = data_identity(context.eval, name, config, context.cache_folder) if data else "hub"
    key = (config.tasks, config.num_fewshot, limit, data, identity, context.cache_folder)
    if key not in _loaded:
        with quiet(), seeded(), data_from(data, context.cache_folder, identity):
            if any("ifeval" in task for task in config.tasks):
                ifeval.find_punkt(Path(context.eval.punkt).expanduser() if context.eval.punkt else None)
            _loaded[key] = load_tasks(name, config, limit, context.cache_folder, identity)
    return LmEvalBenchmark(name, config, context, _loaded[key])


class LmEvalBenchmark:
    """See `train.benchmarks.interface.Benchmark`."""

    def __init__(
        self, name: str, config: LmEvalConfig, context: Context, tasks: Sequence[LoadedTask]
    ) -> None:
        self.name, self.protocol = name, context.protocol
        self._config, self._tasks, self._half_seed = config, tasks, context.eval.half_seed
        scored = [one.name for one in tasks if one.task.OUTPUT_TYPE != "generate_until"]
        if scored and config.prompt == "template":
            raise ConfigError(
                f"eval.benchmarks.{name}.prompt=template, but {scored[0]} compares likelihoods",
                "a task that generates",
                f"say eval.benchmarks.{name}.prompt=text",
            )

    def requests(self, outputs: Mapping[str, Output]) -> Sequence[Request]:
        """All of them at once."""
        if outputs:
            return ()
        return [
            self._request(one, instance, repeat)
            for one in self._tasks
            for instance in one.task.instances
            if instance.request_type == "generate_until"
            for repeat in range(instance.repeats or 1)
        ]

    def score(self, outputs: Mapping[str, Output], backend: Backend) -> Items:
        """Each document once; metrics that lm-eval leaves out of a document are absent."""
        self._answer(outputs, backend)
        chosen: dict[str, str] = {}
        columns = Columns()
        for one in self._tasks:
            with quiet(), seeded(), ifeval.deterministic():
                one.task.apply_filters()
                results = _results(one)
            chosen = chosen or self._metrics(one.name, results[0] if results else {})
            size = len(one.docs)
            for (doc_id, _), found in zip(one.docs, results, strict=True):
                values = {measure: found.get(metric) for measure, metric in chosen.items()}
                weight = 1.0 / size if self._config.average == "tasks" else 1.0
                instances = [inst for inst in one.task.instances if inst.doc_id == doc_id]
                written = [
                    outputs[key]
                    for inst in instances
                    for repeat in range(inst.repeats or 1)
                    if (key := _key(one, inst, repeat)) in outputs
                ]
                columns.add(f"{one.name}/{doc_id}", one.name, values, weight, output_values(written))
                columns.outputs.append(written[0].text if written else None)
        are_sampled = len(self._tasks) >= MIN_SAMPLED_TASKS
        measures = [*chosen, *(name for name in OUTPUT_MEASURES if name in columns.values)]
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={name: MEASURES[name] for name in measures},
            item_ids=tuple(columns.item_ids),
            clusters=tuple(columns.clusters if are_sampled else columns.item_ids),
            splits=tuple(half_of(self.name, item_id, self._half_seed) for item_id in columns.item_ids),
            values={name: columns.column(name) for name in measures},
            weights={name: columns.weight(name) for name in measures if columns.is_weighted(name)},
            outputs=tuple(columns.outputs) if any(text is not None for text in columns.outputs) else (),
        )

    def _request(self, one: LoadedTask, instance: Any, repeat: int) -> Request:
        text, settings = instance.args
        until = settings.get("until") or ()
        limits = [settings.get(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
        limit = self._config.max_new_tokens or next((value for value in limits if value), 256)
        samples = settings.get("do_sample", float(settings.get("temperature") or 0.0) > 0)
        is_chat = self._config.prompt == "template"
        return Request(
            key=_key(one, instance, repeat),
            prompt="" if is_chat else text,
            messages=(("user", text),) if is_chat else (),
            max_new_tokens=int(limit),
            stop=(until,) if isinstance(until, str) else tuple(until),
            temperature=float(settings.get("temperature") or 1.0) if samples else 0.0,
            seed=repeat,
        )

    def _answer(self, outputs: Mapping[str, Output], backend: Backend) -> None:
        """Give every instance its responses."""
        scored: list[Any] = []
        for one in self._tasks:
            for instance in one.task.instances:
                instance.filtered_resps = {}
                if instance.request_type == "generate_until":
                    repeats = range(instance.repeats or 1)
                    instance.resps = [outputs[_key(one, instance, repeat)].text for repeat in repeats]
                elif instance.request_type == "loglikelihood":
                    scored.append(instance)
                else:
                    raise UserError(
                        f"task {one.name} asks for {instance.request_type}, which isn't measured here",
                        "a task that generates or compares likelihoods",
                        f"take it out of eval.benchmarks.{self.name}.tasks",
                    )
        found = backend.likelihoods([Choice(*instance.args) for instance in scored])
        for instance, likelihood in zip(scored, found, strict=True):
            instance.resps = [(likelihood.log_probability, likelihood.is_greedy)]

    def _metrics(self, task: str, found: Mapping[str, Any]) -> dict[str, str]:
        """Our measure -> "metric,filter" of lm-eval."""
        if not self._config.metrics:
            known: dict[str, str] = {}
            for name in found:
                measure = _MEASURE_OF.get(name.split(",")[0])
                if measure is not None:
                    known.setdefault(measure, name)
            if known:
                return known
        for name in self._config.metrics.values():
            if name not in found:
                near = difflib.get_close_matches(name, found, n=1)
                raise ConfigError(
                    f"eval.benchmarks.{self.name}.metrics names {name}, which task {task} doesn't report",
                    f"one of {', '.join(found)}",
                    f"did you mean {near[0]}?" if near else "",
                )
        if not self._config.metrics:
            raise ConfigError(
                f"task {task} reports {', '.join(found)}, none of which has a unit here",
                "a measure for one of them",
                f"say 'eval.benchmarks.{self.name}.metrics={{accuracy: \"METRIC,FILTER\"}}'",
            )
        return dict(self._config.metrics)


def _results(one: LoadedTask) -> list[dict[str, Any]]:
    """For each document "metric,filter" -> value, as `lm_eval.evaluator.evaluate` collects them."""
    by_doc: dict[int, list[Any]] = {}
    for instance in one.task.instances:
        by_doc.setdefault(instance.doc_id, []).append(instance)
    for instances in by_doc.values():
        instances.sort(key=lambda instance: instance.idx)
    results: list[dict[str, Any]] = [{} for _ in one.docs]
    for kind in one.task.instances[0].filtered_resps:
        for found, (doc_id, doc) in zip(results, one.docs, strict=True):
            responses = [instance.filtered_resps[kind] for instance in by_doc[doc_id]]
            found |= {
                f"{metric},{kind}": value
                for metric, value in one.task.process_results(doc, responses).items()
            }
    return results


def _key(one: LoadedTask, instance: Any, repeat: int) -> str:
    return f"{one.name}/{instance.doc_id}/{instance.idx}/{repeat}"
