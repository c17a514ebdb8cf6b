"""A real SLURM for the tests that ask for it: skipped with the reason where it isn't installed."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "slurm"))

from cluster import Cluster, missing_programs  # noqa: E402


@pytest.fixture(scope="session")
def slurm_cluster():
    """A running cluster. REQUIRE_SLURM=1 (set in CI) turns the skip into a failure."""
    if missing := missing_programs():
        reason = f"SLURM isn't installed (no {', '.join(missing)}): tests/slurm/install.sh installs it"
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-test-"))
    cluster = Cluster(folder)
    try:
        yield cluster.up()
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def slurm(slurm_cluster, monkeypatch):
    """The cluster, healed, with this process as a user of it."""
    slurm_cluster.up()
    for name in list(os.environ):
        if name.startswith(("SLURM", "SBATCH")):
            monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environment[name])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return slurm_cluster
