"""Pilots, forecasts, budgets and bills, as a user meets them."""

import time

import pytest
from commands import run_command
from test_slurm_sweeps import SMALL

from sweep.timesheets import shifts
from train.files import read_json

pytestmark = pytest.mark.integration
QUESTION = ("+grid=smoke_2x2", "grid.seeds=[0,1]", *SMALL)


def sweep(*words):
    done = run_command("sweep", *QUESTION, *words)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    return done


def test_a_sweep_is_forecast_from_its_pilots_and_compared_at_its_end(tmp_path):
    root = f"root={tmp_path}"
    piloted = sweep("pilot", root, "budget.pilot_runs=2", "launcher.slots=1")
    assert "3 pilots, at most 10 min each" in piloted.stdout
    assert "forecast: " in piloted.stdout
    assert "start-up and loading: " in piloted.stdout
    assert len(list(tmp_path.glob(".runs/*/record.json"))) == 3, (
        "the plan's own runs, the untrained base among them"
    )

    refused = sweep(root, "budget.gpu_hours=1e-9")
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith("error: the sweep takes about ")
    assert line.endswith("ask for less, raise the budget, or add yes=true")
    assert not (tmp_path / "smoke_2x2" / "plan.json").exists(), "nothing was started"

    finished = sweep(root, "budget.gpu_hours=1e-9", "yes=true", "launcher.slots=1")
    (took,) = [line for line in finished.stdout.splitlines() if line.startswith("took ")]
    assert " of the forecast " in took
    assert took in sweep("status", root).stdout.splitlines()
    forecast = read_json(tmp_path / "smoke_2x2" / "forecast.json")
    assert forecast
    assert len(forecast["runs"]) == 4
    billed = sum(shift.seconds for shift in shifts(tmp_path) if shift.sweep == "smoke_2x2")
    assert f"took {billed / 3600:.3g} CPU-hours" in took
    assert forecast["hours"] == pytest.approx(billed / 3600, rel=0.9), "of the right size on any machine"
    page = (tmp_path / "smoke_2x2" / "report" / "report.html").read_text()
    assert "took against forecast" in page
    assert f">{billed / 3600:.3g}<" in page
    analysed = run_command("analysis", *QUESTION, root, "budget.gpu_hours=1e-9", "launcher.slots=1")
    assert analysed.returncode == 0, analysed.stderr
    assert (tmp_path / "smoke_2x2" / "report" / "report.html").read_text() == page, "the same bytes"


def test_pilots_on_a_cluster_come_back_as_a_forecast(slurm, tmp_path):
    words = (f"root={tmp_path}", "launcher=slurm", "launcher.max_jobs=1", "budget.pilot_runs=1")
    sent = sweep("pilot", *words)
    assert "submitted 1 worker" in sent.stdout
    assert "see the forecast with: python -m sweep " in sent.stdout
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob(".runs/*/record.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    planned = sweep("plan", *words).stdout
    assert "CPU-hours, at most " in planned
    assert "95 % of runs take at most " in planned
    assert "model.timeout_min=" in planned
