"""The configurations of AlpacaEval, MT-Bench and POSIX. Standard library only."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from train.errors import ConfigError
from train.schema import check_at_least, how


@dataclass(frozen=True, kw_only=True, slots=True)
class AlpacaEvalConfig:
    """805 instructions against a reference's answers: version 1 text-davinci-003, version 2 GPT-4-turbo."""

    kind: Literal["alpaca_eval"] = "alpaca_eval"
    path: str = how("")  # the folder of its files: https://huggingface.co/datasets/tatsu-lab/alpaca_eval
    version: int = 2
    length_control: bool = True  # needs the two tables of AlpacaEval 2; comparable with its leaderboard only
    max_new_tokens: int = 2048
    limit: int | None = None  # instructions, from the first on; None: all

    needs_judge: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_path("alpaca_eval", self.path)
        if self.version not in (1, 2):
            raise ConfigError(f"version={self.version}", "1 (text-davinci-003) or 2 (GPT-4-turbo)")
        check_at_least("max_new_tokens", self.max_new_tokens, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class MtBenchConfig:
    """80 questions of two turns, graded."""

    kind: Literal["mt_bench"] = "mt_bench"
    path: str = how("")  # FastChat's llm_judge/data/mt_bench
    category_temperatures: bool = True  # sampled as FastChat does, by category; false: greedy
    seed: int = 0  # of that sampling
    max_new_tokens: int = 1024
    limit: int | None = None  # questions, evenly over the categories; None: all

    needs_judge: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_path("mt_bench", self.path)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PosixConfig:
    """Sets of wordings. The POSIX paper: 30 new tokens for instructions, 5 for multiple choice, 20 variants."""

    kind: Literal["posix"] = "posix"
    path: str = how("")
    prompts: str = "prompts.jsonl"
    column: str = "question"  # the field with the text
    paraphrases: tuple[str, ...] = ()  # files of the same rows in other words
    variants: Literal["spelling", "template", "paraphrase", "mixture"] = "mixture"
    num_variants: int = 20
    seed: int = 0
    max_new_tokens: int = 30
    compat: Literal["paper", "package"] = "paper"  # package: the released library's transposed definition
    limit: int | None = None  # prompts, from the first on; None: all

    needs_judge: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_path("posix", self.path)
        check_at_least("num_variants", self.num_variants, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)


def _check_path(kind: str, path: str) -> None:
    if not path:
        raise ConfigError(f"path of {kind} is empty", "the folder with its files", "say path: /data/...")
