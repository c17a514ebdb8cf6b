"""Benchmarks on one finished run: its weights found or trained again, its scores as a record of their own."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from train.benchmarks.config import evaluation_fingerprint
from train.benchmarks.evaluation import Stopped, evaluate_benchmarks
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.identity import asked_protocols
from train.benchmarks.interface import Backend
from train.benchmarks.prompts import PromptEncoder
from train.config import RunConfig
from train.distributed import local_device
from train.errors import DataError, ModelError
from train.files import read_json
from train.kept import FOLDER, has_weights, remove_weights
from train.loop import Interrupted
from train.model import add_adapters, context_length
from train.parents import parent_weights, read_parent
from train.provenance import environment
from train.record import RunRecord
from train.run import device_of
from train.seeds import seed_of
from train.weights import load_weights
from train.workbench import Workbench


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
    """Measure the run in `parent_folder`, whose evaluations/ the results are written to.

    config   the measured run's, with the benchmarks that are asked and stage "evaluate"
    Raises   Interrupted (what was done is kept); UserError where the weights or the data aren't to be had.
    """
    started = time.monotonic()
    torch.set_num_threads(config.train.num_threads)
    device = local_device(device_of(config))
    measured_run = read_json(parent_folder / "record.json") or {}
    protocols = asked_protocols(config.eval, workbench.cache_folder)
    if evaluation_fingerprint(measured_run["fingerprint"], protocols, config.eval.aggregates) != fingerprint:
        raise DataError(
            f"what {', '.join(protocols)} are asked with changed since the plan was made: "
            f"files of eval.data={config.eval.data}, or the installed lm-eval",
            "the same files and version",
            "run the same line again: it makes a new plan",
        )
    adapted: list[nn.Module] = []
    setup: dict[str, float] = {}

    def make_backend() -> Backend:
        begun = time.monotonic()
        model = workbench.model(config, model_identity, device)
        if measured_run["stage"] != "base":
            weights = _weights(config, parent_folder, folder, workbench, should_stop)
            model = workbench.model(config, model_identity, device)  # which training again may have changed
            if config.train.method == "lora":
                model = add_adapters(model, config.train, seed_of(config, "init"))
                adapted.append(model)
            load_weights(model, weights)
        backend = _backend(config, model.eval(), workbench, model_identity, device)
        setup["s"] = time.monotonic() - begun
        return backend

    try:
        measured = evaluate_benchmarks(
            config.eval,
            protocols,
            make_backend,
            run_folder=parent_folder,
            parameters_sha256=measured_run["parameters_sha256"],
            cache_folder=workbench.cache_folder,
            should_stop=should_stop,
            on_progress=on_progress,
        )
    except Stopped as error:
        raise Interrupted(str(error)) from None
    finally:
        for model in adapted:
            model.unload()  # type: ignore[operator] - gives the shared base model back without adapters
    if config.eval.retrain and (folder / "retrained").exists():
        remove_weights(parent_folder)
    return RunRecord(
        run_id=run_id,
        fingerprint=fingerprint,
        outcome="finished",
        stage=config.stage,
        metrics=measured.metrics,
        measured=measured.details,
        parameters_sha256=measured_run["parameters_sha256"],
        evaluation_s=time.monotonic() - started - setup.get("s", 0.0),
        setup_s=setup.get("s", 0.0),
        attempt=attempt,
        environment=environment(device),
        finished_at=time.time(),
    )


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


def _backend(
    config: RunConfig, model: nn.Module, workbench: Workbench, model_identity: str, device: torch.device
) -> Backend:
    backend = HFBackend(
        model,
        workbench.tokenizer(config, model_identity),
        device,
        _encoder(config, workbench, model_identity),
        context_length=context_length(model),
        batch_tokens=config.eval.batch_tokens,
    )
    if config.eval.backend == "vllm":
        from train.benchmarks.vllm_backend import VLLMBackend  # an extra, imported where it is asked for

        return VLLMBackend(backend, context_length(model))
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
