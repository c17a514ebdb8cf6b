"""How many runs are trained at once: what is asked for, or what is measured to be the fastest.

Where a step is bound by arithmetic a stack gains nothing, and may lose; where it is bound by calls, it gains several
times. So a few real steps are measured, alone and in stacks of some sizes, in turns. A stack is taken only where it
won every turn. What was measured is kept for all like runs of the root, on a like device.

A pass of a stack holds its size times train.micro_batch_tokens, for which a GPU may lack the memory. There stacks are
also measured with smaller micro-batches of each run, never with larger ones than the recipe's. Only there: the cut
decides the order of float sums, and on a CPU a clock must not decide the bits of a run, which in float32 are those of
the run alone. On a GPU a stack's differ from these anyway; a run alone takes the recipe's micro-batches everywhere.
"""

import contextlib
import fcntl
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from train.attention import packed_attention
from train.batches import rows_of_step, used_lengths
from train.config import RunConfig
from train.distributed import World
from train.engine import choose_packing, prepared
from train.failures import MEMORY, failure_kind
from train.files import read_json, write_json_atomic
from train.heads import base_model, choose_path
from train.model import trainable_parameters
from train.objective import role_weights
from train.schedule import num_steps
from train.seeds import seed_of
from train.stacked.choice import Choice, Way, decided, way_of
from train.stacked.stacking import stacked
from train.stacked.step import StackedStepper
from train.step import Engine
from train.tokens import TokenSplit

SHARE = 0.02  # of the work that is decided on, that may be spent on measuring
TURNS, MOST_TURNS = 2, 4
_SAID = (
    "method lora_rank optimizer clip_norm batch_size micro_batch_tokens precision head packing num_threads"
)
SMALL = 6  # the size measured beside the largest
_CUT_ON = ("cuda",)
_PASSES = (4, 1)  # of a run alone, whose tokens a stack's pass may hold


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
            values = {
                "turns": {str(way): turns for way, turns in measured.items()},
                "step_tokens": _tokens_of_step(split, config),
            }
            if path is not None:
                write_json_atomic(path, values)
    choice = decided({way_of(text): turns for text, turns in values["turns"].items()}, most)
    return replace(choice, step_tokens=values.get("step_tokens", 0))


def _measured(
    model: nn.Module, split: TokenSplit, config: RunConfig, device: torch.device, most: int, num_alike: int
) -> dict[Way, list[float]]:
    """Seconds of a step and run by way and turn; {} where measuring would cost more than its share."""
    steps = num_steps(config.train, len(split.row_ids))
    budget = SHARE * steps * num_alike  # in steps of a run alone, which is the most that a stack's can cost

    def cost(ways: Sequence[Way]) -> float:
        return TURNS * 2 * sum(way.size for way in ways)

    def ways_of(sizes: Sequence[int], is_cut: bool) -> list[Way]:
        stacks = [
            Way(size, tokens)
            for size in sizes
            for tokens in (0, *(smaller_micro_batches(size, split, config, device) if is_cut else ()))
        ]
        return sorted({Way(1), *stacks})

    plans = (
        ways_of(sizes, is_cut)
        for sizes in ((SMALL, most), (most,), (SMALL,))
        for is_cut in (True, False)
        if max(sizes) <= most
    )
    ways = next((ways for ways in plans if cost(ways) <= budget), None)
    if ways is None or steps < 3:
        return {}
    turns: dict[Way, list[float]] = {way: [] for way in ways}
    fits = dict.fromkeys(ways, True)
    for _ in range(min(MOST_TURNS, int(budget // (2 * sum(way.size for way in ways))))):
        for way in ways:
            if not fits[way]:
                continue
            problem = _turn(model, split, config, device, way, steps, turns[way])
            if problem:
                fits[way], turns[way] = False, []
    return turns


def smaller_micro_batches(size: int, split: TokenSplit, config: RunConfig, device: torch.device) -> list[int]:
    """Tokens of a run's micro-batch with which a pass of `size` runs holds as much as 4 passes of a run, and as one.

    Only where that cuts a step into more of them, and a clock may decide it (see above).
    """
    if device.type not in _CUT_ON:
        return []
    lengths = used_lengths(split, role_weights(config.objective))
    limit = min(config.train.micro_batch_tokens, _tokens_of_step(split, config))
    found = {max(max(lengths), share * config.train.micro_batch_tokens // size) for share in _PASSES}
    return sorted((tokens for tokens in found if tokens < limit), reverse=True)


def _tokens_of_step(split: TokenSplit, config: RunConfig) -> int:
    """That are computed in the step that is timed."""
    lengths = used_lengths(split, role_weights(config.objective))
    rows = rows_of_step(
        1,
        num_rows=len(lengths),
        batch_size=config.train.batch_size,
        data_order_seed=seed_of(config, "data_order"),
    )
    return sum(lengths[row] for row in rows)


def _turn(
    model: nn.Module,
    split: TokenSplit,
    config: RunConfig,
    device: torch.device,
    way: Way,
    steps: int,
    seconds: list[float],
) -> str:
    """A step to get going, then one that is timed. Why it couldn't be done, if it is memory."""
    try:
        model.train()
        made = (_alone if way.size == 1 else _together)(model, split, way.applied(config), device, way.size)
        with made as step:
            step(0, steps)
            started = _clock(config, device)
            step(1, steps)
            seconds.append((_clock(config, device) - started) / way.size)
        return ""
    except Exception as error:
        if way.size == 1 or failure_kind(error) not in MEMORY:
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
