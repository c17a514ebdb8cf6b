"""The configurations of AlpacaEval, MT-Bench, POSIX and wordings, and the files they read. Standard library only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train.benchmarks.data_files import find_file
from train.errors import ConfigError
from train.judges.config import JudgeConfig
from train.schema import check_at_least

JUDGED_KINDS = ("alpaca_eval", "mt_bench")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlpacaEvalConfig:
    """805 instructions against a reference's answers: version 1 text-davinci-003, version 2 GPT-4-turbo."""

    kind: Literal["alpaca_eval"] = "alpaca_eval"
    path: str = (
        "alpaca_eval"  # a folder, in eval.data unless absolute, with what tatsu-lab/alpaca_eval publishes
    )
    version: int = 2
    length_control: bool = True  # needs the two tables of AlpacaEval 2; comparable with its leaderboard only
    max_new_tokens: int = 2048
    limit: int | None = None  # instructions, from the first on; None: all

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ConfigError(f"version={self.version}", "1 (text-davinci-003) or 2 (GPT-4-turbo)")
        check_at_least("max_new_tokens", self.max_new_tokens, 1)

    def files(self, data: str | None) -> list[Path]:
        """Instructions, reference answers and, for length control, difficulties and gamed baselines."""
        folder = folder_of(self.path, data)
        reference = {
            1: ("reference_text_davinci_003.json", "alpaca_eval.json"),
            2: ("reference_gpt4_1106_preview.json", "alpaca_eval_gpt4_baseline.json"),
        }[self.version]
        names = [("eval_set.json", "alpaca_eval.json"), reference]
        if self.length_control:
            names.append(("lc_instruction_difficulty.csv", "instruction_difficulty.csv"))
            names.append(("lc_gamed_soft.csv", "df_gamed.csv"))
        return [find_file(folder, each, "AlpacaEval") for each in names]


@dataclass(frozen=True, kw_only=True, slots=True)
class MtBenchConfig:
    """80 questions of two turns, graded."""

    kind: Literal["mt_bench"] = "mt_bench"
    path: str = "mt_bench"  # a folder, in eval.data unless absolute: FastChat's llm_judge/data/mt_bench
    category_temperatures: bool = True  # sampled as FastChat does, by category; false: greedy
    seed: int = 0  # of that sampling
    max_new_tokens: int = 1024
    limit: int | None = None  # questions, evenly over the categories; None: all

    def __post_init__(self) -> None:
        check_at_least("max_new_tokens", self.max_new_tokens, 1)

    def files(self, data: str | None) -> list[Path]:
        """Questions, reference answers, judge's prompts."""
        folder = folder_of(self.path, data)
        names = (
            ("question.jsonl",),
            ("reference_answer/gpt-4.jsonl",),
            ("judge_prompts.jsonl", "../judge_prompts.jsonl"),
        )
        return [find_file(folder, each, "MT-Bench") for each in names]


@dataclass(frozen=True, kw_only=True, slots=True)
class PosixConfig:
    """Sets of wordings. The POSIX paper: 30 new tokens for instructions, 5 for multiple choice, 20 variants."""

    kind: Literal["posix"] = "posix"
    path: str = "posix"  # a folder, in eval.data unless absolute
    prompts: str = "prompts.jsonl"
    column: str = "question"  # the field with the text
    paraphrases: tuple[str, ...] = ()  # files of the same rows in other words
    variants: Literal["spelling", "template", "paraphrase", "mixture"] = "mixture"
    num_variants: int = 20
    seed: int = 0
    max_new_tokens: int = 30
    compat: Literal["paper", "package"] = "paper"  # package: the released library's transposed definition
    limit: int | None = None  # prompts, from the first on; None: all

    def __post_init__(self) -> None:
        check_at_least("num_variants", self.num_variants, 1)
        check_at_least("max_new_tokens", self.max_new_tokens, 1)

    def files(self, data: str | None) -> list[Path]:
        """The prompts, then a file for each further wording."""
        folder = folder_of(self.path, data)
        return [find_file(folder, (name,), "POSIX") for name in (self.prompts, *self.paraphrases)]


@dataclass(frozen=True, kw_only=True, slots=True)
class WordingsConfig:
    """POSIX over held-out wordings of the embedded world, whose runs measure it themselves (`train.together`)."""

    kind: Literal["wordings"] = "wordings"
    seed: int = 0
    max_new_tokens: int = 12  # the embedded tokenizer writes answers in 8 at most
    limit: int | None = None  # questions; None: 36, one of each family in each half

    def __post_init__(self) -> None:
        check_at_least("max_new_tokens", self.max_new_tokens, 1)

    def files(self, data: str | None) -> list[Path]:
        """None: its questions are generated."""
        return []


def folder_of(path: str, data: str | None) -> Path:
    """`path` itself if it is absolute, else in eval.data, else in the current directory."""
    return Path(data or ".").expanduser() / Path(path).expanduser()


def judge_identity(judge: JudgeConfig) -> dict[str, Any]:
    """What of a judge changes its verdicts: not where it is asked, how fast or at what price."""
    return {"model": judge.model, "temperature": judge.temperature, "max_tokens": judge.max_tokens}
