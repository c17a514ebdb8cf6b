"""The analysis before it is wanted: loaded beside a sweep's last runs, it writes the report as soon as they end."""

import sys

from train.libraries import imported_to_stay

WORD = "--when-told"  # on the command line of a process that waits for a line on its standard input


def load_libraries() -> None:
    """Import what every report needs: a second that needs no record."""
    with imported_to_stay():
        import pandas  # noqa: F401
        import pyarrow.parquet  # noqa: F401

        from analysis import curve, landscape_plot, plot, report  # noqa: F401


def is_wanted() -> bool:
    """Wait for a line; False if standard input ends without one, as it does when whoever would say it is gone."""
    return bool(sys.stdin.readline())
