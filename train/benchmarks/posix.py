"""Prompt sensitivity as a benchmark: sets of wordings that ask the same, and how far the answers' likelihoods move.

An item is a prompt and its wordings. Nothing is generated for the judge; the model itself is the instrument, so
this needs a backend that holds one (HFBackend).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train.benchmarks.config import effective_limit
from train.benchmarks.data_files import check_unique, column, read_rows
from train.benchmarks.interface import Backend, Context, Output, Request
from train.errors import ConfigError, DataError
from train.items import Items, half_of
from train.metrics import MEASURES
from train.sensitivity.posix import prompt_sensitivity
from train.sensitivity.scoring import AnswerScores, score_answers, score_answers_one_by_one
from train.sensitivity.variants import variants

COLUMNS = ("prompt_sensitivity", "empty_output_rate", "mean_output_tokens")


def make_benchmark(name: str, config: Any, context: Context) -> "Posix":
    """Reads the prompts and makes their wordings; DataError or ConfigError names what is wrong."""
    files = config.files(context.eval.data)
    rows = [read_rows(path) for path in files]
    texts = [column(each, config.column, path) for each, path in zip(rows, files, strict=True)]
    check_unique(texts[0], "prompt", files[0])
    for others, path in zip(texts[1:], files[1:], strict=True):
        if len(others) != len(texts[0]):
            raise DataError(
                f"{path} has {len(others):,} rows and {files[0].name} {len(texts[0]):,}",
                "one paraphrase for each prompt, in its order",
            )
    sets = {}
    for place, prompt in list(enumerate(texts[0]))[: effective_limit(config, context.eval.limit)]:
        paraphrases = [others[place] for others in texts[1:]]
        sets[str(place)] = variants(prompt, config.variants, config.seed, config.num_variants, paraphrases)
    return Posix(name, config, context, sets)


class Posix:
    """See `train.benchmarks.interface.Benchmark`."""

    def __init__(self, name: str, config: Any, context: Context, sets: Mapping[str, Sequence[str]]) -> None:
        self.name, self.protocol = name, context.protocol
        self._config, self._context, self._sets = config, context, sets

    def requests(self, outputs: Mapping[str, Output]) -> Sequence[Request]:
        """None: answers are scored from the state they were written in."""
        return []

    def score(self, outputs: Mapping[str, Output], backend: Backend) -> Items:
        """psi of every set."""
        scored = [self._score_set(wordings, backend) for wordings in self._sets.values()]
        keys = tuple(self._sets)
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={column: MEASURES[column] for column in COLUMNS},
            item_ids=keys,
            clusters=keys,
            splits=tuple(half_of(self.name, key, self._context.eval.half_seed) for key in keys),
            values=sensitivity_columns(
                scored,
                model_of(backend).tokenizer.eos_token_id,
                compat=self._config.compat,
                max_new_tokens=self._config.max_new_tokens,
            ),
        )

    def _score_set(self, wordings: Sequence[str], backend: Backend) -> AnswerScores:
        held = model_of(backend)
        ids = [held.encoder.text(wording) for wording in wordings]
        end_id = held.tokenizer.eos_token_id
        pad_id = held.tokenizer.pad_token_id
        settings = {
            "max_new_tokens": self._config.max_new_tokens,
            "end_id": end_id,
            "pad_id": end_id if pad_id is None else pad_id,
            "device": held.device,
        }
        try:
            return score_answers(held.model, ids, **settings)
        except (TypeError, ValueError, NotImplementedError) as error:  # no such mask, or no cache
            print(f"{self.name}: scored one by one ({type(error).__name__}: {error})", flush=True)
            return score_answers_one_by_one(held.model, ids, **settings)


def sensitivity_columns(
    scored: Sequence[AnswerScores], end_id: int, *, compat: Literal["paper", "package"], max_new_tokens: int
) -> dict[str, NDArray[np.float64]]:
    """By set: psi, and the signs of a broken model."""
    written = [[[token for token in answer if token != end_id] for answer in each.answers] for each in scored]
    psi = [
        prompt_sensitivity(
            each.log_probability_NN, each.num_tokens_N, compat=compat, max_new_tokens=max_new_tokens
        )
        for each in scored
    ]
    empty = [float(np.mean([not answer for answer in answers])) for answers in written]
    tokens = [float(np.mean([len(answer) for answer in answers])) for answers in written]
    return {name: np.array(values) for name, values in zip(COLUMNS, (psi, empty, tokens), strict=True)}


def model_of(backend: Backend) -> Any:
    if not hasattr(backend, "model"):
        raise ConfigError(
            f"POSIX needs the model itself, which {type(backend).__name__} doesn't give",
            "the transformers backend",
            "set eval.backend=hf",
        )
    return backend
