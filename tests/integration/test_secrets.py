"""Hundreds of planted secrets, a real sweep and toys that print them all: no file of ours or of W&B's has one."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import PROJECT, run_command
from secret_trainer import ENDINGS, MARK, plants
from slurm_sweeps import toy_tender
from toy_sweep import toy_plan
from wandb_runs import HERE, SMALL, toy_environment
from wandb_server import WandbServer

from sweep.spec import Status

pytestmark = pytest.mark.integration
ONE_CELL = "grid.cells.exclude=[{prompt_weight: 0}, {response_weight: 0}]"
GIT = ("git", "-c", "user.name=me", "-c", "user.email=me@example.org")


def files_with_secrets(*folders: Path) -> dict[str, list[str]]:
    """Planted values by the file they are in, whatever kind of file."""
    values = {value.encode(): name for name, value in plants().items()}
    found = {}
    for place in (place for folder in folders for place in os.walk(folder)):  # which may change under us
        for path in (Path(place[0], name) for name in place[2]):
            with contextlib.suppress(FileNotFoundError):
                content = b"" if path.is_symlink() else path.read_bytes()
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


@pytest.mark.parametrize("ending", ENDINGS)
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


@pytest.mark.parametrize("pack", [1, 2])
def test_no_file_of_a_sweep_on_a_cluster_ever_holds_one(slurm, tmp_path, monkeypatch, pack):
    """Printed by setup lines, by Python as it starts, in runs, between runs and by workers that are killed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import os\nprint(dict(os.environ), flush=True)\n")
    for name, value in plants().items():
        monkeypatch.setenv(name, value)
    setup = (
        "env",
        "set -x",
        'echo "$HF_TOKEN $MY_API_KEY" >&2',
        f"export PYTHONPATH={tmp_path}/site:$PYTHONPATH",
    )
    setup += ("export TOY_ENDING=each TOY_CHATTERS=1 TOY_STEP_S=0.1", "set +x")
    root, plan = tmp_path / "root", toy_plan(3)
    tender = toy_tender(root, plan, max_jobs=1, silence_s=3.0, pack=pack, setup=setup)
    tender._trainer = "secret_trainer:make_trainer"
    deadline = time.monotonic() + 120
    while not tender.tend().is_over:
        assert time.monotonic() < deadline, tender.look().states
        assert files_with_secrets(*(root / ".runs", root / "toy" / "packs")) == {}
        time.sleep(0.2)
    ends = [tender.ledger.status(spec.fingerprint).status for spec in plan.runs]
    assert ends == [Status.FINISHED, Status.FAILED, Status.FINISHED]
    assert len(list(root.glob(".runs/*/attempts/*.lost.json"))) == 1, "the killed one"
    outputs = [path.read_text() for path in root.glob("toy/slurm/*/*_log.out")]
    assert outputs
    assert all(text.count("[hidden]") > 200 for text in outputs)
    assert sum(text.count("HF_TOKEN=[hidden]***") for text in outputs) >= len(outputs), "what came before us"
    logs = [path.read_text() for path in root.glob(".runs/*/attempts/*.log")]
    assert len(logs) == 4
    assert all("said everything" in text for text in logs)
    assert len(list(root.glob("toy/slurm/*/*.pkl"))) + len(list(root.glob("toy/slurm/*/*.sh"))) >= 2
    assert files_with_secrets(tmp_path) == {}


def test_a_real_sweep_on_a_cluster_keeps_no_planted_secret(slurm, tmp_path, checkout):
    root = tmp_path / "root"
    variables = {**plants(), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    variables |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    words = ("+grid=smoke_2x2", f"root={root}", "launcher=slurm", "launcher.max_jobs=1", *SMALL, ONE_CELL)
    words += ("launcher.setup=[env]", "tracking=wandb_offline")
    done = run_command("sweep", *words, cwd=checkout, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    deadline = time.monotonic() + 120
    while len(list(root.glob(".runs/*/record.json"))) < 2:
        assert time.monotonic() < deadline, said
        time.sleep(1.0)
    done = run_command("sweep", *words, "collect", cwd=checkout, **variables)
    assert "2 of 2 runs finished" in done.stdout, done.stdout + done.stderr
    assert MARK not in said + done.stdout + done.stderr
    assert len(list(root.glob(".runs/*/wandb/offline-run-*/*.wandb"))) == 2
    assert len(list(root.glob(".code/*/snapshot.json"))) == 1
    assert files_with_secrets(tmp_path) == {}


def test_a_secret_that_is_typed_starts_nothing_and_is_not_repeated(tmp_path):
    for override in (
        f"model.path=https://me:{MARK}12345678@example.org/x",
        f"tracking.tags=[wandb_v1_{'aB3' * 12}]",
        f"launcher.setup=['export HF_TOKEN=hf_{MARK}aB3aB3aB3aB3aB3']",
        f"launcher.sbatch=['--comment=password={MARK}12345678']",
    ):
        result = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path / 'root'}", override)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert "holds what looks like a secret" in result.stderr
        assert MARK not in result.stderr
        assert "aB3aB3" not in result.stderr
    assert not (tmp_path / "root").exists()
    assert os.listdir(tmp_path) == []
