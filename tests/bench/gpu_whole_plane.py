"""A whole plane of LIMA-shaped rows, for bench_gpu.py: all rays in one process, and a process for each ray.

Each process starts from nothing, as a job does: it imports, reads the checkpoint and the rows from disk, tokenises,
trains one epoch of LoRA, measures both held-out splits and writes records and adapters, by `train.plane.run_plane` or
`train.run.run`, which workers call. A first process, not counted, fills the caches of files and kernels. What one
process of many costs beside the others is left out: they come one after another, with the device to themselves.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "unit"), str(HERE)]

RAYS = {"1b": 21, "small": 3}
ROWS = {"1b": 1030, "small": 24}  # LIMA's
HELD_OUT = {"1b": 64, "small": 4}  # rows, of each split
LONGEST = {"1b": 2048, "small": 24}  # tokens of a row
ROOM = {"1b": 65_536, "small": 4096}  # tokens of all cells at once, activations kept
LONGEST_S = 420.0  # no further process is begun after so long


def whole_plane(device: Any, result: dict[str, Any]) -> dict[str, Any]:
    """Seconds of both ways, process starts included, and how far apart what they measured is."""
    shape = "1b" if device.type == "cuda" else "small"
    rays = list(range(RAYS[shape]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, shape, device)
        in_own_process(folder, shape, rays[:1])
        together = in_own_process(folder, shape, rays)
        started = time.monotonic()
        each: dict[int, dict[str, Any]] = {}
        # from both ends and the middle, so that a part of them is like all of them
        for ray in sorted(rays, key=lambda ray: (ray * 8) % len(rays)):
            if time.monotonic() - started < LONGEST_S:
                each[ray] = in_own_process(folder, shape, [ray])
    return compared(together, each)


def compared(together: dict[str, Any], each: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One process against so many: of those that weren't measured, the mean stands."""
    walls = [found["wall_s"] for found in each.values()]
    number = len(together["runs"])
    known = {ray: run["nll"] for ray, run in zip(range(number), together["runs"], strict=True)}
    return {
        "rays": number,
        "one_process": together,
        "processes": {
            "measured": len(each),
            "wall_s_each": {
                "median": statistics.median(walls),
                "least": min(walls),
                "largest": max(walls),
            },
            "wall_s_of_all": statistics.fmean(walls) * number,
            "ready_s": statistics.median(found["ready_s"] for found in each.values()),
        },
        "one_process_wall_s_per_ray": together["wall_s"] / number,
        "over_processes": statistics.fmean(walls) * number / together["wall_s"],
        "largest_difference_nats_per_token": max(
            abs(found["runs"][0]["nll"] - known[ray]) for ray, found in each.items()
        ),
    }


def write_inputs(folder: Path, shape: str, device: Any) -> None:
    """A checkpoint of the shape with the embedded tokenizer, and rows of log-normal lengths."""
    import numpy
    import torch
    from gpu_peers import model_of
    from transformers.utils import logging

    from train.config import ModelConfig
    from train.tokenizer import load_tokenizer

    logging.disable_progress_bar()
    model = model_of(shape, device, torch.bfloat16)
    model.save_pretrained(folder / "model")  # type: ignore[operator]
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tokenizer = load_tokenizer(ModelConfig(name="embedded", source="embedded"))
    tokenizer.save_pretrained(folder / "model")
    generator = numpy.random.default_rng(0)
    words = [word for word in tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    lengths = numpy.clip(
        generator.lognormal(5.9, 0.9, ROWS[shape] + 2 * HELD_OUT[shape]), 8, LONGEST[shape] - 2
    ).astype(int)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as stream:
        for length in lengths:
            said = [word[1:] for word in generator.choice(words, length)]
            cut = max(2, length // 4)
            row = {"prompt": " ".join(said[:cut]), "response": " ".join(said[cut:])}
            stream.write(json.dumps(row) + "\n")


def in_own_process(folder: Path, shape: str, rays: list[int]) -> dict[str, Any]:
    """What `measure` says, and the wall time from before the process began until it ended."""
    said = folder / "said.json"
    started = time.perf_counter()
    words = [sys.executable, __file__, str(folder), shape, *map(str, rays)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    finished = subprocess.run(words, env=environment, capture_output=True, text=True)
    wall_s = time.perf_counter() - started
    if finished.returncode:
        raise RuntimeError(f"rays {rays}: {finished.stderr[-1000:]}")
    return {"wall_s": wall_s, **json.loads(said.read_text())}


def measure(folder: Path, shape: str, rays: list[int]) -> dict[str, Any]:
    """Train and measure these rays in this process, as a worker does, with what it took."""
    import torch

    from sweep.timesheets import process_started_at
    from train.plane import Member, best_company, run_plane
    from train.record import RunRecord
    from train.run import run
    from train.workbench import Workbench

    ready_s = time.time() - process_started_at()
    identities = {"model_identity": "model", "dataset_identity": "rows"}
    configs = [ray_config(folder, shape, ray, len(rays)) for ray in rays]
    bench, found, size = Workbench(None), dict[str, RunRecord](), 1
    with tempfile.TemporaryDirectory() as name:
        places = {f"{ray:032x}": config for ray, config in zip(rays, configs, strict=True)}
        about = {
            one: {"run_id": one, "fingerprint": one, "folder": Path(name, one), "attempt": 1}
            for one in places
        }
        heard = {"should_stop": lambda: False, "on_progress": lambda step, steps: None}
        if len(rays) == 1:
            (one,) = places
            found[one] = run(configs[0], workbench=bench, **about[one], **identities, **heard)
        else:
            how, started = {"workbench": bench, **identities}, time.monotonic()
            choice = best_company(configs[0], most=len(rays), num_alike=len(rays), **how)
            size = choice.size
            run_plane(
                [Member(config=config, **about[one], **heard) for one, config in places.items()],
                choice,
                spent_s=time.monotonic() - started,
                should_stop=lambda: False,
                ended=lambda member, what: found.__setitem__(member.fingerprint, ended_well(what)),
                **how,
            )
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {
        "ready_s": ready_s,
        "asked_at_once": size,
        "peak_gb": peak,
        "runs": [
            {
                "nll": found[one].metrics["validation_response_nll"],
                "setup_s": found[one].setup_s,
                "training_s": found[one].training_s,
                "evaluation_s": found[one].evaluation_s,
                "tokens_per_s": found[one].tokens_per_s,
                "stacked": found[one].environment.get("stacked", 1),
            }
            for one in places
        ],
    }


def ended_well(what: Any) -> Any:
    """The record; what went wrong is raised."""
    if isinstance(what, Exception):
        raise what
    if what.outcome != "finished":
        raise RuntimeError(f"{what.run_id}: {what.failure}")
    return what


def ray_config(folder: Path, shape: str, ray: int, number: int) -> Any:
    """A ray from (0, 1) to (1, 1); micro-batches for which `number` cells have room."""
    from train.compose import compose_run

    held = ROOM[shape] // max(4, number)
    words = [
        "model=local",
        f"model.path={folder / 'model'}",
        "model.template=raw",
        "dataset=local",
        f"dataset.path={folder / 'rows.jsonl'}",
        f"dataset.max_tokens={LONGEST[shape]}",
        f"dataset.num_validation_rows={HELD_OUT[shape]}",
        f"dataset.num_test_rows={HELD_OUT[shape]}",
        f"objective.prompt_weight={ray / (RAYS[shape] - 1)}",
        "objective.response_weight=1",
        "seed=0",
        "train=lora",
        "train.epochs=1",
        f"train.micro_batch_tokens={max(LONGEST[shape], held)}",
        f"train.plane={RAYS[shape]}",
        "keep=all",
    ]
    if shape == "small":
        words += ["train.batch_size=8", "train.num_threads=1"]
    return compose_run(words)


if __name__ == "__main__":
    (_folder, _shape, *_rays) = sys.argv[1:]
    (Path(_folder) / "said.json").write_text(
        json.dumps(measure(Path(_folder), _shape, list(map(int, _rays))))
    )
