"""The end of a run: from what was measured to its record. The same for a run alone and for a cell of a stack."""

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from train.checkpoint import Progress
from train.config import RunConfig
from train.model import trainable_parameters
from train.record import CLIPPED, Failure, RunRecord
from train.tokens import TokenData
from train.tracking import Tracker


def concluded(
    config: RunConfig,
    data: TokenData,
    tracker: Tracker,
    *,
    run_id: str,
    fingerprint: str,
    attempt: int,
    progress: Progress,
    metrics: Mapping[str, float],
    measured: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, int],
    parameters_sha256: str,
    setup_s: float,
    evaluation_s: float,
    environment: Mapping[str, Any],
    failure: Failure | None,
) -> RunRecord:
    """The record, told to the mirror; with what the mirror lost, if anything."""
    record = RunRecord(
        run_id=run_id,
        fingerprint=fingerprint,
        outcome="failed" if failure else "finished",
        stage=config.stage,
        metrics=metrics,
        measured=measured,
        counts={
            **counts,
            **{f"unusable_rows.{why}": n for why, n in data.unusable.items()},
            "steps_without_active_tokens": progress.num_empty_steps,
            **({CLIPPED: progress.num_clipped_steps} if config.train.clip_norm is not None else {}),
        },
        final_train_loss=progress.final_train_loss,
        num_steps=progress.step,
        parameters_sha256=parameters_sha256,
        training_s=progress.training_s,
        evaluation_s=evaluation_s,
        setup_s=setup_s,
        tokens_per_s=progress.num_train_tokens / progress.training_s if progress.training_s else None,
        attempt=attempt,
        environment=environment,
        finished_at=time.time(),
        failure=failure,
    )
    lost = tracker.finish(record)
    return dataclasses.replace(record, environment={**environment, "mirror": lost}) if lost else record


def parameters_sha256(model: nn.Module) -> str:
    """Equal digests, equal parameters, bit for bit: how two runs are said to be the same run."""
    digest = hashlib.sha256()
    for name, parameter in sorted(trainable_parameters(model).items()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
