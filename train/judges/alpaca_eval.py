"""AlpacaEval: does a judge prefer the model's answer to a reference's? Pure; the asking is in panel.

Source   Li et al. 2023, alpaca_eval 0.6 (Apache-2.0), annotators weighted_alpaca_eval_*: one token, "m" or "M",
         weighed by its log-probabilities. Version 1 compares with text-davinci-003, version 2 with GPT-4-turbo.
Differs  Every pair is judged in both orders and the two are averaged, where the released code shows each pair in
         one order drawn by a hash: a judge's liking for a position cancels per row, not only on average. A pair
         that lacks a verdict in either order is missing, not a tie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.judges.endpoint import Question, Reply

_SYSTEM = (
    "You are a highly efficient assistant, who evaluates and selects the best large language model (LLMs) based "
    "on the quality of their responses to a given instruction. This process will be used to create a leaderboard "
    "reflecting the most accurate and human-preferred answers."
)
_USER = '''I require a leaderboard for various large language models. I'll provide you with prompts given to these \
models and their corresponding outputs. Your task is to assess these responses, and select the model that produces \
the best output from a human perspective.

## Instruction

{
    "instruction": """%(instruction)s""",
}

## Model Outputs

Here are the unordered outputs from the models. Each output is associated with a specific model, identified by a \
unique model identifier.

{
    {
        "model_identifier": "m",
        "output": """%(output_1)s"""
    },
    {
        "model_identifier": "M",
        "output": """%(output_2)s"""
    }
}

## Task

Evaluate the models based on the quality and relevance of their outputs, and select the model that generated the \
best output. Answer by providing the model identifier of the best model. We will use your output as the name of \
the best model, so make sure your output only contains one of the following model identifiers and nothing else (no \
quotes, no spaces, no new lines, ...): m or M.

## Best Model Identifier'''
_FIRST, _SECOND = "m", "M"
_ALTERNATIVES = 5  # to the first token, as the published annotators ask


@dataclass(frozen=True, slots=True)
class Pair:
    """One instruction, the reference's answer and the model's."""

    instruction: str
    reference: str
    output: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Of one pair, both orders. Shares in 0..1 for the model's answer."""

    shown_second: float
    shown_first: float

    @property
    def mean(self) -> float:
        return (self.shown_second + self.shown_first) / 2

    @property
    def is_consistent(self) -> bool:
        """Whether the judge prefers the same answer whatever the order."""
        return (self.shown_second - 0.5) * (self.shown_first - 0.5) > 0


def questions(pairs: Sequence[Pair]) -> list[Question]:
    """Two for each pair: the reference first, then the model's answer first."""
    asked = []
    for pair in pairs:
        for first, second in ((pair.reference, pair.output), (pair.output, pair.reference)):
            text = _USER % {"instruction": pair.instruction, "output_1": first, "output_2": second}
            asked.append(Question((("system", _SYSTEM), ("user", text)), 1, _ALTERNATIVES))
    return asked


def read_preference(reply: Reply) -> float | None:
    """The share of "M", the answer shown second; None if the reply names neither.

    From the first token's log-probabilities; the one that isn't among the reported ones counts as 0. Where the
    endpoint reports none, from the text alone.
    """
    weights = {
        token: math.exp(reply.first_token_logprobs[token])
        for token in (_FIRST, _SECOND)
        if token in reply.first_token_logprobs
    }
    if weights and sum(weights.values()) > 0:
        return weights.get(_SECOND, 0.0) / sum(weights.values())
    if reply.first_token_logprobs:
        return None
    text = reply.text.strip().strip("\"'`.*")
    return {_FIRST: 0.0, _SECOND: 1.0}.get(text)


def preferences(verdicts: Sequence[float | None]) -> list[Preference | None]:
    """Verdicts in the order of `questions`, two to a pair."""
    pairs = zip(verdicts[::2], verdicts[1::2], strict=True)
    return [
        None if second is None or first is None else Preference(second, 1.0 - first)
        for second, first in pairs
    ]
