"""AlpacaEval as a benchmark: the model's answers against a reference's, by a judge in both orders.

    win_rate                     mean preference for the model's answer (soft, as AlpacaEval 2 weighs it)
    discrete_win_rate            how often the judge prefers it at all, as the WIT paper counts (k / 805)
    length_controlled_win_rate   as if answers were as long as the reference's; version 2's headline

The length-controlled rate is fitted on each half by itself, so that validation and test stay apart; its column
holds pseudo-values, whose mean and standard error are the fit's own.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.benchmarks.columns import OUTPUT_MEASURES, output_values
from train.benchmarks.config import effective_limit
from train.benchmarks.data_files import check_unique, column, read_rows
from train.benchmarks.interface import Backend, Context, Output, Request
from train.errors import DataError
from train.items import HALVES, Items, half_of
from train.judges.alpaca_eval import Pair, Preference, preferences, questions, read_preference
from train.judges.asking import judged
from train.judges.length_control import GamedBaselines, length_controlled_win_rate
from train.metrics import MEASURES

_COLUMNS = (
    "win_rate",
    "discrete_win_rate",
    "length_controlled_win_rate",
    "position_consistency",
    "unjudged_rate",
    *OUTPUT_MEASURES,
)


def make_benchmark(name: str, config: Any, context: Context) -> "AlpacaEval":
    """Reads and checks the files of `config.path`; DataError names what is wrong with which."""
    files = config.files(context.eval.data)
    rows, references = read_rows(files[0]), read_rows(files[1])
    instructions = column(rows, "instruction", files[0])
    check_unique(instructions, "instruction", files[0])
    answers = dict(
        zip(column(references, "instruction", files[1]), column(references, "output", files[1]), strict=True)
    )
    unanswered = next((text for text in instructions if text not in answers), None)
    if unanswered is not None:
        raise DataError(
            f"{files[1]} has no answer to {unanswered[:60]!r}",
            f"a reference for every row of {files[0].name}",
        )
    length_control = _LengthControl.read(files[2], files[3]) if config.length_control else None
    return AlpacaEval(name, config, context, instructions, answers, length_control)


class AlpacaEval:
    """See `train.benchmarks.interface.Benchmark`."""

    def __init__(
        self,
        name: str,
        config: Any,
        context: Context,
        instructions: Sequence[str],
        references: Mapping[str, str],
        length_control: "_LengthControl | None",
    ) -> None:
        self.name, self.protocol = name, context.protocol
        self._config, self._context = config, context
        self._places = list(range(len(instructions)))[: effective_limit(config, context.eval.limit)]
        self._instructions, self._references = instructions, references
        self._length_control = length_control

    def requests(self, outputs: Mapping[str, Output]) -> Sequence[Request]:
        """Each instruction as a user's message."""
        return [
            Request(
                str(place),
                messages=(("user", self._instructions[place]),),
                max_new_tokens=self._config.max_new_tokens,
            )
            for place in self._places
        ]

    def score(self, outputs: Mapping[str, Output], backend: Backend) -> Items:
        """Judged pairs. Raises JudgeError or ConfigError where the judge can't be used; answers are kept."""
        pairs = [
            Pair(
                self._instructions[place],
                self._references[self._instructions[place]],
                outputs[str(place)].text,
            )
            for place in self._places
        ]
        result = judged(self._context, self.name, questions(pairs), read_preference)
        found = preferences(result.verdicts)
        keys = [str(place) for place in self._places]
        splits = [half_of(self.name, key, self._context.eval.half_seed) for key in keys]
        values = {
            "win_rate": _column(found, lambda each: each.mean),
            "discrete_win_rate": _column(found, lambda each: _won(each.mean)),
            "position_consistency": _column(found, lambda each: float(each.is_consistent)),
            "unjudged_rate": np.array([float(each is None) for each in found]),
        }
        signs = [output_values([outputs[key]]) for key in keys]
        values |= {name: np.array([each[name] for each in signs]) for name in OUTPUT_MEASURES}
        if self._length_control is not None:
            values["length_controlled_win_rate"] = self._length_control.column(
                self._places, pairs, values["win_rate"], splits
            )
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={column: MEASURES[column] for column in _COLUMNS if column in values},
            item_ids=tuple(keys),
            clusters=tuple(keys),
            splits=tuple(splits),
            values={column: values[column] for column in _COLUMNS if column in values},
            outputs=tuple(pair.output for pair in pairs),
        )


class _LengthControl:
    """The frozen tables of AlpacaEval 2."""

    def __init__(self, difficulty: NDArray[np.float64], gamed: GamedBaselines) -> None:
        self._difficulty, self._gamed = difficulty, gamed

    @classmethod
    def read(cls, difficulty_path: Path, gamed_path: Path) -> "_LengthControl":
        """Both spellings: our soft labels, or the released df_gamed.csv with its own difficulty column."""
        values = [row.get("instruction_difficulty", "") for row in read_rows(difficulty_path)]
        difficulty = _numbers(values, "instruction_difficulty", difficulty_path)
        rows = read_rows(gamed_path)
        place = _numbers([row.get("index", "") for row in rows], "index", gamed_path).astype(int)
        preference = _numbers([row.get("preference", "") for row in rows], "preference", gamed_path)
        if rows and "tanh_std_delta_len" in rows[0]:
            length = _numbers([row["tanh_std_delta_len"] for row in rows], "tanh_std_delta_len", gamed_path)
        else:
            raw = [row.get("std_delta_len", "") for row in rows]
            length = np.tanh(_numbers(raw, "std_delta_len", gamed_path))
        return cls(difficulty, GamedBaselines(length, difficulty[place], preference))

    def column(
        self,
        places: Sequence[int],
        pairs: Sequence[Pair],
        preference: NDArray[np.float64],
        splits: Sequence[str],
    ) -> NDArray[np.float64]:
        """Pseudo-values of each half's own fit; NaN where a pair has no verdict."""
        result = np.full(len(pairs), math.nan)
        for half in HALVES:
            rows = [
                row for row in range(len(pairs)) if splits[row] == half and math.isfinite(preference[row])
            ]
            if len(rows) < 2:
                continue
            fitted = length_controlled_win_rate(
                preference[rows],
                np.array([float(len(pairs[row].reference)) for row in rows]),
                np.array([float(len(pairs[row].output)) for row in rows]),
                self._difficulty[[places[row] for row in rows]],
                self._gamed,
            )
            result[rows] = fitted.pseudo_values_N
        return result


def _won(preference: float) -> float:
    return 0.5 if preference == 0.5 else float(preference > 0.5)


def _column(found: Sequence[Preference | None], of: Any) -> NDArray[np.float64]:
    return np.array([math.nan if each is None else of(each) for each in found])


def _numbers(values: Sequence[str], name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        raise DataError(f"{path} has no number {name} in some row", f"a column {name}") from None
