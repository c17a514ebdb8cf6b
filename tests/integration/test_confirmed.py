"""confirm from end to end: a sweep, its report, fresh seeds, and the gain that may be quoted."""

import json

import pytest
from commands import run_command

pytestmark = pytest.mark.integration

SMALL = (
    "dataset.num_train_rows=32",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)


def test_fresh_seeds_are_trained_beside_the_sweep_and_quoted_in_its_report(tmp_path):
    sweep = ("+grid=smoke_2x2", "grid.seeds=[0,1]", f"root={tmp_path}", *SMALL)
    refused = run_command("sweep", *sweep, "confirm")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no report to confirm" in refused.stderr
    assert run_command("sweep", *sweep).returncode == 0
    report = tmp_path / "smoke_2x2" / "report"
    values = json.loads((report / "region.json").read_text())
    values["planes"][0]["recommended"] = {"prompt_weight": 1.0, "response_weight": 1.0}  # whatever it was
    (report / "region.json").write_text(json.dumps(values))

    shown = run_command("sweep", *sweep, "confirm", "plan", "confirm.num_seeds=2")
    assert shown.returncode == 0, shown.stderr
    assert "smoke_2x2.confirm" in shown.stdout
    confirmed = run_command("sweep", *sweep, "confirm", "confirm.num_seeds=2")
    assert confirmed.returncode == 0, confirmed.stdout + confirmed.stderr
    assert "4 of 4 runs finished" in confirmed.stdout

    metric = "analysis.metric=validation_response_nll"  # no run of this size gives an exact answer
    assert run_command("analysis", *sweep, metric).returncode == 0
    answer = json.loads((report / "region.json").read_text())["planes"][0]
    (gain,) = [one for one in answer["confirmed_gains"] if one["over"] == [0.0, 1.0]]
    assert gain["of"] == [1.0, 1.0]
    assert gain["num_seeds"] == 2
    assert gain["low"] < gain["mean"] < gain["high"]
    plan = json.loads((tmp_path / "smoke_2x2.confirm" / "plan.json").read_text())
    assert {run["seed"] for run in plan["runs"]} == {1000, 1001}
    assert "fresh" in (report / "report.html").read_text()
    looked = run_command("sweep", *sweep, "confirm", "status")
    assert looked.returncode == 0, looked.stderr
