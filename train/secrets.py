"""Secrets out of texts that are kept: by the name they stand behind, by their shape, and by their value.

What we write holds none by itself: nothing is read from the environment but what is named (`train.provenance`), and
a configuration that holds one is refused (`train.compose`). But an error message, a traceback or a line that some
library prints may quote a URL, a header or a command.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

HIDDEN = "[hidden]"
_WORD = (
    r"(?:api[_-]?key|apikey|access[_-]?key(?:[_-]?id)?|secret|token|passw(?:or)?d|passphrase|pwd|credentials?"
    r"|auth(?:orization)?|private[_-]?key|client[_-]?secret|session[_-]?key|signature|cookie)"
)
_NAME = re.compile(rf"(^|[_\W]){_WORD}($|[_\W])|{_WORD}$|_key$|_pass$|_pat$", re.IGNORECASE)
_SHAPES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?<=://)[^\s/@'\"]+(?=@)",  # user:password@host
        r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}\b",
        r"\b(?:gh[opsur]|github_pat|glpat)[_-][A-Za-z0-9_-]{20,}",
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"\bAIza[A-Za-z0-9_-]{35}",
        r"\bwandb_v1_[A-Za-z0-9_]{20,}",
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JSON web tokens
        r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])(?=.{0,40}(?:wandb|api))",
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    )
)
_BEARER = re.compile(r"(?i)\b(?P<name>(?:bearer|basic|token)\s+)(?P<secret>[A-Za-z0-9._~+/=-]{8,})")
_ASSIGNED = re.compile(
    rf"(?i)(?P<name>(?<![\w.-])[\w.-]*{_WORD}(?!s)[\w-]*[\"']?\s*(?:=>|[:=])\s*|--?[\w-]*{_WORD}(?!s)[\w-]*[ =])"
    r"(?P<secret>\"[^\"]*\"|'[^']*'|(?:bearer|basic|token)\s+[^\s,;&]+|[^\s,;&\"']+)"
)
_AS_KEY = re.compile(
    r"(?i)(?P<name>(?:^|[\s({,;&?=\"'])[\w.-]*_(?:key|pass|pat)[\"']?\s*[:=]\s*)"
    r"(?P<secret>\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)"
)
_REFERENCE = re.compile(  # HF_TOKEN=$(cat token): a name of a secret that stays where it is
    r"[\w.-]+[\"']?\s*[:=]\s*[\"']?\$(?:\w+|\{[^}]*\}|\([^)]*\))[\"']?"
)
_PASSWORD_OF_URL = re.compile(r"://[^\s/@:]*:([^\s/@]+)@")
_SHORTEST = 8  # a value of fewer letters is a word, not a secret


def scrub(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with every secret replaced by [hidden]."""
    return _scrubbed(text, secret_values(environment), lambda _: HIDDEN)


def scrubber(environment: Mapping[str, str] = os.environ) -> Callable[[str], str]:
    """`scrub` for many texts: what the environment holds is looked up once."""
    values = secret_values(environment)
    return lambda text: _scrubbed(text, values, lambda _: HIDDEN)


def _scrubbed(text: str, values: Iterable[str], hide: Callable[[str], str]) -> str:
    for value in values:
        text = text.replace(value, hide(value))
    for pattern in _SHAPES:
        text = pattern.sub(lambda match: hide(match[0]), text)
    for pattern in (_ASSIGNED, _AS_KEY, _BEARER):
        text = pattern.sub(lambda match: match["name"] + hide(match["secret"]), text)
    return text


def holds_secret(text: str) -> bool:
    """Whether a text that somebody typed holds a secret itself, and doesn't only say where one is."""
    text = _REFERENCE.sub(" ", text)
    return scrub(text) != text


def mask_file(path: Path) -> None:
    """Scrub a text that others wrote and may go on appending to: letters are replaced where they stand, none added.

    One that isn't there, or can't be written, stays as it is.
    """
    values = [
        value.encode("utf-8", "surrogateescape").decode("latin-1") for value in secret_values(os.environ)
    ]
    with suppress(OSError), open(path, "r+b", buffering=0) as stream:
        text = stream.read().decode("latin-1")  # a letter for each byte
        clean = _scrubbed(text, values, lambda found: HIDDEN[: len(found)].ljust(len(found), "*"))
        if clean != text:
            os.pwrite(stream.fileno(), clean.encode("latin-1"), 0)


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """What is secret by its place, longest first: in variables so named, in URLs, in the files of logins."""
    found = {value for name, value in environment.items() if _NAME.search(name) and "/" not in value[:1]}
    for value in environment.values():
        found.update(_PASSWORD_OF_URL.findall(value))
    if environment is os.environ:
        found.update(_stored())
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


@cache
def _stored() -> tuple[str, ...]:
    """The passwords that `wandb login` and `hf auth login` left in the user's home."""
    import netrc

    found: list[str] = []
    with suppress(OSError, netrc.NetrcParseError, RuntimeError):
        hosts = netrc.netrc(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")).hosts
        found += [password for _, _, password in hosts.values() if password]
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    with suppress(OSError, UnicodeDecodeError):
        found.append(Path(home, "token").expanduser().read_text(encoding="ascii").strip())
    return tuple(found)
