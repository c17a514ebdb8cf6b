"""Every way a sweep can refuse.

UserError (train.errors)
  GridError         a grid that can't be expanded: unknown axis, empty, (0, 0), NaN
  ComposeError      a configuration that Hydra or the schema rejects, with the list of what exists
  LedgerError       a folder that can't hold results, or holds somebody else's
  LaunchError       a launcher that can't start workers
    StoppedError    ... and somebody has to mend something first
  SearchError       a search that can't propose
"""

from train.errors import UserError


class GridError(UserError):
    """A grid that can't be expanded into cells."""


class ComposeError(UserError):
    """A configuration that Hydra or the schema rejects."""


class LedgerError(UserError):
    """A folder that can't hold results, or holds somebody else's."""


class LaunchError(UserError):
    """A launcher that can't start workers."""


class StoppedError(LaunchError):
    """A sweep that goes on only after somebody mended something."""


class SearchError(UserError):
    """A search that can't propose."""
