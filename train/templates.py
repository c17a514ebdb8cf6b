"""From a conversation to one text whose every character knows its role. Pure; the tokenizer comes in spans.

Two ways to write a conversation:
  raw     the published one: prompt, one space, response, EOS; nothing else
  chat    a Jinja template: the tokenizer's own ("chat"), a built-in ("tulu", "chatml") or a file

A Jinja template can't be asked which characters are whose. So it is rendered a second time with placeholders
in place of the contents: what surrounds the placeholders is the template's own text. The real rendering must
then be exactly that text around the contents; where it isn't, nothing is guessed (TemplateError).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from train.errors import TemplateError
from train.rows import Message


class Role(IntEnum):
    """Whose token it is; the value in the `roles` arrays. NONE is BOS and padding, and is never a target."""

    NONE = 0
    PROMPT = 1
    RESPONSE = 2
    SYSTEM = 3
    TEMPLATE = 4


JOIN = 5  # role of a character only: the space of the raw join, which belongs to the response's first token
ROLE_OF_SPEAKER = {"user": Role.PROMPT, "assistant": Role.RESPONSE, "system": Role.SYSTEM}

# Llama templates print today's date, and data must not change overnight. This one is their own fallback.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{{- {'%Y-%m-%d': '2024-07-26', '%B %d, %Y': 'July 26, 2024', '%Y': '2024'}.get(format, '26 Jul 2024')"
    " -}}"
    "{%- endmacro -%}"
)

# As open-instruct renders it: the line end after the last response is absent, as in IM's code, which strips.
TULU = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>\\n' + message['content'].strip() + eos_token -}}"
    "{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}"
    "{%- else -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'].strip() + '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
)
BUILT_IN = {"tulu": TULU, "chatml": CHATML}


def template_text(template: str, own: str | None) -> str:
    """The text behind `model.template`: "" for raw, else Jinja.

    own      the tokenizer's own chat template, if it has one.
    Raises   TemplateError where the name is none and no such file exists, or "chat" has no template.
    """
    if template == "raw":
        return ""
    if template == "chat":
        if not own:
            raise TemplateError(
                "model.template=chat, but the tokenizer has no chat template",
                "a tokenizer with one",
                "set model.template=raw, tulu, chatml or a Jinja file",
            )
        return own
    if template in BUILT_IN:
        return BUILT_IN[template]
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"model.template={template} can't be read ({type(error).__name__})",
            "raw, chat, tulu, chatml or a path to a Jinja file",
            "mend model.template=...",
        ) from None


class Segment(NamedTuple):
    """A piece of text with one character role (a `Role` or JOIN); an end-of-turn token is not `is_text`."""

    text: str
    role: int
    is_text: bool = True


@dataclass(frozen=True, slots=True)
class Rendering:
    """One text in segments; `response_starts` are the character positions where the responses begin."""

    segments: tuple[Segment, ...]
    response_starts: tuple[int, ...]

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


def render_raw(messages: Sequence[Message], eos_token: str) -> Rendering:
    """The published join: prompt without one trailing space, a space, response, EOS; turns follow directly.

    Source   arXiv:2507.07817, released code (`p = prompt[:-1] if prompt.endswith(" ")`).
    Differs  The code knows one turn and no system message; here a system message comes first, before a space.
    """
    segments: list[Segment] = []
    starts: list[int] = []
    position = 0
    for message in messages:
        if message.role == "assistant":
            starts.append(position)
            added = [
                Segment(" ", JOIN),
                Segment(message.content, Role.RESPONSE),
                Segment(eos_token, Role.RESPONSE, is_text=False),
            ]
        else:
            space = " " if message.role == "system" else ""
            added = [Segment(message.content.removesuffix(" ") + space, ROLE_OF_SPEAKER[message.role])]
        segments += added
        position += sum(len(segment.text) for segment in added)
    return Rendering(tuple(segments), tuple(starts))


class ChatTemplate:
    """A Jinja template that says whose each character is.

    render          list of {"role", "content"} -> text; any error of it becomes a TemplateError
    special_tokens  texts that the tokenizer reads as special; one right after a response ends the turn
    """

    def __init__(
        self,
        name: str,
        render: Callable[[list[dict[str, str]]], str],
        *,
        eos_token: str,
        special_tokens: Sequence[str],
    ) -> None:
        self._name, self._render_text, self._eos_token = name, render, eos_token
        # Longest first, so that <|end|> does not hide <|end|>_of_turn.
        self._ends = sorted({eos_token, *special_tokens} - {""}, key=len, reverse=True)
        self._literals: dict[tuple[str, ...], tuple[list[str], list[int]]] = {}

    def render(self, messages: Sequence[Message]) -> Rendering:
        """The rendering of one conversation, which ends with a response and an end token.

        Raises   TemplateError where the template refuses the conversation or drops or rewrites a text.
        Note     An end token of the template counts only right after the content. If there is none after the
                 last response, EOS is put there and what the template writes after the response is left out:
                 a model must learn to stop where its answer ends.
        """
        literals, order = self._surroundings(tuple(message.role for message in messages))
        real = self._call([{"role": message.role, "content": message.content} for message in messages])
        contents = self._match(real, literals, [messages[index] for index in order])
        last_response = len(messages) - 1
        segments: list[Segment] = [Segment(literals[0], Role.TEMPLATE)]
        starts: list[int] = []
        position = len(literals[0])
        for index, content, literal in zip(order, contents, literals[1:], strict=True):
            speaker = messages[index].role
            if speaker == "assistant":
                starts.append(position)
                end = next((end for end in self._ends if literal.startswith(end)), "")
                if index == last_response and not end:
                    end = literal = self._eos_token
            else:
                end = ""
            segments += [
                Segment(content, ROLE_OF_SPEAKER[speaker]),
                Segment(end, Role.RESPONSE, is_text=False),
                Segment(literal[len(end) :], Role.TEMPLATE),
            ]
            position += len(content) + len(literal)
        return Rendering(tuple(segment for segment in segments if segment.text), tuple(starts))

    def _surroundings(self, roles: tuple[str, ...]) -> tuple[list[str], list[int]]:
        """What the template writes around the contents of such a conversation, and the order it puts them in.

        Depends on the roles only, so it is rendered once for each sequence of them.
        """
        if roles not in self._literals:
            placeholders = [f"zq{index}placeholder{index}qz" for index in range(len(roles))]
            text = self._call(
                [
                    {"role": role, "content": placeholder}
                    for role, placeholder in zip(roles, placeholders, strict=True)
                ]
            )
            for role, placeholder in zip(roles, placeholders, strict=True):
                if text.count(placeholder) != 1:
                    how = "leaves out" if placeholder not in text else "repeats"
                    raise self._refusal(f"{how} the text of the {role} message", role)
            order = sorted(range(len(roles)), key=lambda index: text.index(placeholders[index]))
            literals = []
            for index in order:
                before, text = text.split(placeholders[index])
                literals.append(before)
            self._literals[roles] = ([*literals, text], order)
        return self._literals[roles]

    def _match(self, real: str, literals: list[str], messages: list[Message]) -> list[str]:
        """The contents as the template wrote them: as they are, or without the white space around them."""
        written: list[str] = []
        if not real.startswith(literals[0]):
            raise self._refusal("writes something else before the first message", messages[0].role)
        position = len(literals[0])
        for message, literal in zip(messages, literals[1:], strict=True):
            text = message.content
            options = (text, text.strip(), text.rstrip(), text.lstrip(), text.lstrip("\n"))
            found = next((option for option in options if real.startswith(option + literal, position)), None)
            if found is None:
                raise self._refusal(
                    f"rewrites the text of the {message.role} message {text[:30]!r} or what follows it",
                    message.role,
                )
            written.append(found)
            position += len(found) + len(literal)
        if position != len(real):
            raise self._refusal("writes something else after the last message", messages[-1].role)
        return written

    def _call(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._render_text(messages)
        except Exception as error:  # Jinja's errors, and the template's own raise_exception
            roles = ", ".join(message["role"] for message in messages[:6])
            line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise self._refusal(f"can't render the roles {roles}: {line}", messages[0]["role"]) from error

    def _refusal(self, what: str, role: str) -> TemplateError:
        return TemplateError(
            f"chat template {self._name} {what}",
            f"a template that writes the {role} text once and unchanged",
            "set model.template=raw, tulu, chatml or another Jinja file",
        )


def with_fixed_date(text: str) -> str:
    """The template with a `strftime_now` that always says 26 July 2024."""
    return _FIXED_DATE + text
