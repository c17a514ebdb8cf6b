"""One run from configuration to record: the whole story, top to bottom."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from train.checkpoint import Progress
from train.conclusion import concluded, parameters_sha256
from train.config import RunConfig
from train.distributed import local_device, world_of
from train.errors import ConfigError
from train.failures import NonFiniteLossError, failure_from_exception
from train.fingerprint import own_protocol
from train.footprint import Footprint
from train.items import FOLDER as ITEMS
from train.items import write_items
from train.launch import is_rank, launch
from train.loop import Hooks, Interrupted
from train.model import context_length
from train.parents import Parent, check_parent, parent_weights, read_parent
from train.preferences import load_token_pairs
from train.provenance import environment, git_state
from train.record import RunRecord
from train.together import fitted, train_and_measure
from train.tracking import start_tracker
from train.tracking_values import Asked, mirrored_run
from train.weights import load_weights, save_weights
from train.workbench import Workbench

__all__ = ["Interrupted", "Workbench", "run"]


def run(
    config: RunConfig,
    *,
    run_id: str,
    fingerprint: str,
    folder: Path,
    attempt: int,
    workbench: Workbench,
    model_identity: str,
    dataset_identity: str,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    asked: Asked = Asked(),
    parent_folder: Path | None = None,
    pause_at: float | None = None,
) -> RunRecord:
    """Train and measure one configuration; the record is returned, not written.

    `folder` holds events.jsonl and a checkpoint, from which a second call goes on; whoever writes the record
    removes it afterwards, so that no moment of dying costs a finished training.
    A non-finite loss is a result: a record with outcome "failed". Everything else that goes wrong is raised.
    `parent_folder` is that of the run which stage dpo starts from. `pause_at` is the share of a supervised run's
    steps at which it is measured and paused.
    `asked` is for the mirror only; what the mirror lost is named in the record's environment.

    Raises   Interrupted or Paused (state saved), UserError, or whatever broke.
    """
    if config.num_ranks > 1 and not is_rank():
        return launch(
            config,
            run_id=run_id,
            fingerprint=fingerprint,
            folder=folder,
            attempt=attempt,
            cache_folder=workbench.cache_folder,
            model_identity=model_identity,
            dataset_identity=dataset_identity,
            should_stop=should_stop,
            on_progress=on_progress,
            asked=asked,
            pause_at=pause_at,
        )
    setup_started = time.monotonic()
    torch.set_num_threads(config.train.num_threads)
    device = local_device(device_of(config))
    footprint = Footprint(device)

    def told(step: int, num_steps: int) -> None:
        footprint.sample()
        on_progress(step, num_steps)

    parent = _parent(config, model_identity, parent_folder)
    if parent is not None:  # first, as it may have to be trained again with the shared model
        start = parent_weights(parent, folder / "parent", workbench, should_stop)
    tokenizer = workbench.tokenizer(config, model_identity)
    model = workbench.model(config, model_identity, device)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    data = workbench.data(config, model, model_identity, dataset_identity)
    trained = fitted(model, config)
    setup_s = time.monotonic() - setup_started
    identities = {"model_identity": model_identity, "dataset_identity": dataset_identity}
    tracker = start_tracker(
        config,
        mirrored_run(config, run_id, fingerprint, identities, git_state().get("git_commit"), asked),
        folder,
    )
    metrics: dict[str, float] = {}
    details: Mapping[str, Mapping[str, Any]] = {}
    counts = {**data.counts, "model_parameters": num_parameters}
    failure, progress, evaluation_s = None, Progress(0, 0.0, None), 0.0
    hooks = Hooks(should_stop, told, tracker)
    try:
        if parent is not None:
            from train.dpo import tune  # late: it needs TRL only there

            load_weights(trained, start)
            pairs = load_token_pairs(
                config.preference, config.model, tokenizer, context_length=context_length(model)
            )
            counts |= pairs.counts
            progress, metrics = tune(
                trained,
                pairs,
                tokenizer,
                config,
                fingerprint=fingerprint,
                folder=folder,
                device=device,
                hooks=hooks,
            )
        with world_of(config.train.distributed, device) as world:
            learned, measured, evaluation_s = train_and_measure(
                trained,
                data,
                config,
                tokenizer,
                fingerprint=fingerprint,
                folder=folder,
                device=device,
                hooks=hooks,
                world=world,
                protocol=own_protocol(config, dataset_identity),
                pause_at=pause_at,
            )
        progress, metrics = learned or progress, {**metrics, **measured.metrics}
        details = measured.measured
        for items in measured.items:
            write_items(folder / ITEMS, items)
        if config.keep != "none":
            save_weights(
                trained,
                tokenizer,
                config,
                folder,
                {
                    "run_id": run_id,
                    "fingerprint": fingerprint,
                    **identities,
                    "parameters_sha256": parameters_sha256(trained),
                },
            )
    except NonFiniteLossError as error:
        failure = failure_from_exception(error)
    except BaseException:
        tracker.finish(None)
        raise
    finally:
        digest = parameters_sha256(trained)
        if trained is not model:
            trained.unload()  # type: ignore[operator] - gives the shared base model back without adapters
    return concluded(
        config,
        data,
        tracker,
        run_id=run_id,
        fingerprint=fingerprint,
        attempt=attempt,
        progress=progress,
        metrics=metrics,
        measured=details,
        counts=counts,
        parameters_sha256=digest,
        setup_s=setup_s,
        evaluation_s=evaluation_s,
        environment=environment(device) | dict(progress.how) | footprint.numbers(),
        failure=failure,
    )


def _parent(config: RunConfig, model_identity: str, folder: Path | None) -> Parent | None:
    if config.stage != "dpo":
        return None
    if folder is None:
        raise ConfigError(
            "stage=dpo has no parent", "a finished run to start from", "add parent=/folder/of/a/run"
        )
    parent = read_parent(folder)
    check_parent(parent, config, model_identity)
    return parent


def device_of(config: RunConfig) -> torch.device:
    """The device the configuration asks for; auto prefers CUDA."""
    if config.train.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device=cuda, but PyTorch sees no GPU",
            "a GPU and a PyTorch built for it",
            "set train.device=auto",
        )
    if config.train.device != "auto":
        return torch.device(config.train.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
