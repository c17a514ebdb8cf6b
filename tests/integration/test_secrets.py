"""Hundreds of planted secrets, a real sweep and toys that print them all: no file of ours or of W&B's has one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROJECT, run_command
from secret_trainer import MARK, plants
from wandb_runs import HERE, SMALL, toy_environment
from wandb_server import WandbServer

pytestmark = pytest.mark.integration
ONE_CELL = "grid.cells.exclude=[{prompt_weight: 0}, {response_weight: 0}]"
GIT = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org")


def files_with_secrets(*folders: Path) -> dict[str, list[str]]:
    """Planted values by the file they are in, whatever kind of file."""
    values = {value.encode(): name for name, value in plants().items()}
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            names = [name for value, name in values.items() if value in content]
            if names or MARK.encode() in content:
                found[str(path)] = names or ["a part of one"]
    return found


def checkout_with_a_secret_remote(folder: Path) -> Path:
    """A clone of this project as somebody's own repository, its remote with a password in it."""
    for part in ("train", "sweep", "analysis", "conf"):
        shutil.copytree(PROJECT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", folder)
    for words in (
        ("init", "-q"),
        ("remote", "add", "origin", f"https://me:{MARK}Remote12345@example.org/x.git"),
        ("add", "-A"),
        ("commit", "-q", "-m", f"token={MARK}Message123"),
    ):
        subprocess.run([*GIT, *words], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return checkout_with_a_secret_remote(tmp_path_factory.mktemp("theirs"))


def test_there_are_many_forms_and_each_would_be_found(tmp_path):
    assert len(plants()) >= 200
    for index, value in enumerate(plants().values()):
        (tmp_path / str(index)).write_bytes(b"\0" + value.encode())
    assert len(files_with_secrets(tmp_path)) == len(plants())


def test_a_real_sweep_keeps_no_planted_secret(tmp_path, checkout):
    root = tmp_path / "root"
    with WandbServer() as server:
        variables = {**plants(), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
        variables |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        words = ("+grid=smoke_2x2", f"root={root}", "launcher.slots=1", *SMALL, ONE_CELL)
        result = run_command("sweep", *words, "tracking=wandb_offline", cwd=checkout, **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        assert MARK not in result.stdout + result.stderr
        assert len(list(root.glob(".runs/*/wandb/offline-run-*/*.wandb"))) == 2
        assert "mirror" not in " ".join(path.read_text() for path in root.glob(".runs/*/record.json"))
        status = run_command("sweep", *words, "tracking=wandb_offline", "status", cwd=checkout, **variables)
        assert "one run by hand: python -m train" in status.stdout, status.stderr
        result = run_command("sweep", *words, "sync", cwd=checkout, **{**variables, **server.variables})
        assert result.returncode == 0, result.stdout + result.stderr
        bodies = b"".join(server.bodies)
        assert not [name for name, value in plants().items() if value.encode() in bodies]
        assert MARK.encode() not in bodies
    assert files_with_secrets(tmp_path) == {}


@pytest.mark.parametrize("ending", ["finishes", "fails", "is killed"])
def test_what_a_run_prints_and_how_it_fails_is_scrubbed(tmp_path, ending):
    result = subprocess.run(
        [sys.executable, str(HERE / "secret_trainer.py"), str(tmp_path / "root"), ending],
        env=toy_environment(**plants(), TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    logs = list(tmp_path.glob("root/.runs/*/attempts/*.log"))
    assert all("said everything" in path.read_text() for path in logs)
    assert logs
    assert files_with_secrets(tmp_path) == {}
    assert MARK not in result.stdout + result.stderr


def test_a_secret_that_is_typed_starts_nothing_and_is_not_repeated(tmp_path):
    for override in (
        f"model.path=https://me:{MARK}12345678@example.org/x",
        f"tracking.tags=[wandb_v1_{'aB3' * 12}]",
    ):
        result = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path / 'root'}", override)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert "holds what looks like a secret" in result.stderr
        assert MARK not in result.stderr
        assert "aB3aB3" not in result.stderr
    assert not (tmp_path / "root").exists()
    assert os.listdir(tmp_path) == []
