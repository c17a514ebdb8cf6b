"""Benchmarks' texts in a model's tokens: BOS and template as settings, and the same tokens as lm-eval's HFLM."""

from typing import Any

from train.benchmarks.interface import Request
from train.errors import ModelError
from train.rows import Message
from train.spans import Encoder

_ANSWER = "Answer"  # stands where the response will be: only what comes before it is used


class PromptEncoder:
    """add_bos: None is what the tokenizer does by itself. template: that of the model, for `messages`."""

    def __init__(
        self, tokenizer: Any, *, template: str, model_add_bos: bool | None, add_bos: bool | None
    ) -> None:
        self._tokenizer, self._add_bos = tokenizer, add_bos
        if add_bos and tokenizer.bos_token_id is None:
            raise ModelError(
                "eval.add_bos=true, but the tokenizer has no BOS token",
                "a tokenizer with bos_token",
                "set eval.add_bos=false",
            )
        self._template, self._model_add_bos = template, model_add_bos if add_bos is None else add_bos
        self._chat: Encoder | None = None
        self._known: dict[Any, Any] = {}  # the same prompts for every run of a process

    @property
    def adds_bos(self) -> bool:
        """Whether a plain prompt begins with BOS."""
        return self.text("a")[:1] == [self._tokenizer.bos_token_id]

    def encode(self, request: Request) -> list[int]:
        """The tokens that the model is to continue."""
        key = request.messages or request.prompt
        if key not in self._known:
            self._known[key] = (
                self._conversation(request.messages) if request.messages else self.text(request.prompt)
            )
        return self._known[key]

    def text(self, text: str) -> list[int]:
        """A plain text with its BOS."""
        if self._add_bos is None:
            return self._tokenizer.encode(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return [self._tokenizer.bos_token_id, *ids] if self._add_bos else ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Context and continuation as tokens of their joint text; spaces at the seam go with the continuation.

        Source   lm-evaluation-harness 0.4.13, TemplateLM._encode_pair and .loglikelihood.
        """
        key = (context, continuation)
        if key not in self._known:
            self._known[key] = self._pair(context, continuation)
        return self._known[key]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            ids = self._tokenizer.encode(continuation, add_special_tokens=False)
            bos = self._tokenizer.bos_token_id
            prefix = self._tokenizer.eos_token_id if bos is None else bos
            return ([prefix], ids) if ids[0] != prefix else (ids[:1], ids[1:])
        num_spaces = len(context) - len(context.rstrip())
        if num_spaces:
            context, continuation = context[:-num_spaces], context[-num_spaces:] + continuation
        before = self._known.setdefault(context, []) or self.text(context)
        self._known[context] = before
        return before, self.text(context + continuation)[len(before) :]

    def _conversation(self, messages: tuple[tuple[str, str], ...]) -> list[int]:
        if self._chat is None:
            self._chat = Encoder(
                self._tokenizer, template=self._template, add_bos=self._model_add_bos, max_tokens=1 << 30
            )
        special = [text for text in self._tokenizer.all_special_tokens if text]

        def harmless(content: str) -> str:
            """A special token's text would be read as the token: a space breaks it."""
            for text in special:
                content = content.replace(text, f"{text[:1]} {text[1:]}")
            return content or " "

        turns = [Message(role, harmless(content)) for role, content in messages]  # type: ignore[arg-type]
        found = self._chat.encode([*turns, Message("assistant", _ANSWER)])
        assert not isinstance(found, str), found
        return found.ids[: found.prompt_length].tolist()
