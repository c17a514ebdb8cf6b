"""How many runs are trained at once: what is asked for, or what is measured to be the fastest.

Where a step is bound by arithmetic a stack gains nothing, and may lose; where it is bound by calls, it gains several
times. So a few real steps are measured, alone and in stacks of some sizes, in turns. A stack is taken only where it
won every turn. What was measured is kept for all like runs of the root, on a like device.
"""

import contextlib
import fcntl
import hashlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.attention import packed_attention
from train.batches import used_lengths
from train.config import RunConfig
from train.distributed import World
from train.engine import choose_packing, prepared
from train.failures import failure_kind
from train.files import read_json, write_json_atomic
from train.heads import base_model, choose_path
from train.model import trainable_parameters
from train.objective import role_weights
from train.schedule import num_steps
from train.stacked.stacking import stacked
from train.stacked.step import StackedStepper
from train.step import Engine
from train.tokens import TokenSplit

SHARE = 0.02  # of the work that is decided on, that may be spent on measuring
CLEAR = 1.02  # times as fast as alone, in every turn
TURNS, MOST_TURNS = 2, 4
_SAID = (
    "method lora_rank optimizer clip_norm batch_size micro_batch_tokens precision head packing num_threads"
)
SMALL = 6  # the size measured beside the largest


@dataclass(frozen=True, slots=True)
class Choice:
    """So many runs in one stack, why, and the seconds of a step and run that were measured by size of stack."""

    size: int
    why: str
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])

    def described(self, size: int) -> dict[str, Any]:
        """For the record of a run that was trained in a stack of `size`."""
        measured = {"seconds_per_run_and_step": dict(self.seconds)} if self.seconds else {}
        return {"runs": size, "why": self.why, **measured}


def choose(
    model: nn.Module,
    split: TokenSplit,
    config: RunConfig,
    device: torch.device,
    *,
    most: int,
    num_alike: int,
    folder: Path | None,
) -> Choice:
    """How many runs like this one, `most` at most, to train at once. The model's parameters are spent.

    num_alike   runs as long as this one that the answer is for; few or short ones aren't worth measuring
    folder      where measurements are kept; None: nowhere
    """
    path = None if folder is None else folder / f"{_key(model, split, config, device)}.json"
    with _alone_at(path):
        values = (read_json(path) or {}) if path is not None else {}
        if "turns" not in values:
            measured = _measured(model, split, config, device, most, num_alike)
            if not measured:
                return Choice(1, "too little work to measure what is faster")
            values = {"turns": {str(size): turns for size, turns in measured.items()}}
            if path is not None:
                write_json_atomic(path, values)
    return decided({int(size): turns for size, turns in values["turns"].items()}, most)


def decided(turns: Mapping[int, Sequence[float]], most: int) -> Choice:
    """The size that won all its turns by the most. Pure.

    turns   by size of stack: seconds of a step and run in each turn, the first of every size beside each other;
            none for a size that didn't fit in memory
    """
    alone = turns[1]
    gains = {
        size: [one / other for one, other in zip(alone, seconds, strict=True)]
        for size, seconds in turns.items()
        if size > 1 and seconds
    }
    seconds = {str(size): statistics.median(values) for size, values in turns.items() if values}
    clear = {size: statistics.median(gain) for size, gain in gains.items() if min(gain) >= CLEAR}
    if not clear:
        return Choice(1, "measured: no stack is clearly faster than a run alone", seconds)
    best = max(clear, key=lambda size: clear[size])
    why = f"measured: {clear[best]:.2f} times as fast in stacks of {best} as alone"
    if best <= most:
        return Choice(best, why, seconds)
    between = [size for size in gains if size < most]
    if all(size in clear for size in between):
        return Choice(most, why, seconds)
    return Choice(max((size for size in between if size in clear), default=1), why, seconds)


def _measured(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device, most: int, num_alike: int
) -> dict[int, list[float]]:
    """Seconds of a step and run by size and turn; {} where measuring would cost more than its share."""
    steps = num_steps(config.train, len(split.row_ids))
    budget = SHARE * steps * num_alike  # in steps of a run alone, which is the most that a stack's can cost

    def cost(sizes: Sequence[int]) -> float:
        return TURNS * 2 * sum(sizes)

    plans = [sizes for sizes in ([1, SMALL, most], [1, most], [1, SMALL]) if sizes[-1] <= most]
    sizes = next((sorted(set(sizes)) for sizes in plans if cost(sizes) <= budget), None)
    if sizes is None or steps < 3:
        return {}
    turns: dict[int, list[float]] = {size: [] for size in sizes}
    fits = dict.fromkeys(sizes, True)
    for _ in range(min(MOST_TURNS, int(budget // (2 * sum(sizes))))):
        for size in sizes:
            if not fits[size]:
                continue
            problem = _turn(model, split, config, device, size, steps, turns[size])
            if problem:
                fits[size], turns[size] = False, []
    return turns


def _turn(
    model: nn.Module,
    split: TokenSplit,
    config: RunConfig,
    device: torch.device,
    size: int,
    steps: int,
    seconds: list[float],
) -> str:
    """A step to get going, then one that is timed. Why it couldn't be done, if it is memory."""
    try:
        model.train()
        with (_alone if size == 1 else _together)(model, split, config, device, size) as step:
            step(0, steps)
            started = _clock(config, device)
            step(1, steps)
            seconds.append((_clock(config, device) - started) / size)
        return ""
    except Exception as error:
        if size == 1 or failure_kind(error) not in ("cuda_oom", "host_oom"):
            raise
        problem = str(error)
    finally:
        model.eval()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return problem


@contextlib.contextmanager
def _alone(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device, size: int
) -> Iterator[Callable[[int, int], object]]:
    with prepared(model, split, config, device, World()) as training:
        yield training.stepper.step


@contextlib.contextmanager
def _together(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device, size: int
) -> Iterator[Callable[[int, int], object]]:
    recipe = config.train
    path = choose_path(model, recipe.head, device)
    packing, _ = choose_packing(model, recipe, device)
    with contextlib.ExitStack() as undo:
        if packing != "pad":
            undo.enter_context(packed_attention(base_model(model)))
        stack = undo.enter_context(stacked(model, size, recipe.method))
        engine = Engine(path, packing, False, World())
        yield StackedStepper(stack, split, [config] * size, device, path, engine).step


def _clock(config: RunConfig, device: torch.device) -> float:
    """Of the processor where one thread does all the work: others on a busy machine don't count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif config.train.num_threads == 1:
        return time.process_time()
    return time.perf_counter()


def _key(model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device) -> str:
    """Names what decides how long a step takes: shapes of model and rows, recipe, device, versions."""
    recipe = config.train
    lengths = sorted(used_lengths(split, role_weights(config.objective)))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    said = {
        "model": [type(base_model(model)).__name__, *(list(each.shape) for each in model.parameters())],
        "trained": len(trainable_parameters(model)),
        "rows": [len(lengths), lengths[len(lengths) // 2], lengths[-1]],
        "recipe": [getattr(recipe, word) for word in _SAID.split()],
        "machine": [platform.node() if device.type == "cpu" else "", platform.machine(), name],
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone_at(path: Path | None) -> Iterator[None]:
    """One process measures; the others wait for what it finds."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
