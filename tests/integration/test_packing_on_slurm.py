"""Several runs in one SLURM task: the same bits as unpacked, fewer hours, and undone where the node ends it."""

import pytest
from commands import run_command
from slurm_sweeps import toy_tender
from test_kill import assert_no_attempt_after_the_record, results
from test_slurm_sweeps import SMALL, finish
from toy_sweep import toy_plan

from sweep.ledger import Ledger
from sweep.sharing import PACKED_OOM
from sweep.timesheets import shifts
from train.files import read_json

pytestmark = pytest.mark.integration


def packs(root, sweep):
    return [read_json(path) or {} for path in sorted((root / sweep / "packs").glob("*.json"))]


def test_packed_runs_are_measured_and_equal_unpacked_ones_bit_for_bit(slurm, tmp_path):
    there, here = tmp_path / "cluster", tmp_path / "local"
    question = ("+grid=smoke_2x2", "grid.seeds=[0,1]", *SMALL)
    words = (*question, f"root={there}", "launcher=slurm", "launcher.max_jobs=1")
    packed = ("launcher.pack=auto", "launcher.cpus_per_worker=2")
    started = run_command("sweep", *words, *packed)
    assert started.returncode == 0, started.stdout + started.stderr
    local = run_command("sweep", *question, f"root={here}", "launcher.slots=1")
    assert local.returncode == 0, local.stdout + local.stderr
    done = run_command("sweep", *words, *packed, "watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(there) == results(here)
    assert_no_attempt_after_the_record(there)
    (pack,) = packs(there, "smoke_2x2")
    assert pack["measured"]["memory_gb"] > 0.1
    entries = [entry for shift in shifts(there) for entry in shift.entries]
    assert [entry.pack for entry in entries if entry.workload.stage == "base"] == [1], "measured alone"
    assert max(entry.pack for entry in entries) == 2
    described = [
        (Ledger(there).record(entry.fingerprint).environment["pack"]["runs_at_once"], entry.pack)
        for entry in entries
    ]
    assert all(told == counted for told, counted in described)


def test_a_job_ended_for_the_memory_that_its_runs_shared_trains_them_alone(slurm, tmp_path, monkeypatch):
    """OverMemoryKill ends the whole job: 3 x 300 MB don't fit into 600, one of them does."""
    monkeypatch.setenv("TOY_HOLDS_MB", "300")
    monkeypatch.setenv("TOY_STEP_S", "0.2")
    monkeypatch.setattr("slurm_sweeps.TRAINER", "toy_hog:make_trainer")
    plan = toy_plan(3)
    tender = toy_tender(tmp_path, plan, max_jobs=1, pack=3, memory_gb=0.6, cpus_per_worker=3, silence_s=4.0)
    finish(tender, 120)
    ledger = Ledger(tmp_path)
    losses = [kind for spec in plan.runs for kind in ledger.losses(spec.fingerprint)]
    assert PACKED_OOM in losses
    assert set(losses) <= {PACKED_OOM}, "no run is blamed"
    assert all(ledger.record(spec.fingerprint) for spec in plan.runs)
    first, second = sorted(packs(tmp_path, plan.name), key=lambda pack: "ended_packed" not in pack)
    assert first["undone"]
    assert second["why"].startswith("packing was undone")
    assert_no_attempt_after_the_record(tmp_path)
