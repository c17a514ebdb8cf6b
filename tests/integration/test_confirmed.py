"""confirm from end to end: a sweep, its report, fresh seeds, and the gain that may be quoted."""

import json
import shutil

import pytest
from commands import run_command
from test_kill import results

pytestmark = pytest.mark.integration

SMALL = (
    "dataset.num_train_rows=32",
    "dataset.num_validation_rows=16",
    "dataset.num_test_rows=16",
    "dataset.num_robustness_rows=0",
    "train.epochs=1",
    "eval.max_new_tokens=4",
)


SWEEP = ("+grid=smoke_2x2", "grid.seeds=[0,1]", *SMALL)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep whose report recommends (1, 1), whatever it found."""
    root = tmp_path_factory.mktemp("swept") / "runs"
    refused = run_command("sweep", *SWEEP, f"root={root}", "confirm")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no report to confirm" in refused.stderr
    assert run_command("sweep", *SWEEP, f"root={root}").returncode == 0
    report = root / "smoke_2x2" / "report" / "region.json"
    values = json.loads(report.read_text())
    values["planes"][0]["recommended"] = {"prompt_weight": 1.0, "response_weight": 1.0}
    report.write_text(json.dumps(values))
    return root


@pytest.fixture(scope="module")
def confirmed(swept, tmp_path_factory):
    """The same, confirmed on this machine."""
    root = tmp_path_factory.mktemp("confirmed") / "runs"
    shutil.copytree(swept, root, symlinks=True)
    sweep = (*SWEEP, f"root={root}")
    shown = run_command("sweep", *sweep, "confirm", "plan", "confirm.num_seeds=2")
    assert shown.returncode == 0, shown.stderr
    assert "smoke_2x2.confirm" in shown.stdout
    done = run_command("sweep", *sweep, "confirm", "confirm.num_seeds=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 runs finished" in done.stdout
    return root


def test_fresh_seeds_are_trained_beside_the_sweep_and_quoted_in_its_report(confirmed):
    sweep, report = (*SWEEP, f"root={confirmed}"), confirmed / "smoke_2x2" / "report"
    metric = "analysis.metric=validation_response_nll"  # no run of this size gives an exact answer
    assert run_command("analysis", *sweep, metric).returncode == 0
    answer = json.loads((report / "region.json").read_text())["planes"][0]
    (gain,) = [one for one in answer["confirmed_gains"] if one["over"] == [0.0, 1.0]]
    assert gain["of"] == [1.0, 1.0]
    assert gain["num_seeds"] == 2
    assert gain["low"] < gain["mean"] < gain["high"]
    plan = json.loads((confirmed / "smoke_2x2.confirm" / "plan.json").read_text())
    assert {run["seed"] for run in plan["runs"]} == {1000, 1001}
    assert "fresh" in (report / "report.html").read_text()
    looked = run_command("sweep", *sweep, "confirm", "status")
    assert looked.returncode == 0, looked.stderr


def test_on_a_cluster_the_same_runs_confirm(slurm, swept, confirmed, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(swept, root, symlinks=True)
    words = (*SWEEP, f"root={root}", "launcher=slurm", "launcher.max_jobs=2", "launcher.time_min=5")
    sent = run_command("sweep", *words, "confirm", "confirm.num_seeds=2")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "submitted 2 workers" in sent.stdout
    watched = run_command("sweep", *words, "confirm", "watch", timeout_s=180)
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "4 of 4 runs finished" in watched.stdout
    assert results(root) == results(confirmed)
