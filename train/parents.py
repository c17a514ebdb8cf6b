"""The run that a preference-tuned one starts from: found, checked, and its weights made ready.

A parent is a run's folder, or a folder that `python -m train export` wrote. Where its weights weren't kept it
is trained again beside its child: a run is a function of its configuration, and the hash in its record proves
it.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.config import RunConfig, run_config_from_dict
from train.errors import ConfigError, ModelError
from train.files import read_json
from train.fingerprint import identity_tree
from train.kept import ABOUT, FOLDER
from train.overrides import overrides_for

if TYPE_CHECKING:
    from train.workbench import Workbench

_SAME = ("model", "dataset", "train", "objective", "seed", "seeds", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A finished supervised run."""

    folder: Path
    run_id: str
    fingerprint: str
    model_identity: str
    dataset_identity: str
    parameters_sha256: str
    config: RunConfig

    @property
    def weights(self) -> Path | None:
        """Where its weights are; None if they weren't kept."""
        found = (folder for folder in (self.folder / FOLDER, self.folder) if (folder / ABOUT).is_file())
        return next(found, None)


def read_parent(folder: Path) -> Parent:
    """The run of a folder; ConfigError if it is no finished supervised run."""
    spec = next(
        (
            found
            for place in ("spec.json", f"{FOLDER}/{ABOUT}", ABOUT)
            if (found := read_json(folder / place)) is not None
        ),
        None,
    )
    if spec is None:
        raise ConfigError(
            f"parent={folder} is no run",
            "the folder of a finished run, or one that export wrote",
            "first: python -m train keep=all output=FOLDER ...",
        )
    record = read_json(folder / "record.json") or spec
    sha256 = record.get("parameters_sha256")
    if record.get("outcome", "finished") != "finished" or not sha256:
        raise ConfigError(
            f"parent={folder} isn't finished", "a finished run", "train it first, or name another"
        )
    config = run_config_from_dict(spec["config"])
    if config.stage != "sft":
        raise ConfigError(
            f"parent={folder} has stage={config.stage}", "a run of stage=sft", "name another parent="
        )
    return Parent(
        folder=folder,
        run_id=spec["run_id"],
        fingerprint=spec["fingerprint"],
        config=config,
        model_identity=spec["model_identity"],
        dataset_identity=spec["dataset_identity"],
        parameters_sha256=sha256,
    )


def check_parent(parent: Parent, config: RunConfig, model_identity: str) -> None:
    """ModelError for another base; ConfigError for any other setting that isn't the parent's."""
    if parent.model_identity != model_identity:
        raise ModelError(
            f"parent {parent.run_id} was trained on another base ({parent.config.model.name}: "
            f"{parent.model_identity[:23]}) than model {config.model.name} ({model_identity[:23]})",
            "the parent's own base",
            "leave model= out, or name another parent=",
        )
    theirs, ours = identity_tree(parent.config), identity_tree(config)
    for key in _SAME:
        if theirs.get(key) != ours.get(key):
            raise ConfigError(
                f"{key} differs from that of parent {parent.run_id}",
                "the parent's own settings",
                f"leave {key} out: only dpo, preference and paths can be chosen",
            )


def parent_weights(
    parent: Parent, scratch: Path, workbench: "Workbench", should_stop: Callable[[], bool]
) -> Path:
    """The folder of the parent's weights, trained again in `scratch` if they weren't kept.

    Raises   Interrupted; ModelError where training again gave other bits (another device, other versions).
    """
    if parent.weights is not None:
        return parent.weights
    from train.run import run  # which stands on this module

    record = run(
        dataclasses.replace(parent.config, keep="all"),
        run_id=parent.run_id,
        folder=scratch,
        attempt=1,
        fingerprint=parent.fingerprint,
        model_identity=parent.model_identity,
        dataset_identity=parent.dataset_identity,
        workbench=workbench,
        should_stop=should_stop,
        on_progress=lambda step, steps: None,
    )
    if record.parameters_sha256 != parent.parameters_sha256:
        raise ModelError(
            f"the weights of parent {parent.run_id} weren't kept, and training it again gave others "
            f"({record.parameters_sha256[:12]}, not {parent.parameters_sha256[:12]})",
            "the device and the versions of its record",
            "train parent and child in one sweep",
        )
    try:
        os.rename(scratch / FOLDER, parent.folder / FOLDER)
    except OSError:  # another child was faster
        return parent.weights or scratch / FOLDER
    shutil.rmtree(scratch, ignore_errors=True)
    return parent.folder / FOLDER


def overrides_with_parent(parent: Parent, overrides: Sequence[str]) -> list[str]:
    """What the parent was told, and then what its child is told: only that need be said by hand."""
    said = {text.lstrip("+~").split("=")[0] for text in overrides}
    inherited = [
        text
        for text in overrides_for(parent.config)
        if (key := text.split("=")[0]) not in said and key.split(".")[0] not in said
    ]
    return [*inherited, *overrides]
