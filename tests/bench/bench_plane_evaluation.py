"""A plane evaluated over one resident model, beside its cells evaluated one after another.

    python tests/bench/bench_plane_evaluation.py embedded
    python tests/bench/bench_plane_evaluation.py adapters --checkpoint FOLDER

One thread, process time, the ways interleaved round by round, the fastest round of each; 13 cells. The gate:
texts must be equal, and likelihoods to 1e-6 nats/token (to 1e-4 of contexts read whole). Three ways:

    generate    one cell after another, transformers' generate; benchmarks' contexts each read whole
    alone       one cell after another, as a run is measured: known responses are followed as far as the model agrees
                with them, rows that have ended leave, beginnings are shared
    plane       all cells over one model, as many at once as `train.stacked.evaluating` chooses

Situations: the embedded experiment's own evaluation (whole models in a stack, trained here), and adapters of FOLDER, a
small Llama, with benchmarks' texts and few-shot choices. Writes results/plane_evaluation_PART.json and exits with 1
where the gate fails, or a plane is more than a tenth slower than its cells alone (the machine's noise).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from train.answers import answers_of, asked_of
from train.benchmarks import likelihoods
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Request
from train.benchmarks.plane_backend import PlaneBackend
from train.benchmarks.prompts import PromptEncoder
from train.compose import compose_run
from train.config import ModelConfig
from train.evaluate import Evaluation, evaluate, measured_rows
from train.identity import dataset_identity, model_identity
from train.loop import Hooks
from train.model import add_adapters, context_length, load_model, trainable_parameters
from train.reading import kept_bytes, read
from train.stacked import evaluating
from train.stacked.evaluating import evaluate_cells, fill
from train.stacked.loop import CellRun, train_stacked
from train.together import with_wordings
from train.tokenizer import load_tokenizer
from train.tracking import NullTracker
from train.workbench import Workbench

CPU = torch.device("cpu")
NUM_CELLS = 13
SLOWEST = 1.1  # of a plane, over its cells alone


def main() -> int:
    """Measure, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("embedded", "adapters"))
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="of training the embedded cells")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "embedded":
        results = {"whole models: everything a run measures": embedded(arguments.steps, arguments.rounds)}
    else:
        results = adapters(arguments.checkpoint, arguments.rounds)
    kept = True
    for name, found in results.items():
        kept &= found["texts_equal"] and found["largest_difference_nats_per_token"] <= 1e-6
        kept &= found.get("largest_difference_to_whole_contexts_nats_per_token", 0.0) <= 1e-4
        kept &= found["ratio"]["alone"] >= 1 / SLOWEST
        shown = ", ".join(f"{way} {ratio:.2f}x" for way, ratio in found["ratio"].items())
        print(f"{name}: {found['seconds_per_cell']['plane']:.3f} s a cell in the plane; {shown}", flush=True)
    about = {
        "cells": NUM_CELLS,
        "situations": results,
        "machine": {"processor": platform.machine(), "threads": 1, "torch": torch.__version__},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(__file__).parent / "results" / f"plane_evaluation_{arguments.part}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    return 0 if kept else 1


def embedded(steps: int, rounds: int) -> dict[str, Any]:
    """Metrics, answers and prompt sensitivity of cells of the embedded plane."""
    angles = [n / (NUM_CELLS - 1) for n in range(NUM_CELLS)]
    configs = [
        compose_run(
            [
                f"objective.prompt_weight={angle}",
                "objective.response_weight=1",
                "seed=0",
                f"train.max_steps={steps}",
            ]
        )
        for angle in angles
    ]
    config, bench = configs[0], Workbench(None)
    identity = model_identity(config.model, cache_folder=None)
    model, tokenizer = bench.model(config, identity, CPU), bench.tokenizer(config, identity)
    data = bench.data(config, model, identity, dataset_identity(config.dataset, cache_folder=None))
    hooks = Hooks(lambda: False, lambda step, number: None, NullTracker())
    with tempfile.TemporaryDirectory() as folder:
        runs = [CellRun(each, f"{n:032x}", Path(folder) / str(n), hooks) for n, each in enumerate(configs)]
        cells = train_stacked(model, data.splits["train"], runs, device=CPU, should_stop=lambda: False)

    def alone(n: int) -> Evaluation:
        fill(trainable_parameters(model), cells[n].parameters)
        measured = evaluate(model, data, config.eval, tokenizer, CPU)
        return with_wordings(measured, model, config, tokenizer, CPU)

    def plane() -> list[Evaluation | None]:
        return evaluate_cells(model, cells, data, config, tokenizer, CPU)

    seconds, said = fastest({"plane": plane, "alone": lambda: [alone(n) for n in range(NUM_CELLS)]}, rounds)
    known, found = said["alone"], said["plane"]
    differences = [
        abs(one.metrics[name] - other.metrics[name])
        for one, other in zip(known, found, strict=True)
        if other is not None
        for name in one.metrics
        if name.endswith("_nll")
    ]
    same = all(
        other is not None
        and [items.outputs for items in one.items] == [items.outputs for items in other.items]
        for one, other in zip(known, found, strict=True)
    )
    # Likelihoods and answers of one cell; prompt sensitivity is the same for `generate`.
    split, asked = measured_rows(data), asked_of(config.eval, tokenizer)
    fill(trainable_parameters(model), cells[0].parameters)

    def one_pass() -> Any:
        reads = read(model, split, CPU, asked=asked, kept_bytes=kept_bytes(CPU))
        return answers_of(model, split, reads, asked, config.eval, tokenizer, CPU)

    writing, _ = fastest(
        {
            "generate": lambda: (
                read(model, split, CPU),
                written_by_generate(model, split, config, tokenizer),
            ),
            "alone": one_pass,
        },
        rounds,
    )
    return summary(seconds, same, max(differences)) | {
        "likelihoods_and_answers_of_one_cell": {**writing, "ratio": writing["generate"] / writing["alone"]}
    }


def written_by_generate(model: Any, split: Any, config: Any, tokenizer: Any) -> None:
    """The same prompts, those of like length together, by transformers' generate."""
    prompts = sorted(
        (
            split.ids[split.offsets[row] : split.offsets[row] + split.prompt_lengths[row]].tolist()
            for row, check in enumerate(split.checks)
            if check is not None
        ),
        key=len,
    )
    for start in range(0, len(prompts), config.eval.batch_rows):
        chunk = prompts[start : start + config.eval.batch_rows]
        longest = max(map(len, chunk))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in chunk])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in chunk])
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            use_cache=True,
            max_new_tokens=config.eval.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=0,
        )


def adapters(checkpoint: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Texts and few-shot choices of adapters on one base."""
    recipe = compose_run(
        ["objective.prompt_weight=1", "objective.response_weight=1", "seed=0", "train=lora"]
    ).train
    config = ModelConfig(name="small", source="local", path=str(checkpoint))
    model, tokenizer = add_adapters(load_model(config, CPU), recipe, 0).eval(), load_tokenizer(config)
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    backend = HFBackend(model, tokenizer, CPU, encoder, context_length=context_length(model))
    torch.manual_seed(0)
    cells = [
        {
            name: value.detach() + 0.02 * torch.randn_like(value)
            for name, value in trainable_parameters(model).items()
        }
        for _ in range(NUM_CELLS)
    ]
    plane = PlaneBackend(backend, cells)
    names = ("Lily", "Tom", "Ben", "Mia", "Sam", "Anna", "Max", "Sue")
    things = ("ball", "dog", "tree", "cake", "boat", "bird")
    texts = [f"One day, {name} saw a {thing}" for name in names for thing in things]
    requests = [Request(str(n), prompt=text, max_new_tokens=24) for n, text in enumerate(texts)]
    shots = " ".join(
        f"{name} had a {thing}. Who had the {thing}? {name}."
        for name, thing in zip(names, things, strict=False)
    )
    choices = [Choice(f"{shots} {text}. Who saw it?", f" {name}") for text in texts for name in names[:4]]

    def alone(n: int, ask: Callable[[], Any]) -> Any:
        fill(trainable_parameters(model), cells[n])
        return ask()

    def one_by_one(ask: Callable[[], Any]) -> Callable[[], list[Any]]:
        return lambda: [alone(n, ask) for n in range(NUM_CELLS)]

    def whole() -> Any:
        """Every context from its first token."""
        cost = likelihoods._TOKENS_OF_A_PASS["cpu"]
        likelihoods._TOKENS_OF_A_PASS["cpu"] = 1 << 40
        try:
            return backend.likelihoods(choices)
        finally:
            likelihoods._TOKENS_OF_A_PASS["cpu"] = cost

    write = {
        "plane": lambda: plane.generate(list(range(NUM_CELLS)), [[one] * NUM_CELLS for one in requests]),
        "alone": one_by_one(lambda: backend.generate(requests)),
    }
    read = {
        "plane": lambda: [plane.of(n).likelihoods(choices) for n in range(NUM_CELLS)],
        "alone": one_by_one(lambda: backend.likelihoods(choices)),
        "generate": one_by_one(whole),
    }
    write_s, texts = fastest(write, rounds)
    same_texts = [list(column) for column in zip(*texts["plane"], strict=True)] == texts["alone"]
    read_s, said = fastest(read, rounds)
    found = said["plane"]
    num_tokens = [len(encoder.encode_pair(one.context, one.continuation)[1]) for one in choices]

    def apart(known: Any) -> float:
        return max(
            abs(mine.log_probability - theirs.log_probability) / number
            for one, other in zip(found, known, strict=True)
            for mine, theirs, number in zip(one, other, num_tokens, strict=True)
        )

    same_choices = all(
        mine.is_greedy == theirs.is_greedy
        for one, other in zip(found, said["generate"], strict=True)
        for mine, theirs in zip(one, other, strict=True)
    )
    return {
        "48 texts of 24 tokens": summary(write_s, same_texts, 0.0),
        "192 choices behind shared examples": summary(read_s, same_choices, apart(said["alone"]))
        | {"largest_difference_to_whole_contexts_nats_per_token": apart(said["generate"])},
    }


def summary(seconds: dict[str, float], same: bool, difference: float) -> dict[str, Any]:
    return {
        "seconds_per_cell": {way: value / NUM_CELLS for way, value in seconds.items()},
        "ratio": {way: value / seconds["plane"] for way, value in seconds.items() if way != "plane"},
        "texts_equal": same,
        "largest_difference_nats_per_token": difference,
        "cells_at_once": {
            "tokens_of_a_pass": evaluating._TOKENS_OF_A_PASS["cpu"],
            "rows_of_a_pass": evaluating._ROWS_OF_A_PASS["cpu"],
        },
    }


def fastest(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by way, each in turn, round by round; and what each said."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    said: dict[str, Any] = {}
    for _ in range(rounds):
        for way, measure in ways.items():
            started = time.process_time()
            said[way] = measure()
            found[way].append(time.process_time() - started)
    return {way: min(values) for way, values in found.items()}, said


if __name__ == "__main__":
    sys.exit(main())
