"""Many questions to one judge: what they will cost, at most so many at once, and what came of each.

A question that got no verdict is counted, with its reason. It is never a tie and never a zero; where too many
are missing there is no score at all, because the missing ones are not missing at random.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

from train.errors import ConfigError
from train.judges.config import JudgeConfig
from train.judges.endpoint import Endpoint, JudgeError, Question, Reply, RequestFailed

CHARACTERS_PER_TOKEN = 4.0  # of English under today's tokenizers; an estimate before the first request only

Verdict = TypeVar("Verdict")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the questions that nobody asked before will cost."""

    num_questions: int
    num_cached: int
    prompt_tokens: float
    completion_tokens: float  # at most: every reply as long as allowed
    cost: float | None  # in the currency of the prices; None: no prices are set

    def __str__(self) -> str:
        money = "" if self.cost is None else f", at most {self.cost:,.2f} in the currency of the prices"
        asked = self.num_questions - self.num_cached
        return f"{asked:,} questions to the judge ({self.num_cached:,} more answered before){money}"


@dataclass(frozen=True, slots=True)
class Judgements(Generic[Verdict]):
    """One verdict per question, in order; None where there is none. `failures` counts the reasons."""

    verdicts: tuple[Verdict | None, ...]
    failures: Counter[str]  # no reply: the reason
    num_unparsable: int  # a reply, but no verdict in it
    num_cached: int
    cost: float | None

    @property
    def num_missing(self) -> int:
        return self.num_unparsable + self.failures.total()


def estimate(endpoint: Endpoint, questions: Sequence[Question]) -> Estimate:
    """Before anything is asked."""
    open_questions = [question for question in questions if endpoint.cached(question) is None]
    prompt = sum(question.num_characters for question in open_questions) / CHARACTERS_PER_TOKEN
    completion = float(sum(question.max_tokens for question in open_questions))
    config = endpoint.config
    return Estimate(
        len(questions),
        len(questions) - len(open_questions),
        prompt,
        completion,
        config.cost(prompt, completion) if config.has_prices else None,
    )


def judge(
    endpoint: Endpoint,
    questions: Sequence[Question],
    read: Callable[[Reply], Verdict | None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Judgements[Verdict]:
    """Asks every question, `concurrency` at a time.

    read     a reply -> its verdict, None where it has none
    Raises   ConfigError above eval.judge.max_cost, before the first request; JudgeError where the endpoint is of no
             use, or more than eval.judge.max_failed_share of the verdicts are missing. Replies got so far are kept.
    """
    check_cost(endpoint.config, estimate(endpoint, questions))
    replies = _ask_all(endpoint, questions, progress)
    verdicts: list[Verdict | None] = []
    failures: Counter[str] = Counter()
    num_unparsable = 0
    examples: list[str] = []
    for reply in replies:
        verdict = None
        if isinstance(reply, RequestFailed):
            failures[str(reply)] += 1
            examples.append(str(reply))
        else:
            verdict = read(reply)
            if verdict is None:
                num_unparsable += 1
                examples.append(f"no verdict in {' '.join(reply.text.split())[:80]!r}")
        verdicts.append(verdict)
    answered = [reply for reply in replies if isinstance(reply, Reply)]
    result = Judgements(
        tuple(verdicts),
        failures,
        num_unparsable,
        sum(reply.is_cached for reply in answered),
        _spent(endpoint.config, answered),
    )
    _check_missing(endpoint.config, result, examples)
    return result


def check_cost(config: JudgeConfig, estimated: Estimate) -> None:
    """ConfigError if the estimate is above eval.judge.max_cost, or a cap is set without prices."""
    if config.max_cost is None:
        return
    if estimated.cost is None:
        raise ConfigError(
            f"eval.judge.max_cost={config.max_cost:g} without prices can't be kept",
            "eval.judge.price_per_million_prompt_tokens and eval.judge.price_per_million_completion_tokens",
        )
    if estimated.cost > config.max_cost:
        raise ConfigError(
            f"{estimated} is above eval.judge.max_cost={config.max_cost:g}",
            "a lower cost",
            f"set eval.judge.max_cost={estimated.cost:.2f}, or eval.limit lower",
        )


def _ask_all(
    endpoint: Endpoint, questions: Sequence[Question], progress: Callable[[int, int], None]
) -> list[Reply | RequestFailed]:
    """Stops at once where the endpoint never answered and one question ran out of attempts."""
    replies: list[Reply | RequestFailed | None] = [None] * len(questions)
    has_answered = False
    pool = ThreadPoolExecutor(endpoint.config.concurrency, thread_name_prefix="judge")
    try:
        waiting: dict[Future[Reply], int] = {
            pool.submit(endpoint.ask, question): index for index, question in enumerate(questions)
        }
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                index = waiting.pop(future)
                try:
                    reply = future.result()
                    replies[index] = reply
                    has_answered |= not reply.is_cached
                except RequestFailed as failure:
                    if failure.is_endpoint and not has_answered:
                        raise JudgeError(
                            f"the judge {endpoint.config.model} can't be reached: {failure}",
                            f"an OpenAI-compatible server at eval.judge.base_url={endpoint.config.base_url}",
                            "start it and say the same line again; nothing is lost",
                        ) from None
                    replies[index] = failure
            progress(len(questions) - len(waiting), len(questions))
    except BaseException:
        endpoint.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [reply for reply in replies if reply is not None]


def _spent(config: JudgeConfig, replies: Sequence[Reply]) -> float | None:
    if not config.has_prices:
        return None
    new = [reply for reply in replies if not reply.is_cached]
    return config.cost(sum(r.prompt_tokens for r in new), sum(r.completion_tokens for r in new))


def _check_missing(config: JudgeConfig, result: Judgements, examples: Sequence[str]) -> None:
    total = len(result.verdicts)
    if result.num_missing > config.max_failed_share * total:
        raise JudgeError(
            f"{result.num_missing:,} of {total:,} judgements of {config.model} are missing: {examples[0]}",
            f"at most eval.judge.max_failed_share={config.max_failed_share:g}",
            "replies got so far are kept; say the same line again, or choose another judge",
        )
