"""Robustness to held-out wordings of the embedded world: POSIX over a wording of training and those kept from it.

Runs on the embedded dataset measure it with all else (`measure_wordings`); `evaluate eval=wordings` adds it, under
the same name and protocol, to finished runs that were trained before it existed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from train.benchmarks.config import benchmark_configs, effective_limit
from train.benchmarks.evaluation import Measured, items_sha256, measured_of, scores_of
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.identity import asked_protocols
from train.benchmarks.interface import Backend, Context, Output, Request
from train.benchmarks.posix import COLUMNS, model_of, sensitivity_columns
from train.benchmarks.prompts import PromptEncoder
from train.config import RunConfig
from train.embedded.intents import Intent, make_intents
from train.embedded.tasks import FAMILIES
from train.items import HALVES, Items
from train.metrics import MEASURES
from train.sensitivity.scoring import score_answers_one_by_one
from train.sensitivity.sets import score_answers_of_sets

WORDINGS = "wordings"  # the benchmark's name in a run's own record
_NUM_INTENTS = len(FAMILIES) * len(HALVES)


def make_benchmark(name: str, config: Any, context: Context) -> "Wordings":
    """The questions are the same for every dataset.split_seed: training sees none of them."""
    limit = effective_limit(config, context.eval.limit)
    return Wordings(name, config, context, _intents(config.seed, limit or _NUM_INTENTS))


# A worker measures many runs with one tokenizer.
_intents = lru_cache(maxsize=8)(make_intents)
_encoder = lru_cache(maxsize=1)(PromptEncoder)


class Wordings:
    """See `train.benchmarks.interface.Benchmark`."""

    def __init__(self, name: str, config: Any, context: Context, intents: Sequence[Intent]) -> None:
        self.name, self.protocol = name, context.protocol
        self._config, self._intents = config, intents

    def requests(self, outputs: Mapping[str, Output]) -> Sequence[Request]:
        """None: answers are written where they are scored."""
        return []

    def score(self, outputs: Mapping[str, Output], backend: Backend) -> Items:
        """psi of every question."""
        held = model_of(backend)
        end_id, pad_id = held.tokenizer.eos_token_id, held.tokenizer.pad_token_id
        sets = [
            [held.encoder.encode(Request("", messages=(("user", prompt),))) for prompt in intent.prompts]
            for intent in self._intents
        ]
        settings = {
            "max_new_tokens": self._config.max_new_tokens,
            "end_id": end_id,
            "pad_id": end_id if pad_id is None else pad_id,
            "device": held.device,
        }
        try:
            scored = score_answers_of_sets(held.model, sets, **settings)
        except (TypeError, ValueError, NotImplementedError) as error:  # no position ids, or no cache
            print(f"{self.name}: scored one by one ({type(error).__name__}: {error})", flush=True)
            scored = [score_answers_one_by_one(held.model, wordings, **settings) for wordings in sets]
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={column: MEASURES[column] for column in COLUMNS},
            item_ids=tuple(intent.intent_id for intent in self._intents),
            clusters=tuple(intent.family for intent in self._intents),
            splits=tuple(intent.half for intent in self._intents),
            values=sensitivity_columns(
                scored, end_id, compat="paper", max_new_tokens=self._config.max_new_tokens
            ),
        )


def measure_wordings(
    model: nn.Module, tokenizer: Any, config: RunConfig, device: torch.device
) -> tuple[Measured, Items] | None:
    """Of a run, as `evaluate eval=wordings` would measure it; None where its dataset asks no held-out wordings."""
    dataset = config.dataset
    if dataset.source != "embedded" or not dataset.num_robustness_rows or not config.eval.generate:
        return None
    asked = dataclasses.replace(
        config.eval, benchmarks={WORDINGS: {"kind": WORDINGS}}, aggregates={}, limit=None
    )
    protocols = asked_protocols(asked, None)
    benchmark = make_benchmark(
        WORDINGS,
        benchmark_configs(asked.benchmarks)[WORDINGS],
        Context(eval=asked, protocol=protocols[WORDINGS], cache_folder=None),
    )
    encoder = _encoder(
        tokenizer,
        template=config.model.template,
        model_add_bos=config.model.add_bos,
        add_bos=config.eval.add_bos,
    )
    items = benchmark.score({}, HFBackend(model, tokenizer, device, encoder, context_length=None))
    scores = {WORDINGS: scores_of(items)}
    return measured_of(scores, {}, protocols, {WORDINGS: items_sha256(items)[:12]}), items
