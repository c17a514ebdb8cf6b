"""The models that are asked: weights found or trained again, and adapters of one base over one resident copy of it."""

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
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Backend
from train.benchmarks.plane_backend import PlaneBackend
from train.benchmarks.prompts import PromptEncoder
from train.config import RunConfig
from train.errors import ModelError
from train.failures import MEMORY, OF_THE_MACHINE, failure_kind
from train.kept import FOLDER, has_weights
from train.loop import Interrupted
from train.model import add_adapters, context_length, trainable_parameters
from train.parents import parent_weights, read_parent
from train.seeds import seed_of
from train.stacked.stacking import cannot_stack
from train.weights import load_weights
from train.workbench import Workbench

_SHARE_OF_FREE_MEMORY = 0.25  # for the adapters of one group; what the model computes needs the rest


@dataclass(frozen=True, slots=True)
class Source:
    """Whose parameters: the run's folder, the evaluation's own, and whether it is the untouched base model.

    should_stop   calls this run away
    """

    run_folder: Path
    folder: Path
    is_base: bool
    should_stop: Callable[[], bool]


class Models:
    """The models of some evaluations, made once something is asked of them; `close` gives the base back bare.

    failed    hears of each run whose weights aren't to be had, or that was called away before
    setup_s   seconds that making them took
    """

    def __init__(
        self,
        config: RunConfig,
        sources: Sequence[Source],
        workbench: Workbench,
        model_identity: str,
        device: torch.device,
        *,
        should_stop: Callable[[], bool],
        failed: Callable[[int, Exception], None],
    ) -> None:
        self._config, self._sources, self._should_stop, self._failed = config, sources, should_stop, failed
        self._workbench, self._model_identity, self._device = workbench, model_identity, device
        self._adapted: list[nn.Module] = []
        self.setup_s = 0.0

    def backends(self, wanted: Sequence[int]) -> tuple[Backends, list[int]]:
        """Of some of the sources, as many as there is room for at once; and which those are."""
        started, config = time.monotonic(), self._config
        found = self._each(wanted, self._weights)
        # not before: training again changes it
        model = self._workbench.model(config, self._model_identity, self._device)
        if config.train.method == "lora" and any(found.values()):
            model = add_adapters(model, config.train, seed_of(config, "init"))
            self._adapted.append(model)
        backend = _hf_backend(config, model.eval(), self._workbench, self._model_identity, self._device)
        some = list(found)[: _at_once(model, self._device)]
        if len(some) == 1:
            loaded = self._each(some, lambda n: _fill(model, found[n]))
            backends: Backends = OneModel(_asked_backend(config, backend))
        else:
            fresh = _parameters(model)
            loaded = self._each(some, lambda n: fresh if found[n] is None else _cell(model, found[n]))
            may_stack = len(loaded) > 1 and _may_stack(model, config)
            backends = PlaneBackend(backend, list(loaded.values()), may_stack=may_stack)
        self.setup_s += time.monotonic() - started
        return backends, list(loaded)

    def close(self) -> None:
        """What was put around the shared base goes."""
        while self._adapted:
            self._adapted.pop().unload()  # type: ignore[operator]

    def _each(self, wanted: Sequence[int], make: Callable[[int], Any]) -> dict[int, Any]:
        """`make` of each run; who fails is told of, and left out."""
        made = {}
        for n in wanted:
            try:
                made[n] = make(n)
            except Exception as error:
                if failure_kind(error) in (*OF_THE_MACHINE, *MEMORY):
                    raise
                if isinstance(error, Interrupted) and self._should_stop():
                    raise
                self._failed(n, error)
        return made

    def _weights(self, n: int) -> Path | None:
        """The run's weights; trained again where they weren't kept and eval.retrain says so. None: the base's."""
        source = self._sources[n]
        if source.is_base:
            return None
        if has_weights(source.run_folder):
            return source.run_folder / FOLDER
        if not self._config.eval.retrain:
            raise ModelError(
                f"{source.run_folder.name[:12]} kept no weights to evaluate",
                "retention=region or retention=all when it was trained",
                "add eval.retrain=true to train it again",
            )
        (source.folder / "retrained").touch()  # its weights go again once it is measured
        shutil.rmtree(source.folder / "parent", ignore_errors=True)
        os.makedirs(source.folder / "parent", exist_ok=True)
        parent = read_parent(source.run_folder)

        def should_stop() -> bool:
            return self._should_stop() or source.should_stop()

        return parent_weights(parent, source.folder / "parent", self._workbench, should_stop)


def _at_once(model: nn.Module, device: torch.device) -> int:
    """How many runs' parameters may be held beside the model."""
    size = sum(each.numel() * each.element_size() for each in trainable_parameters(model).values())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_memory()
    return max(1, int(_SHARE_OF_FREE_MEMORY * free / max(1, size)))


def _free_host_memory() -> float:
    """Bytes; where the system doesn't tell, as much as is wanted."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float("inf")


def _fill(model: nn.Module, folder: Path | None) -> None:
    """Put a run's weights into the model; None: it stays the base model."""
    if folder is not None:
        load_weights(model, folder)


def _cell(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The adapter of a folder."""
    load_weights(model, folder)
    return _parameters(model)


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in trainable_parameters(model).items()}


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
