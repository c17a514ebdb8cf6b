"""Benchmarks on finished runs: their weights found or trained again, their scores as records of their own.

Adapters of one base are measured together, over one resident copy of it; whole models one after another.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.benchmarks.asking import Backends, OneModel
from train.benchmarks.config import evaluation_fingerprint
from train.benchmarks.evaluation import MeasuredRun, Stopped, evaluate_together
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.identity import asked_protocols
from train.benchmarks.interface import Backend
from train.benchmarks.plane_backend import PlaneBackend
from train.benchmarks.prompts import PromptEncoder
from train.config import RunConfig
from train.distributed import local_device
from train.errors import DataError, ModelError
from train.files import read_json
from train.kept import FOLDER, has_weights, remove_weights
from train.loop import Interrupted
from train.model import add_adapters, context_length, trainable_parameters
from train.parents import parent_weights, read_parent
from train.provenance import environment
from train.record import RunRecord
from train.run import device_of
from train.seeds import seed_of
from train.stacked.stacking import cannot_stack
from train.weights import load_weights
from train.workbench import Workbench


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation: the measured run's configuration with the benchmarks that are asked and stage "evaluate".

    parent_folder   of the measured run, whose evaluations/ the results are written to
    """

    config: RunConfig
    run_id: str
    fingerprint: str
    folder: Path
    attempt: int
    parent_folder: Path


def company(config: RunConfig) -> Any:
    """Equal for evaluations that can be done together, given that their base is the same; None: alone."""
    recipe = config.train
    if recipe.method != "lora" or config.eval.backend != "hf" or config.num_ranks > 1:
        return None
    adapters = (recipe.lora_rank, recipe.lora_alpha, recipe.lora_targets)
    return config.model, config.eval, adapters, recipe.device, recipe.num_threads


def evaluate_runs(
    evaluations: Sequence[Evaluated],
    *,
    workbench: Workbench,
    model_identity: str,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> list[RunRecord]:
    """Measure runs of equal `company`, or one alone. Each gets its share of the seconds.

    Raises   Interrupted (what was done is kept); UserError where the weights or the data aren't to be had.
    """
    started = time.monotonic()
    config = evaluations[0].config
    torch.set_num_threads(config.train.num_threads)
    device = local_device(device_of(config))
    parents = [read_json(one.parent_folder / "record.json") or {} for one in evaluations]
    protocols = asked_protocols(config.eval, workbench.cache_folder)
    for one, parent in zip(evaluations, parents, strict=True):
        if (
            evaluation_fingerprint(parent["fingerprint"], protocols, config.eval.aggregates)
            != one.fingerprint
        ):
            raise DataError(
                f"what {', '.join(protocols)} are asked with changed since the plan was made: "
                f"files of eval.data={config.eval.data}, or the installed lm-eval",
                "the same files and version",
                "run the same line again: it makes a new plan",
            )
    adapted: list[nn.Module] = []
    setup: dict[str, float] = {}

    def make_backends(missing: Sequence[int]) -> Backends:
        begun = time.monotonic()
        weights = {
            n: _weights(config, evaluations[n].parent_folder, evaluations[n].folder, workbench, should_stop)
            for n in missing
            if parents[n]["stage"] != "base"
        }
        model = workbench.model(config, model_identity, device)  # which training again may have changed
        if weights and config.train.method == "lora":
            model = add_adapters(model, config.train, seed_of(config, "init"))
            adapted.append(model)
        backend = _hf_backend(config, model.eval(), workbench, model_identity, device)
        if len(missing) == 1:
            for folder in weights.values():
                load_weights(model, folder)
            found: Backends = OneModel(_asked_backend(config, backend))
        else:
            found = PlaneBackend(
                backend, _cells(model, [weights.get(n) for n in missing]), may_stack=_may_stack(model, config)
            )
        setup["s"] = time.monotonic() - begun
        return found

    try:
        measured = evaluate_together(
            config.eval,
            protocols,
            make_backends,
            [
                MeasuredRun(one.parent_folder, parent["parameters_sha256"])
                for one, parent in zip(evaluations, parents, strict=True)
            ],
            cache_folder=workbench.cache_folder,
            should_stop=should_stop,
            on_progress=on_progress,
        )
    except Stopped as error:
        raise Interrupted(str(error)) from None
    finally:
        for model in adapted:
            model.unload()  # type: ignore[operator] - gives the shared base model back without adapters
    for one in evaluations:
        if config.eval.retrain and (one.folder / "retrained").exists():
            remove_weights(one.parent_folder)
    setup_s, seconds = setup.get("s", 0.0), time.monotonic() - started
    return [
        RunRecord(
            run_id=one.run_id,
            fingerprint=one.fingerprint,
            outcome="finished",
            stage=one.config.stage,
            metrics=found.metrics,
            measured=found.details,
            parameters_sha256=parent["parameters_sha256"],
            evaluation_s=(seconds - setup_s) / len(evaluations),
            setup_s=setup_s / len(evaluations),
            attempt=one.attempt,
            environment=environment(device)
            | ({"evaluated_with": len(evaluations)} if len(evaluations) > 1 else {}),
            finished_at=time.time(),
        )
        for one, parent, found in zip(evaluations, parents, measured, strict=True)
    ]


def evaluate_run(
    config: RunConfig,
    *,
    run_id: str,
    fingerprint: str,
    folder: Path,
    attempt: int,
    workbench: Workbench,
    model_identity: str,
    parent_folder: Path,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
) -> RunRecord:
    """One of them."""
    (record,) = evaluate_runs(
        [
            Evaluated(
                config=config,
                run_id=run_id,
                fingerprint=fingerprint,
                folder=folder,
                attempt=attempt,
                parent_folder=parent_folder,
            )
        ],
        workbench=workbench,
        model_identity=model_identity,
        should_stop=should_stop,
        on_progress=on_progress,
    )
    return record


def _cells(model: nn.Module, folders: Sequence[Path | None]) -> list[dict[str, Tensor]]:
    """The adapters in these folders; fresh ones, which change nothing, for None: the base model."""
    fresh = {name: each.detach().clone() for name, each in trainable_parameters(model).items()}
    cells = []
    for folder in folders:
        if folder is not None:
            load_weights(model, folder)
        values = trainable_parameters(model) if folder is not None else fresh
        cells.append({name: each.detach().clone() for name, each in values.items()})
    return cells


def _may_stack(model: nn.Module, config: RunConfig) -> bool:
    """Whether all its adapters are of plain linear layers; else runs are measured one after another."""
    neutral = dataclasses.replace(  # what matters in training only
        config.train,
        dropout=0.0,
        lora_dropout=0.0,
        neftune_alpha=0.0,
        precision="float32",
        compile=False,
        activation_checkpointing=False,
    )
    objective = dataclasses.replace(config.objective, prompt_weight=1.0, response_weight=1.0, kl_weight=0.0)
    reason = cannot_stack(
        model, [dataclasses.replace(config, stage="sft", train=neutral, objective=objective)]
    )
    if reason:
        print(f"evaluated one after another: {reason}", flush=True)
    return not reason


def _weights(
    config: RunConfig,
    parent_folder: Path,
    folder: Path,
    workbench: Workbench,
    should_stop: Callable[[], bool],
) -> Path:
    """The run's weights; trained again where they weren't kept and eval.retrain says so."""
    if has_weights(parent_folder):
        return parent_folder / FOLDER
    if not config.eval.retrain:
        raise ModelError(
            f"{parent_folder.name[:12]} kept no weights to evaluate",
            "retention=region or retention=all when it was trained",
            "add eval.retrain=true to train it again",
        )
    (folder / "retrained").touch()  # its weights go again once it is measured
    shutil.rmtree(folder / "parent", ignore_errors=True)
    os.makedirs(folder / "parent", exist_ok=True)
    return parent_weights(read_parent(parent_folder), folder / "parent", workbench, should_stop)


def _hf_backend(
    config: RunConfig, model: nn.Module, workbench: Workbench, model_identity: str, device: torch.device
) -> HFBackend:
    return HFBackend(
        model,
        workbench.tokenizer(config, model_identity),
        device,
        _encoder(config, workbench, model_identity),
        context_length=context_length(model),
        batch_tokens=config.eval.batch_tokens,
    )


def _asked_backend(config: RunConfig, backend: HFBackend) -> Backend:
    if config.eval.backend == "vllm":
        from train.benchmarks.vllm_backend import VLLMBackend  # an extra, imported where it is asked for

        return VLLMBackend(backend, context_length(backend.model))
    return backend


_encoders: dict[tuple[str, bool | None], PromptEncoder] = {}  # prompts are tokenised once per process


def _encoder(config: RunConfig, workbench: Workbench, model_identity: str) -> PromptEncoder:
    key = model_identity, config.eval.add_bos
    if key not in _encoders:
        _encoders[key] = PromptEncoder(
            workbench.tokenizer(config, model_identity),
            template=config.model.template,
            model_add_bos=config.model.add_bos,
            add_bos=config.eval.add_bos,
        )
    return _encoders[key]
