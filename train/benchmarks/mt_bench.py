"""MT-Bench as a benchmark: two turns, the second asked with the model's own first answer, each graded 1 to 10.

rating   mean over both turns of all questions; first_turn_rating and second_turn_rating apart. A question's
         turns are one cluster and stay in one half.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.benchmarks.columns import OUTPUT_MEASURES, output_values
from train.benchmarks.config import effective_limit
from train.benchmarks.data_files import read_rows
from train.benchmarks.interface import Backend, Context, Output, Request
from train.items import Items, half_of
from train.judges.asking import judged
from train.judges.mt_bench import (
    NUM_TURNS,
    TEMPERATURES,
    Dialogue,
    JudgePrompt,
    make_dialogues,
    make_prompts,
    questions,
    read_grade,
)
from train.metrics import MEASURES

_COLUMNS = ("rating", "first_turn_rating", "second_turn_rating", "unjudged_rate", *OUTPUT_MEASURES)


def make_benchmark(name: str, config: Any, context: Context) -> "MtBench":
    """Reads and checks the files of `config.path`; DataError names what is wrong."""
    rows, references, prompts = (read_rows(path) for path in config.files(context.eval.data))
    return MtBench(name, config, context, make_dialogues(rows, references), make_prompts(prompts))


class MtBench:
    """See `train.benchmarks.interface.Benchmark`."""

    def __init__(
        self,
        name: str,
        config: Any,
        context: Context,
        dialogues: Sequence[Dialogue],
        prompts: Mapping[str, JudgePrompt],
    ) -> None:
        self.name, self.protocol = name, context.protocol
        self._config, self._context, self._prompts = config, context, prompts
        self._dialogues = _spread(dialogues, effective_limit(config, context.eval.limit))

    def requests(self, outputs: Mapping[str, Output]) -> Sequence[Request]:
        """All first turns; then, when they are answered, the second ones."""
        asked = []
        for dialogue in self._dialogues:
            said = [outputs.get(_key(dialogue, turn)) for turn in range(NUM_TURNS)]
            for turn in range(NUM_TURNS):
                if turn and said[turn - 1] is None:
                    break
                messages: list[tuple[str, str]] = []
                for earlier in range(turn):
                    answer = said[earlier]
                    messages += [
                        ("user", dialogue.turns[earlier]),
                        ("assistant", answer.text if answer else ""),
                    ]
                warm = self._config.category_temperatures
                asked.append(
                    Request(
                        _key(dialogue, turn),
                        messages=(*messages, ("user", dialogue.turns[turn])),
                        max_new_tokens=self._config.max_new_tokens,
                        temperature=TEMPERATURES.get(dialogue.category, 0.0) if warm else 0.0,
                        seed=self._config.seed,
                    )
                )
        return asked

    def score(self, outputs: Mapping[str, Output], backend: Backend) -> Items:
        """Graded turns. Raises JudgeError or ConfigError where the judge can't be used; answers are kept."""
        answers = [
            [outputs[_key(dialogue, turn)].text for turn in range(NUM_TURNS)] for dialogue in self._dialogues
        ]
        asked = questions(self._dialogues, answers, self._prompts, self._context.eval.judge.max_tokens)
        grades = [
            math.nan if grade is None else grade
            for grade in judged(self._context, self.name, asked, read_grade).verdicts
        ]
        turns = [(dialogue, turn) for dialogue in self._dialogues for turn in range(NUM_TURNS)]
        rating = np.array(grades, dtype=float)
        turn_N = np.array([turn for _, turn in turns])
        values = {
            "rating": rating,
            "first_turn_rating": np.where(turn_N == 0, rating, math.nan),
            "second_turn_rating": np.where(turn_N == 1, rating, math.nan),
            "unjudged_rate": np.isnan(rating).astype(float),
        }
        signs = [output_values([outputs[_key(*each)]]) for each in turns]
        values |= {name: np.array([each[name] for each in signs]) for name in OUTPUT_MEASURES}
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={column: MEASURES[column] for column in _COLUMNS},
            item_ids=tuple(_key(dialogue, turn) for dialogue, turn in turns),
            clusters=tuple(dialogue.question_id for dialogue, _ in turns),
            splits=tuple(
                half_of(self.name, dialogue.question_id, self._context.eval.half_seed)
                for dialogue, _ in turns
            ),
            values=values,
            outputs=tuple(text for row in answers for text in row),
        )


def _key(dialogue: Dialogue, turn: int) -> str:
    return f"{dialogue.question_id}.{turn + 1}"


def _spread(dialogues: Sequence[Dialogue], limit: int | None) -> list[Dialogue]:
    """At most `limit`, evenly over the file, whose questions stand by category."""
    if limit is None or limit >= len(dialogues):
        return list(dialogues)
    return [dialogues[place * len(dialogues) // limit] for place in range(limit)]
