"""`python -m train export RUN output=FOLDER`: a finished run as a folder that `from_pretrained` loads.

The folder is a transformers checkpoint, or a PEFT adapter of the base it names; safetensors, with tokenizer.
Its parameters are the record's, bit for bit: the hash is computed from the files that were written.
"""

import os
import secrets
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from train.config import run_config_from_dict
from train.errors import ConfigError, ModelError
from train.files import read_json
from train.kept import FOLDER, has_weights
from train.overrides import overrides_for

HELP = """\
python -m train export RUN output=FOLDER [root=outputs]

Write the trained weights of a finished run as a standard folder (safetensors and tokenizer): a transformers
checkpoint, or a PEFT adapter where the run trained one. RUN is a run's folder, or a run id, a fingerprint
or a part of one below root. Weights are there where the run was told to keep them: keep=all by hand,
retention=all or retention=region in a sweep."""


def export_command(argv: Sequence[str]) -> int:
    """The command line after `export`; UserError for a mistake in it."""
    settings = dict(word.split("=", 1) for word in argv if "=" in word)
    words = [word for word in argv if "=" not in word]
    if {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    unknown = set(settings) - {"output", "root"}
    if len(words) != 1 or unknown:
        raise ConfigError(
            f"export {' '.join(argv)}", "one RUN, and output=FOLDER", "see python -m train export --help"
        )
    if not settings.get("output"):
        raise ConfigError(f"export {words[0]} has no output", "a folder to write", "add output=FOLDER")
    folder = find_run_folder(words[0], Path(settings.get("root", "outputs")))
    sha256 = export_run(folder, Path(settings["output"]))
    print(f"{settings['output']}: parameters {sha256[:16]}, as in {folder / 'record.json'}")
    return 0


def find_run_folder(word: str, root: Path) -> Path:
    """The folder of a run named by its path, or by all or a part of its run id or fingerprint."""
    if (Path(word) / "record.json").is_file():
        return Path(word)
    places = [
        *root.glob(f".runs/{_literal(word)}*"),
        *root.glob(f"by_hand/{_literal(word)}*"),
        *root.glob(f"*/runs/*{_literal(word)}*"),
    ]
    found = {path.resolve(): path for path in places if (path / "record.json").is_file()}
    if len(found) == 1:
        return next(iter(found))
    problem = f"{len(found)} finished runs match {word}" if found else f"no finished run matches {word}"
    names = ", ".join(sorted(path.name for path in found.values())[:5])
    raise ConfigError(
        f"{problem} below {root}",
        "one run, or a run's folder",
        f"such as {names}" if found else "status lists the runs of a sweep; root=... is another place",
    )


def export_run(folder: Path, output: Path) -> str:
    """Copy the kept weights to `output` and prove them to be the record's; the hash of the parameters.

    Raises   ModelError where the weights weren't kept, saying how to get them, or aren't the record's.
    """
    from train.weights import saved_sha256  # torch begins here

    expected = (read_json(folder / "record.json") or {}).get("parameters_sha256")
    if not has_weights(folder):
        raise ModelError(
            f"the weights of {folder.name} weren't kept",
            "a run with keep=all",
            f"train it again, which gives the same bits: {_command(folder)}",
        )
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"output={output} isn't empty", "a new folder", "name another, or remove it")
    temporary = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    try:
        shutil.copytree(folder / FOLDER, temporary)
        found = saved_sha256(temporary)
        if found != expected:
            raise ModelError(
                f"the weights of {folder.name} aren't those of its record ({found[:12]}, not "
                f"{str(expected)[:12]})",
                "the record's parameters",
                f"train it again: {_command(folder)}",
            )
        if output.exists():
            output.rmdir()
        os.rename(temporary, output)
    except OSError as error:
        raise ConfigError(
            f"output={output} can't be written: {error.strerror}",
            "a folder you may write to",
            "name another output=",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found


def _command(folder: Path) -> str:
    """The line that trains the run again and keeps its weights."""
    spec = read_json(folder / "spec.json") or {}
    words: list[str] = ["keep=all", "output=FOLDER"]
    if "config" in spec:
        config = run_config_from_dict(spec["config"])
        parent = (
            [f"parent={folder.parent / spec['parent_fingerprint']}"] if spec.get("parent_fingerprint") else []
        )
        words = [*overrides_for(config), *parent, *words]
    return f"python -m train {shlex.join(words)}"


def _literal(word: str) -> str:
    """The word as a pattern that matches itself only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in word)
