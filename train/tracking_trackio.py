"""A local dashboard: the sink behind tracking=trackio. pip install 'weight-sweep[dash]', then `trackio show`.

Trackio keeps one SQLite file per project (TRACKIO_DIR, by default in the user's cache) and needs no server.
"""

from collections.abc import Mapping
from typing import Any

from train.record import RunRecord
from train.tracking_values import STEP, MirroredRun, summary_of


class TrackioSink:
    """One run of trackio, by the run's id; a continued run goes on behind the last step it has."""

    def __init__(self, mirrored: MirroredRun) -> None:
        self.mirrored = mirrored

    def open(self) -> int:
        """Make or continue the run."""
        try:
            import trackio
            from trackio.sqlite_storage import SQLiteStorage
        except ImportError as error:
            raise RuntimeError("trackio is not installed: pip install 'weight-sweep[dash]'") from error
        mirrored = self.mirrored
        last = SQLiteStorage.get_last_step(mirrored.project, mirrored.name)
        config = {key: value for key, value in mirrored.config.items() if "_json" not in key}
        self.run = trackio.init(
            project=mirrored.project,
            name=mirrored.name,
            group=mirrored.group,
            resume="allow",
            config=config,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return last or 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """One step's numbers."""
        self.run.log({STEP: step, **values}, step=step)

    def close(self, record: RunRecord | None) -> str:
        """Trackio has no summary: the final numbers are logged behind the last step."""
        if record is not None:
            numbers = {
                key: value for key, value in summary_of(record).items() if isinstance(value, int | float)
            }
            self.run.log({STEP: record.num_steps, **numbers}, step=record.num_steps + 1)
        self.run.finish()
        return ""
