"""`python -m train`: one cell, composed, trained, measured and printed, in a folder of its own.

It continues from its checkpoint when it is called again, and only prints the record if it is finished.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from train.config import RunConfig, config_to_dict
from train.errors import ConfigError, DataError, ModelError
from train.files import read_json, write_json_atomic
from train.hub import check_reachable
from train.kept import has_weights
from train.metrics import metric as metric_of
from train.record import RunRecord, record_from_dict, record_to_dict

if TYPE_CHECKING:
    from train.parents import Parent

HELP = """\
python -m train objective.prompt_weight=P objective.response_weight=R seed=S [KEY=VALUE ...]

Train one cell by hand and print what it is worth. `python -m sweep ... status` prints such a line for any run.

  model=NAME dataset=NAME train=NAME eval=NAME   files of conf/; train.learning_rate=3e-4 changes one number
  stage=base                                     measure the untouched base model instead of training
  stage=dpo parent=FOLDER preference=NAME        preference tuning of a finished run; dpo.beta=0.2 and the like.
                                                 FOLDER is the run's, or one that export wrote
  keep=all                                       keep the trained weights in the run's folder; see also
                                                 python -m train export --help
  output=FOLDER                                  record.json, events.jsonl; default outputs/by_hand/FINGERPRINT
  --config-dir DIR                               a folder of your own YAML files, laid out like conf/

Called again, an interrupted run goes on where it was; a finished one is only printed.
Exit codes: 0 finished; 1 failed; 2 a mistake in the input, said in one line; 130 interrupted."""


def train_by_hand(argv: Sequence[str]) -> int:
    """Run the command line; UserError for a mistake in it."""
    from train.checkpoint import remove_checkpoint
    from train.compose import compose_run
    from train.fingerprint import fingerprint as fingerprint_of
    from train.identity import dataset_identity, model_identity, pinned

    overrides, config_dirs, output = _split(argv)
    parent_folder = next(
        (Path(word.removeprefix("parent=")) for word in overrides if word.startswith("parent=")), None
    )
    overrides = [word for word in overrides if not word.startswith("parent=")]
    parent = None
    if "stage=dpo" in overrides:
        from train.parents import overrides_with_parent, read_parent

        if parent_folder is None:
            raise ConfigError("stage=dpo has no parent", "the folder of a finished run", "add parent=FOLDER")
        parent = read_parent(parent_folder)
        overrides = overrides_with_parent(parent, overrides)
    elif parent_folder is not None:
        raise ConfigError(f"parent={parent_folder} without stage=dpo", "both", "add stage=dpo")
    if any(
        word == "stage=base" for word in overrides
    ):  # nothing is trained, so nothing needs to be said of it
        overrides = [
            *overrides,
            *(
                f"{key}=0"
                for key in ("objective.prompt_weight", "objective.response_weight", "seed")
                if not _says(overrides, key)
            ),
        ]
    config = compose_run(overrides, config_dirs)
    identities = {
        "model_identity": model_identity(config.model, cache_folder=None),
        "dataset_identity": dataset_identity(config.dataset, cache_folder=None),
    }
    config, of_parent = _with_parent(pinned(config, **identities), parent)
    fingerprint = fingerprint_of(config, **identities, **of_parent)
    folder = Path(output) if output else Path("outputs") / "by_hand" / fingerprint
    record = record_from_dict(read_json(folder / "record.json") or {})
    is_done = record is not None and record.fingerprint == fingerprint
    if record is None or not is_done or (config.keep == "all" and not has_weights(folder)):
        check_reachable(identities["model_identity"], "model", ModelError)
        check_reachable(identities["dataset_identity"], "dataset", DataError)
        record = _train(config, fingerprint, identities, of_parent, folder, parent.folder if parent else None)
        write_json_atomic(folder / "record.json", record_to_dict(record))
        remove_checkpoint(folder)
    _print(record, folder)
    return 0 if record.outcome == "finished" else 1


def _with_parent(config: RunConfig, parent: "Parent | None") -> tuple[RunConfig, dict[str, str]]:
    """The configuration with its pairs pinned, and what names a preference-tuned run beside it."""
    if parent is None:
        return config, {}
    from train.identity import pinned
    from train.preferences import preference_identity

    preference = preference_identity(config.preference, cache_folder=None)
    return (
        pinned(config, "", "", preference),
        {"parent_fingerprint": parent.fingerprint, "preference_identity": preference},
    )


def _train(
    config: RunConfig,
    fingerprint: str,
    identities: dict[str, str],
    of_parent: dict[str, str],
    folder: Path,
    parent_folder: Path | None,
) -> RunRecord:
    from train.libraries import load_libraries

    load_libraries()
    from train.run import Workbench, run

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output={folder} can't be made: {error.strerror}",
            "a folder you may write to",
            "add output=/another/folder",
        ) from error
    run_id = f"{config.model.name}-{config.dataset.name}-by_hand"
    write_json_atomic(
        folder / "spec.json",
        {
            "run_id": run_id,
            "fingerprint": fingerprint,
            **identities,
            **of_parent,
            "config": config_to_dict(config),
        },
    )
    return run(
        config,
        run_id=run_id,
        fingerprint=fingerprint,
        parent_folder=parent_folder,
        folder=folder,
        attempt=1,
        workbench=Workbench(folder / "cache"),
        should_stop=lambda: False,
        on_progress=_Progress(),
        model_identity=identities["model_identity"],
        dataset_identity=identities["dataset_identity"],
    )


class _Progress:
    """A line that rewrites itself on a terminal; a line every ten seconds in a log."""

    def __init__(self) -> None:
        self.started = self.printed = time.monotonic()

    def __call__(self, step: int, steps: int) -> None:
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if step == steps or now - self.printed > (0.2 if is_terminal else 10.0):
            self.printed = now
            left_s = (now - self.started) / step * (steps - step)
            end = "" if is_terminal and step < steps else "\n"
            print(
                f"{chr(13) if is_terminal else ''}step {step}/{steps}, {left_s:.0f} s left   ",
                end=end,
                file=sys.stderr,
                flush=True,
            )


def _print(record: RunRecord, folder: Path) -> None:
    if record.failure is not None:
        print(f"failed ({record.failure.kind}): {record.failure.message}")
    for name, value in record.metrics.items():
        metric = metric_of(name)
        direction = {"higher": "higher is better", "lower": "lower is better", "none": ""}[metric.better]
        print(f"{name:36s} {value:10.4f}  {metric.unit}{', ' if direction else ''}{direction}")
    print(
        f"{record.num_steps} steps, training {record.training_s:.1f} s, evaluation {record.evaluation_s:.1f} s; "
        f"{folder / 'record.json'}"
    )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    overrides: list[str] = []
    config_dirs: list[str] = []
    output: str | None = None
    words = iter(argv)
    for word in words:
        if word == "--config-dir":
            config_dirs.append(next(words, ""))
        elif word.startswith("output="):
            output = word.removeprefix("output=")
        elif "=" not in word and not word.startswith("~"):
            raise ConfigError(f"unexpected word {word}", "KEY=VALUE", "see python -m train --help")
        else:
            overrides.append(word)
    return overrides, config_dirs, output


def _says(overrides: Sequence[str], key: str) -> bool:
    return any(word.lstrip("+").startswith(f"{key}=") for word in overrides)
