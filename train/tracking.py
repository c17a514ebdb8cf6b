"""A mirror of a run in Weights & Biases. The record is the truth: nothing here may stop or slow a run.

wandb is imported only when asked for. A failure of the mirror is printed once and then ignored.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from train.config import RunConfig, config_to_dict


class Tracker(Protocol):
    """Where numbers are mirrored while a run goes on."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of optimiser step `step`."""
        ...

    def finish(self, metrics: Mapping[str, float]) -> None:
        """The final metrics; closes the mirror."""
        ...


class NullTracker:
    """The default: no mirror."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to mirror."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Nothing to close."""


class WandbTracker:
    """One W&B run per training run; its own step metric, so that a resumed run continues its curves."""

    def __init__(self, config: RunConfig, run_id: str, fingerprint: str, folder: Path) -> None:
        import wandb

        settings = wandb.Settings(console="off", disable_git=True, save_code=False, x_save_requirements=False,
                                  x_transaction_log_flush_interval=1.0, finish_timeout=120, silent=True)
        self._run = wandb.init(
            mode="offline" if config.tracking.mode == "wandb_offline" else "online", dir=str(folder),
            project=config.tracking.project, entity=config.tracking.entity, id=fingerprint, name=run_id,
            resume="allow", group=os.environ.get("WEIGHT_SWEEP_NAME"), job_type="train",
            tags=[config.model.name, config.dataset.name, *config.tracking.tags], settings=settings,
            config={"prompt_weight": config.objective.prompt_weight,
                    "response_weight": config.objective.response_weight, "seed": config.seed,
                    "model": config.model.name, "dataset": config.dataset.name, "stage": config.stage,
                    "fingerprint": fingerprint, "recipe": config_to_dict(config.train)},
        )
        self._run.define_metric("*", step_metric="trainer_step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of optimiser step `step`, on our own axis."""
        self._guarded(lambda: self._run.log({"trainer_step": step, **values}))

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Metrics go to the summary; waits at most `finish_timeout` seconds for the server."""
        self._guarded(lambda: self._run.summary.update(dict(metrics)))
        self._guarded(self._run.finish)

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # a mirror may break in any way; training goes on
            warnings.warn(f"W&B stopped mirroring this run: {error}", stacklevel=2)
            self._guarded = lambda action: None  # type: ignore[method-assign]


def start_tracker(config: RunConfig, run_id: str, fingerprint: str, folder: Path) -> Tracker:
    """The tracker the configuration asks for; the null tracker, with a printed line, if W&B can't start."""
    if config.tracking.mode == "none":
        return NullTracker()
    try:
        return WandbTracker(config, run_id, fingerprint, folder)
    except Exception as error:
        print(f"W&B could not start, training goes on without it: {error}", flush=True)
        return NullTracker()
