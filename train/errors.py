"""Every way one run can refuse its input. `sweep.errors` grows the same tree upwards.

    UserError
      ConfigError       a key, a type or a value of the configuration
      DataError         a dataset's path, file, row or share of usable rows
      ModelError        a checkpoint, a tokenizer or a revision
      TemplateError     a chat template that hides where the roles are

A user's mistake is one line in three parts: what is wrong with its value, what was expected, what to type
next. The commands print it without a traceback and exit with code 2.
"""


class UserError(Exception):
    """A mistake the user can mend; `str()` is the one line to print."""

    def __init__(self, problem: str, expected: str = "", fix: str = "") -> None:
        self.problem, self.expected, self.fix = problem, expected, fix
        parts = [problem]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(fix)
        super().__init__(" ".join("; ".join(parts).split()))

    def __reduce__(self):  # pickled across processes by its three parts, not by the joined line
        return type(self), (self.problem, self.expected, self.fix)


class ConfigError(UserError):
    """A key, a type or a value of the configuration."""


class DataError(UserError):
    """A dataset's path, file, row, or too large a share of unusable rows."""


class ModelError(UserError):
    """A checkpoint, a tokenizer or a revision that can't be used."""


class TemplateError(UserError):
    """A chat template in which a role's text can't be located."""
