"""One request to an OpenAI-compatible chat endpoint, and what can become of it.

A reply is kept under the hash of the question (model, messages, sampling), so that no question is paid twice,
by any run of any sweep of the same root. What failed is not kept: the next try may be luckier.
"""

import hashlib
import json
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.files import read_json, write_json_atomic
from train.judges.config import JudgeConfig, api_key
from train.secrets import scrub

_BUSY_OR_BROKEN = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_LONGEST_WAIT_SECONDS = 60.0


class JudgeError(UserError):
    """An endpoint that can't be used: a wrong key, address or model, or it stays away."""


class RequestFailed(Exception):
    """One question without an answer, and why in a few words; `is_endpoint` if the next one would fare no better."""

    def __init__(self, reason: str, *, is_endpoint: bool) -> None:
        super().__init__(reason)
        self.is_endpoint = is_endpoint


@dataclass(frozen=True, slots=True)
class Question:
    """What the judge is asked. `first_tokens`: how many alternatives to the first token to report; 0: none."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    first_tokens: int = 0

    @property
    def num_characters(self) -> int:
        return sum(len(content) for _, content in self.messages)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said. `first_token_logprobs` is empty where the endpoint reports none."""

    text: str
    first_token_logprobs: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_cached: bool = False


class Endpoint:
    """Asks, waits, asks again; thread-safe. `folder` keeps the replies."""

    def __init__(self, config: JudgeConfig, folder: Path) -> None:
        self.config, self._folder = config, folder
        self._client, self._lock = None, threading.Lock()
        self._stopping = threading.Event()
        self._next_start = 0.0  # monotonic seconds: when the rate limit lets the next request go

    def cached(self, question: Question) -> Reply | None:
        """The kept reply; None if this was never answered."""
        kept = read_json(self._path(question))
        if kept is None or not isinstance(kept.get("text"), str):
            return None
        return Reply(
            kept["text"],
            kept["first_token_logprobs"],
            kept["prompt_tokens"],
            kept["completion_tokens"],
            is_cached=True,
        )

    def ask(self, question: Question) -> Reply:
        """The reply, kept or new.

        Raises   JudgeError where no question would be answered (401, 403, 404, no key); RequestFailed where
                 this one was not, after `max_attempts`.
        """
        kept = self.cached(question)
        if kept is not None:
            return kept
        reply = self._ask_again(question)
        path = self._path(question)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(
            path,
            {
                "model": self.config.model,
                "text": reply.text,
                "first_token_logprobs": dict(reply.first_token_logprobs),
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
            },
        )
        return reply

    def stop(self) -> None:
        """No further attempts; requests in flight end by themselves."""
        self._stopping.set()

    def close(self) -> None:
        """Ends the connections."""
        if self._client is not None:
            self._client.close()

    def _ask_again(self, question: Question) -> Reply:
        for attempt in range(1, self.config.max_attempts + 1):
            if self._stopping.is_set():
                raise RequestFailed("stopped", is_endpoint=False)
            self._wait_for_turn()
            try:
                return self._ask_once(question)
            except _TryAgain as again:
                if attempt == self.config.max_attempts:
                    reason = f"{again}, {attempt} times"
                    raise RequestFailed(reason, is_endpoint=again.is_endpoint) from None
                wait = again.after_seconds
                if wait is None:
                    wait = 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
            self._stopping.wait(min(wait, _LONGEST_WAIT_SECONDS))
        raise AssertionError("unreachable: max_attempts is at least 1")

    def _wait_for_turn(self) -> None:
        """Requests start at least 60 / requests_per_minute seconds apart."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / self.config.requests_per_minute
        time.sleep(max(0.0, start - now))

    def _ask_once(self, question: Question) -> Reply:
        import httpx

        try:
            response = self._connection().post("chat/completions", json=self._body(question))
        except httpx.InvalidURL as error:
            raise JudgeError(
                f"eval.judge.base_url={self.config.base_url} is no address ({error})", "http://HOST:PORT/v1"
            ) from None
        except httpx.TransportError as error:
            what = type(error).__name__ if not str(error) else f"{type(error).__name__}: {error}"
            raise _TryAgain(f"{self.config.base_url} doesn't answer ({what})") from None
        if response.status_code != 200:
            self._refuse(response.status_code, _words(response.text), response.headers.get("retry-after"))
        try:
            return _read_reply(response.json())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise _TryAgain(f"no chat completion in the answer {_words(response.text)!r}") from None

    def _refuse(self, status: int, words: str, retry_after: str | None) -> None:
        """Raises what an HTTP status other than 200 means."""
        if status in (401, 403, 404):
            self.stop()  # the next question would fare no better
        if status in (401, 403):
            raise JudgeError(
                f"the judge's endpoint {self.config.base_url} refuses the key (HTTP {status}: {words})",
                f"a valid key in {self.config.key_variable or 'eval.judge.key_variable'}",
                "judgements made so far are kept",
            )
        if status == 404:
            raise JudgeError(
                f"{self.config.base_url} knows no model {self.config.model} or no chat (HTTP 404: {words})",
                "eval.judge.base_url ending in /v1 and a model it serves",
            )
        if status in _BUSY_OR_BROKEN:
            try:
                after = float(retry_after or "")
            except ValueError:  # absent, or a date
                after = None
            raise _TryAgain(f"HTTP {status}: {words}", after)
        raise RequestFailed(f"HTTP {status}: {words}", is_endpoint=False)

    def _connection(self) -> Any:
        with self._lock:
            if self._client is None:
                import httpx

                key = api_key(self.config)
                self._client = httpx.Client(
                    base_url=self.config.base_url.rstrip("/") + "/",
                    headers={"Authorization": f"Bearer {key}"} if key else {},
                    timeout=self.config.timeout_seconds,
                    limits=httpx.Limits(max_connections=self.config.concurrency),
                )
            return self._client

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.config.model,
            "messages": [{"role": role, "content": content} for role, content in question.messages],
            "max_tokens": question.max_tokens,
            "temperature": self.config.temperature,
        }
        if question.first_tokens:
            body |= {"logprobs": True, "top_logprobs": question.first_tokens}
        return body

    def _path(self, question: Question) -> Path:
        canonical = json.dumps(self._body(question), sort_keys=True, ensure_ascii=True)
        name = hashlib.sha256(canonical.encode()).hexdigest()[:40]
        return self._folder / name[:2] / f"{name}.json"


class _TryAgain(Exception):
    """The endpoint may answer this question later."""

    def __init__(self, reason: str, after_seconds: float | None = None, *, is_endpoint: bool = True) -> None:
        super().__init__(reason)
        self.after_seconds, self.is_endpoint = after_seconds, is_endpoint


def _read_reply(answer: Any) -> Reply:
    """A chat completion; KeyError and the like where it is none."""
    choice = answer["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("content is no text")
    usage = answer.get("usage") or {}
    tokens = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or ()
    return Reply(
        text,
        {token["token"]: float(token["logprob"]) for token in tokens},
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
    )


def _words(text: str) -> str:
    """The beginning of what a server said, in one line and without secrets."""
    return scrub(" ".join(text.split()))[:160]
