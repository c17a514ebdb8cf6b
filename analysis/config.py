"""What an analysis can be asked. Standard library only; read with `train.config.build`."""

from dataclasses import dataclass

from train.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisConfig:
    """How records become a report. None of it changes a run."""

    metric: str | None = (
        None  # a validation metric of train/metrics.py; None: the first preferred one on record
    )
    epsilon: float | None = (
        None  # a difference of no interest, metric's unit; None: by unit (analysis/units.py)
    )
    max_empty_output_rate: float = 0.2  # share of rows; a run above it is warned about

    def __post_init__(self) -> None:
        if self.epsilon is not None and not self.epsilon > 0:
            raise ConfigError(
                f"analysis.epsilon={self.epsilon:g}", "a number above 0", "set analysis.epsilon=0.01"
            )
        if not 0 <= self.max_empty_output_rate <= 1:
            raise ConfigError(
                f"analysis.max_empty_output_rate={self.max_empty_output_rate:g}",
                "a share from 0 to 1",
                "set analysis.max_empty_output_rate=0.2",
            )
