"""Which judge, asked how, at what price. Standard library only: planning checks it."""

import importlib.util
import os
from dataclasses import dataclass

from train.errors import ConfigError
from train.schema import check_at_least, check_not_negative, check_positive, check_share, how


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint. Its identity is the model's name and how it is sampled, not where it runs.

    The key is read from the environment variable named here, and written nowhere.
    """

    model: str = ""  # as the endpoint calls it; empty: no judge
    temperature: float = 0.0
    max_tokens: int = 2048  # of a written judgement; a preference takes one token
    base_url: str = how("https://api.openai.com/v1")
    key_variable: str | None = how("OPENAI_API_KEY")  # null: the endpoint wants no key
    concurrency: int = how(8)  # requests in flight
    requests_per_minute: float | None = how(None)  # of one worker; None: as fast as the endpoint answers
    timeout_seconds: float = how(120.0)  # of one request
    max_attempts: int = how(6)  # with back-off, where the endpoint is busy, broken or away
    max_failed_share: float = how(
        0.05
    )  # of judgements without a usable verdict; more is an error, not a score
    price_per_million_prompt_tokens: float = how(0.0)  # in the currency of max_cost
    price_per_million_completion_tokens: float = how(0.0)
    max_cost: float | None = how(
        None
    )  # of one benchmark of one run; more is refused before the first request

    def __post_init__(self) -> None:
        check_at_least("eval.judge.max_tokens", self.max_tokens, 1)
        check_at_least("eval.judge.concurrency", self.concurrency, 1)
        check_at_least("eval.judge.max_attempts", self.max_attempts, 1)
        check_positive("eval.judge.timeout_seconds", self.timeout_seconds)
        check_share("eval.judge.max_failed_share", self.max_failed_share)
        for name in ("temperature", "price_per_million_prompt_tokens", "price_per_million_completion_tokens"):
            check_not_negative(f"eval.judge.{name}", getattr(self, name))
        if self.requests_per_minute is not None:
            check_positive("eval.judge.requests_per_minute", self.requests_per_minute)

    @property
    def has_prices(self) -> bool:
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """In the currency of the prices."""
        return (
            prompt_tokens * self.price_per_million_prompt_tokens
            + completion_tokens * self.price_per_million_completion_tokens
        ) / 1e6


def check_judge(benchmark: str, config: JudgeConfig) -> None:
    """What would fail after the training only: ConfigError where there is no judge, no key or no client."""
    if not config.model:
        raise ConfigError(
            f"eval.benchmarks.{benchmark} needs a judge",
            "an OpenAI-compatible endpoint",
            "say eval.judge.model=NAME and eval.judge.base_url=http://HOST:PORT/v1",
        )
    if importlib.util.find_spec("httpx") is None:
        raise ConfigError(
            f"eval.benchmarks.{benchmark} needs httpx, which isn't installed",
            "the extra eval",
            "pip install -e '.[eval]'",
        )
    api_key(config)


def api_key(config: JudgeConfig) -> str | None:
    """The key from the environment; None where the endpoint wants none.

    Raises   ConfigError naming the variable that is not set.
    """
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"the judge {config.model} wants a key and {config.key_variable} is not set",
            f"the key in the environment variable {config.key_variable}",
            f"export {config.key_variable}, or set eval.judge.key_variable=null for a server without keys",
        )
    return key
