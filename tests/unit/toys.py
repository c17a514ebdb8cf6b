"""A plan of runs that nothing trains, and records of them."""

import dataclasses
from collections.abc import Mapping

from sweep.spec import Cell, Plan, PlannedBase, PlannedCell, RunSpec
from train.config import RunConfig, run_config_from_dict
from train.fingerprint import fingerprint
from train.record import Failure, RunRecord


def toy_config(
    seed: int = 0, prompt_weight: float = 1.0, *, model: str = "toy", stage: str = "sft"
) -> RunConfig:
    return run_config_from_dict(
        {
            "stage": stage,
            "model": {"name": model, "source": "embedded"},
            "seed": seed,
            "tracking": {},
            "dataset": {"name": "rows", "source": "embedded"},
            "train": {"device": "cpu"},
            "objective": {"prompt_weight": prompt_weight, "response_weight": 1.0},
        }
    )


def toy_spec(seed: int = 0, prompt_weight: float = 1.0, *, model: str = "toy", stage: str = "sft") -> RunSpec:
    config = toy_config(seed, prompt_weight, model=model, stage=stage)
    name = fingerprint(config, model_identity=model, dataset_identity="rows")
    kind = "base" if stage == "base" else f"p{prompt_weight:g}-r1-s{seed}"
    return RunSpec(f"{model}-rows-{kind}-{name[:12]}", name, config, model, "rows")


def toy_plan(
    num_runs: int = 3, *, name: str = "toys", models: tuple[str, ...] = ("toy",), has_base: bool = False
) -> Plan:
    specs = [toy_spec(seed, model=model) for model in models for seed in range(num_runs)]
    bases = [toy_spec(model=model, stage="base") for model in models] if has_base else []
    cells = [
        PlannedCell(Cell(spec.config.model.name, "rows", 1.0, 1.0, spec.config.seed), spec.fingerprint, False)
        for spec in specs
    ]
    planned = [PlannedBase(spec.config.model.name, "rows", (), spec.fingerprint) for spec in bases]
    return Plan(name, tuple(cells), tuple(planned), (*bases, *specs))


def finished(
    spec: RunSpec, *, seconds: float = 2.0, attempt: int = 1, metrics: Mapping[str, float] | None = None
) -> RunRecord:
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage=spec.config.stage,
        metrics=metrics or {"validation_response_nll": 1.5},
        counts={"train_rows": 8},
        num_steps=4,
        parameters_sha256="ab" * 32,
        training_s=seconds,
        attempt=attempt,
        finished_at=1.0,
    )


def failed(
    spec: RunSpec,
    *,
    attempt: int = 1,
    kind: str = "code",
    message: str = "broken",
    last_frame: str = "train/loop.py:7 in step",
) -> RunRecord:
    failure = Failure(kind=kind, message=message, last_frame=last_frame, traceback="Traceback ...")
    return dataclasses.replace(finished(spec, attempt=attempt), outcome="failed", metrics={}, failure=failure)
