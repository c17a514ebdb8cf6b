"""What a trained model is worth on its own dataset, without the swept weights: likelihoods by role, answers by rule.

A weighted evaluation loss is smaller *because* the weight is smaller; nothing here sees a weight. Public benchmarks
are `train.benchmarks`'.

Letters: I rows (items) of a split, R roles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.batches import collate, micro_batches
from train.config import EvalConfig
from train.distributed import World
from train.embedded.scoring import is_exact_answer, meets_constraint
from train.items import Items, half_of, score
from train.loss import nll_sums_by_role_and_row
from train.metrics import MEASURES
from train.spans import Role
from train.tokens import TokenData, TokenSplit

_NLL_PADDED_TOKENS = 8192  # held at once while measuring likelihoods
DATASET, ROBUSTNESS = "dataset", "robustness"  # the benchmarks of a run's own dataset
_BENCHMARK_OF_SPLIT = {"validation": DATASET, "test": DATASET, "robustness": ROBUSTNESS}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a run (see `train.metrics`), and what each item added to them."""

    metrics: Mapping[str, float]
    items: tuple[Items, ...] = ()


@dataclass(slots=True, eq=False)
class _Measured:
    """One split: its metrics, and by measure each row's value and what it weighs in the mean."""

    metrics: dict[str, float] = field(default_factory=dict)
    values: dict[str, NDArray[numpy.float64]] = field(default_factory=dict)
    weights: dict[str, NDArray[numpy.float64]] = field(default_factory=dict)
    outputs: list[str | None] = field(default_factory=list)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: TokenData,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
    *,
    protocol: str = "",
) -> Evaluation:
    """Every metric of every split but train. A metric without a row is absent, never 0.

    The ranks of a world divide the batches of one process among them, and each gets the same metrics.
    protocol   fingerprint of the dataset and of how it is asked: that of the items.
    """
    metrics: dict[str, float] = {}
    measured: dict[str, tuple[TokenSplit, _Measured]] = {}
    for name, split in data.splits.items():
        if name == "train" or not len(split.row_ids):
            continue
        found = _likelihoods(model, split, device, world)
        if config.generate and any(check is not None for check in split.checks):
            _add_answers(found, model, split, config, tokenizer, device, world)
        metrics |= {f"{name}_{key}": value for key, value in found.metrics.items() if math.isfinite(value)}
        measured[name] = split, found
    items = [
        _items(benchmark, {name: measured[name] for name in names}, protocol)
        for benchmark in (DATASET, ROBUSTNESS)
        if (names := [name for name in measured if _BENCHMARK_OF_SPLIT[name] == benchmark])
    ]
    for one in items:
        if one.benchmark == ROBUSTNESS:  # whose halves have no metrics of their own above
            metrics |= {
                f"{half}_{ROBUSTNESS}.{column}": found.mean
                for half in ("validation", "test")
                for column in one.values
                if (found := score(one, column, half)) is not None
            }
    return Evaluation(metrics, tuple(items))


def _items(benchmark: str, splits: Mapping[str, tuple[TokenSplit, _Measured]], protocol: str) -> Items:
    """The rows of the splits one after another; robustness rows are halved by their ids."""
    row_ids = [row_id for split, _ in splits.values() for row_id in split.row_ids]
    halves = [
        half_of(benchmark, row_id) if name == ROBUSTNESS else name
        for name, (split, _) in splits.items()
        for row_id in split.row_ids
    ]
    checks = [check or {} for split, _ in splits.values() for check in split.checks]
    columns = [name for name in MEASURES if any(name in found.values for _, found in splits.values())]

    def joined(which: str, column: str, absent: float) -> NDArray[numpy.float64]:
        parts = [
            getattr(found, which).get(column, numpy.full(len(split), absent))
            for split, found in splits.values()
        ]
        return numpy.concatenate(parts)

    weighted = {name for _, found in splits.values() for name in found.weights}
    outputs = [text for split, found in splits.values() for text in found.outputs or [None] * len(split)]
    return Items(
        benchmark=benchmark,
        protocol=protocol,
        metrics={name: MEASURES[name] for name in columns},
        item_ids=tuple(row_ids),
        clusters=tuple(
            str(check.get("family", row_id)) for check, row_id in zip(checks, row_ids, strict=True)
        ),
        splits=tuple(halves),
        values={name: joined("values", name, math.nan) for name in columns},
        weights={name: joined("weights", name, 0.0) for name in columns if name in weighted},
        outputs=tuple(outputs) if any(text is not None for text in outputs) else (),
    )


def _likelihoods(model: nn.Module, split: TokenSplit, device: torch.device, world: World) -> _Measured:
    """Unweighted nll per target token and per UTF-8 byte of text, for prompt and response tokens apart.

    Units    nats/token; bits/byte. The end-of-sequence token counts as a response token of no bytes.
    """
    lengths = (split.offsets[1:] - split.offsets[:-1]).tolist()
    values_2R = torch.zeros(2, len(Role), dtype=torch.float64, device=device)  # nll, tokens
    values_2IR = torch.zeros(2, len(lengths), len(Role), dtype=torch.float64, device=device)
    batches = micro_batches(range(len(lengths)), lengths, _NLL_PADDED_TOKENS)
    for rows in islice(batches, world.rank, None, world.size):
        batch = collate(split, rows, device)
        logits = model(input_ids=batch.ids_BT).logits
        sums, counts, by_row, counts_by_row = nll_sums_by_role_and_row(logits, batch.ids_BT, batch.roles_BT)
        values_2R[0] += sums
        values_2R[1] += counts
        values_2IR[0, rows], values_2IR[1, rows] = by_row.double(), counts_by_row.double()
    sums_R, counts_R = world.add(values_2R).cpu()
    sums_IR, counts_IR = world.add(values_2IR).cpu().numpy()
    bytes_R = split.role_bytes.sum(axis=0)
    found = _Measured()
    for role in (Role.PROMPT, Role.RESPONSE):
        key = role.name.lower()
        if counts_R[role]:
            found.metrics[f"{key}_nll"] = float(sums_R[role] / counts_R[role])
            _add_ratio(found, f"{key}_nll", sums_IR[:, role], counts_IR[:, role])
        if bytes_R[role]:
            found.metrics[f"{key}_bits_per_byte"] = float(sums_R[role]) / (math.log(2) * float(bytes_R[role]))
            _add_ratio(
                found, f"{key}_bits_per_byte", sums_IR[:, role] / math.log(2), split.role_bytes[:, role]
            )
    return found


def _add_ratio(
    found: _Measured, name: str, sums_I: NDArray[numpy.float64], weights_I: NDArray[numpy.generic]
) -> None:
    """A column that is a ratio in each row, weighing its denominator; absent where that is 0."""
    weights = weights_I.astype(numpy.float64)
    found.weights[name] = weights
    found.values[name] = numpy.where(weights > 0, sums_I / numpy.where(weights > 0, weights, 1), math.nan)


def _add_answers(
    found: _Measured,
    model: nn.Module,
    split: TokenSplit,
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World,
) -> None:
    """Greedy answers to the rows that carry a verifiable one, and the signs of a broken model beside them."""
    rows = [row for row, check in enumerate(split.checks) if check is not None]
    outputs = generate(model, [_prompt_ids(split, row) for row in rows], config, tokenizer, device, world)
    texts = tokenizer.batch_decode([tokens for tokens, _ in outputs], skip_special_tokens=True)  # type: ignore[attr-defined]
    checks = [split.checks[row] or {} for row in rows]
    adherence = [
        meets_constraint(text, check.get("constraint")) for text, check in zip(texts, checks, strict=True)
    ]
    measured: dict[str, list[bool | int | None]] = {
        "exact_answer": [is_exact_answer(text, check) for text, check in zip(texts, checks, strict=True)],
        "empty_output_rate": [not text.strip() for text in texts],
        "truncated_output_rate": [not ended for _, ended in outputs],
        "mean_output_tokens": [len(tokens) for tokens, _ in outputs],
        "constraint_adherence": list(adherence),
    }
    for name, values in measured.items():
        present = [value for value in values if value is not None]
        if present:
            found.metrics[name] = sum(present) / len(present)
            found.values[name] = numpy.full(len(split), math.nan)
            found.values[name][rows] = [math.nan if value is None else float(value) for value in values]
    found.outputs = [None] * len(split)
    for row, text in zip(rows, texts, strict=True):
        found.outputs[row] = text


def generate(
    model: nn.Module,
    prompts: Sequence[list[int]],
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
    world: World = World(),
) -> list[tuple[list[int], bool]]:
    """Greedy continuations, without their end token, and whether each ended by itself.

    Prompts of similar length share a batch, padded on the left, so that padding costs little.
    """
    end_id: int = tokenizer.eos_token_id  # type: ignore[attr-defined]
    pad_id = getattr(tokenizer, "pad_token_id", None)
    pad_id = end_id if pad_id is None else pad_id
    # Each new token plus one, 0 where there is none: sums over ranks bring them together.
    found_NT = torch.zeros(len(prompts), config.max_new_tokens, dtype=torch.int64, device=device)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    starts = range(0, len(order), config.batch_rows)
    for start in starts[world.rank :: world.size]:
        chunk = order[start : start + config.batch_rows]
        longest = max(len(prompts[index]) for index in chunk)
        ids_BT = torch.full((len(chunk), longest), pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, index in enumerate(chunk):
            ids_BT[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask_BT[row, longest - len(prompts[index]) :] = 1
        generated: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            do_sample=False,
            use_cache=True,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=pad_id,
        )
        new_BT = generated[:, longest:]
        found_NT[torch.tensor(chunk, device=device), : new_BT.shape[1]] = new_BT + 1
    outputs: list[tuple[list[int], bool]] = []
    for row in world.add(found_NT).tolist():
        tokens = [value - 1 for value in row if value]
        ended = end_id in tokens
        outputs.append((tokens[: tokens.index(end_id)] if ended else tokens, ended))
    return outputs


def _prompt_ids(split: TokenSplit, row: int) -> list[int]:
    start = int(split.offsets[row])
    return split.ids[start : start + int(split.prompt_lengths[row])].tolist()
