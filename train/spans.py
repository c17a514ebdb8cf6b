"""Which token is whose: one tokenization with character offsets, and no second one to measure the prompt.

Measuring a prompt by tokenizing it alone, as the released codes of WIT and IM do, mislabels every token
that merges across the seam. Here each character has a role, and a token's role follows from the characters
that it holds.

Shapes: N tokens, C characters, R = 5 roles.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.errors import ModelError
from train.rows import Message
from train.templates import JOIN, ChatTemplate, Rendering, Role, render_raw, template_text, with_fixed_date

NUM_ROLES = len(Role)
_BATCH_ROWS = 1000  # held at once: the tokenizer's own objects take a hundred bytes a token


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One conversation in tokens.

    Shapes   ids (N,) int32; roles (N,) uint8, values of `Role`; role_bytes (R,) int64.
    Units    role_bytes in UTF-8 bytes of the text of each role, up to the last kept token. Special end tokens
             are no text; the joining space counts with the response, whose first token predicts it.
    """

    ids: NDArray[np.int32]
    roles: NDArray[np.uint8]
    role_bytes: NDArray[np.int64]
    prompt_length: int  # ids[:prompt_length] is the exact prompt for generating the last kept response
    is_truncated: bool


def token_roles(
    char_roles: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """The role of each token from the roles of the characters in [start, end).

    A token holding any response character is RESPONSE, and so is one of joining spaces only (the published
    code counts it there); else any prompt character makes it PROMPT, then SYSTEM, then TEMPLATE.

    Shapes   char_roles (C,), values of `Role` or JOIN; starts, ends (N,); result (N,).
    Note     By their offsets some tokens hold no character: a lone space whose offsets were trimmed, or a
             mark the tokenizer put in. Such a token takes the text since the token before it, else the next
             character's role.
    """
    num_chars = len(char_roles)
    if num_chars == 0:
        return np.full(len(starts), Role.TEMPLATE, np.uint8)
    starts, ends = _widened(starts, ends, num_chars)
    present = np.zeros((JOIN + 1, num_chars + 1), np.int32)
    for role in range(JOIN + 1):
        np.cumsum(char_roles == role, out=present[role, 1:])
    count = present[:, ends] - present[:, starts]
    roles = np.full(len(starts), Role.TEMPLATE, np.uint8)
    roles[count[Role.SYSTEM] > 0] = Role.SYSTEM
    roles[count[Role.PROMPT] > 0] = Role.PROMPT
    roles[(count[Role.RESPONSE] > 0) | (count[JOIN] == ends - starts)] = Role.RESPONSE
    return roles


def _widened(
    starts: NDArray[np.int64], ends: NDArray[np.int64], num_chars: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets in which every token holds at least one character."""
    empty = ends <= starts
    if not empty.any():
        return starts, ends
    ends_before = np.maximum.accumulate(np.concatenate([[0], ends[:-1]]))
    starts = np.where(empty, np.minimum(ends_before, starts), starts)
    still_empty = ends <= starts
    starts = np.where(still_empty, np.minimum(starts, num_chars - 1), starts)
    return starts, np.where(still_empty, starts + 1, ends)


class Encoder:
    """Conversations to tokens with roles, for one tokenizer, template and length.

    tokenizer   a `transformers` fast tokenizer with an EOS token; it isn't changed.
    template    raw | chat | tulu | chatml | a path to a Jinja file
    add_bos     None: what the tokenizer itself does
    max_tokens  including BOS; what is longer is cut at the end
    Raises      TemplateError, ModelError
    """

    def __init__(
        self, tokenizer: Any, *, template: str = "raw", add_bos: bool | None = None, max_tokens: int
    ) -> None:
        # Rebuilt without its post-processor: that one adds special tokens, which we do ourselves, and trims
        # spaces off the offsets, which we need. The caller's tokenizer stays as it was.
        from tokenizers import Tokenizer

        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state.update(post_processor=None, truncation=None, padding=None)
        self._backend = Tokenizer.from_str(json.dumps(state))
        self._max_tokens = max_tokens
        self._eos_token: str = tokenizer.eos_token
        special = {token["content"]: token["id"] for token in state["added_tokens"] if token["special"]}
        special.update(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special.pop("", None)
        self._special_ids = np.array(sorted(special.values()), np.int64)
        self._special_pattern = re.compile(
            "|".join(re.escape(text) for text in sorted(special, key=len, reverse=True))
        )
        self._bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self._decide_bos(tokenizer, add_bos)
        self._check_eos(tokenizer.eos_token_id)
        self.template_text = template_text(template, _own_template(tokenizer) if template == "chat" else None)
        self._render: Callable[[Sequence[Message]], Rendering]
        if template == "raw":
            self._render = lambda messages: render_raw(messages, self._eos_token)
        else:
            text = with_fixed_date(self.template_text)
            chat = ChatTemplate(
                template,
                lambda messages: _apply(tokenizer, messages, text),
                eos_token=self._eos_token,
                special_tokens=list(special),
            )
            self._render = chat.render
        # Everything that decides the tokens of a text, and nothing else: two checkpoints may share it.
        self.identity_parts = (
            json.dumps(state, sort_keys=True),
            self._eos_token,
            sorted(special),
            self.template_text,
            self._bos_id if self.adds_bos else None,
        )

    def encode(self, messages: Sequence[Message]) -> Encoded | str:
        """One conversation; see `encode_batch`."""
        return self.encode_batch([messages])[0]

    def encode_batch(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | str]:
        """Each conversation in tokens, or the reason why it can't be used.

        Reasons  special_token_in_text: a content holds the text of a special token, which would be read as it
                 prompt_too_long: the first prompt leaves no room for a response token
        """
        results: list[Encoded | str] = []
        for start in range(0, len(conversations), _BATCH_ROWS):
            results += self._encode_some(conversations[start : start + _BATCH_ROWS])
        return results

    def _encode_some(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | str]:
        results: list[Encoded | str] = ["special_token_in_text"] * len(conversations)
        clean = [
            index
            for index, messages in enumerate(conversations)
            if not any(self._special_pattern.search(message.content) for message in messages)
        ]
        renderings = [self._render(conversations[index]) for index in clean]
        texts = [rendering.text for rendering in renderings]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        for index, rendering, text, encoding in zip(clean, renderings, texts, encodings, strict=True):
            ids = np.array(encoding.ids, np.int32)
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            results[index] = self._finish(rendering, text, ids, offsets[:, 0], offsets[:, 1])
        return results

    def _finish(
        self,
        rendering: Rendering,
        text: str,
        ids: NDArray[np.int32],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> Encoded | str:
        char_roles = np.repeat(
            np.array([segment.role for segment in rendering.segments], np.uint8),
            [len(segment.text) for segment in rendering.segments],
        )
        starts, ends = self._without_swallowed_space(text, ids, starts, ends)
        roles = token_roles(char_roles, starts, ends)
        _, ends = _widened(starts, ends, len(text))
        if len(ids) and ids[0] == self._bos_id:
            roles[0] = Role.NONE
        elif self.adds_bos:
            ids = np.concatenate([np.array([self._bos_id], np.int32), ids])
            roles = np.concatenate([np.array([Role.NONE], np.uint8), roles])
            ends = np.concatenate([np.zeros(1, np.int64), ends])
        num_kept = min(len(ids), self._max_tokens)
        kept = [
            position
            for position in _first_response_tokens(roles, ends, rendering.response_starts)
            if position < num_kept
        ]
        if not kept:
            return "prompt_too_long"
        is_truncated = num_kept < len(ids)
        num_chars = int(ends[:num_kept].max()) if is_truncated else len(text)
        return Encoded(
            ids[:num_kept], roles[:num_kept], _bytes_by_role(rendering, num_chars), kept[-1], is_truncated
        )

    def _without_swallowed_space(
        self, text: str, ids: NDArray[np.int32], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets without the white space that a special token's lstrip or rstrip took from a neighbour."""
        special = np.flatnonzero(np.isin(ids, self._special_ids))
        starts, ends = starts.copy(), ends.copy()
        for index in special.tolist():
            start, end = int(starts[index]), int(ends[index])
            held = text[start:end]
            if held.strip() and held != held.strip():
                starts[index] = start + len(held) - len(held.lstrip())
                ends[index] = end - len(held) + len(held.rstrip())
        return starts, ends

    def _decide_bos(self, tokenizer: Any, add_bos: bool | None) -> bool:
        if add_bos is None:
            ids = tokenizer("a")["input_ids"]
            return self._bos_id is not None and len(ids) > 0 and ids[0] == self._bos_id
        if add_bos and self._bos_id is None:
            raise ModelError(
                "model.add_bos=true, but the tokenizer has no BOS token",
                "a tokenizer with bos_token",
                "set model.add_bos=false",
            )
        return add_bos

    def _check_eos(self, eos_id: int) -> None:
        ids = self._backend.encode(f"a{self._eos_token}", add_special_tokens=False).ids
        if not ids or ids[-1] != eos_id:
            raise ModelError(
                f"the tokenizer doesn't read its own EOS token {self._eos_token!r} back as one token",
                "eos_token among the special added tokens of tokenizer.json",
                "add it there, with special=true",
            )


def encode(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    template: str = "raw",
    add_bos: bool | None = None,
    max_tokens: int,
) -> Encoded | str:
    """One conversation in tokens, or the reason why it can't be used; for many, keep an `Encoder`."""
    return Encoder(tokenizer, template=template, add_bos=add_bos, max_tokens=max_tokens).encode(messages)


def _apply(tokenizer: Any, messages: list[dict[str, str]], template: str) -> str:
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


def _own_template(tokenizer: Any) -> str | None:
    return tokenizer.get_chat_template() if tokenizer.chat_template else None


def _first_response_tokens(
    roles: NDArray[np.uint8], ends: NDArray[np.int64], response_starts: Sequence[int]
) -> list[int]:
    """For each turn the position of its first RESPONSE token; `len(roles)` or more where there is none."""
    positions = np.flatnonzero(roles == Role.RESPONSE)
    if len(positions) == 0:
        return [len(roles)]
    found = np.searchsorted(np.maximum.accumulate(ends[positions]), response_starts, side="right")
    return [int(positions[index]) if index < len(positions) else len(roles) for index in found.tolist()]


def _bytes_by_role(rendering: Rendering, num_chars: int) -> NDArray[np.int64]:
    """UTF-8 bytes of the first `num_chars` characters by role."""
    sizes = np.zeros(NUM_ROLES, np.int64)
    left = num_chars
    for segment in rendering.segments:
        if left <= 0:
            break
        if segment.is_text:
            role = Role.RESPONSE if segment.role == JOIN else segment.role
            sizes[role] += len(segment.text[:left].encode("utf-8"))
        left -= len(segment.text)
    return sizes
