"""A real sweep on W&B as a whole: sent, published, published again, and read back without its ledger."""

import json
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from commands import run_command
from wandb_runs import analyse, fingerprints, log_files, run_folders, server_steps, steps_on_disk, sweep
from wandb_server import WandbServer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A finished sweep of three corners and the base model, mirrored to disk."""
    root = tmp_path_factory.mktemp("published")
    result = sweep(root, "tracking=wandb_offline", "retention=all")
    assert result.returncode == 0, result.stdout + result.stderr
    return root


@pytest.fixture(scope="module")
def server(root):
    """The server that the sweep is sent to, once."""
    with WandbServer() as running:
        result = sweep(
            root,
            "tracking=wandb_offline",
            "action=sync",
            "tracking.sweeps_ui=true",
            **running.variables,
            WANDB_SWEEP_ID="somebody-elses",
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "4 of 4 runs are on W&B: 4 sent now" in result.stdout
        assert result.stderr == ""
        yield running


def test_a_real_offline_sweep_arrives_whole(root, server):
    for fingerprint, folder in run_folders(root, "smoke_2x2").items():
        record = json.loads((folder / "record.json").read_text())
        run = server.store.run(fingerprint)
        assert (
            server_steps(server, fingerprint)
            == steps_on_disk(folder)
            == list(range(1, record["num_steps"] + 1))
        )
        assert (run.group, run.display_name, run.project) == ("smoke_2x2", record["run_id"], "weight-sweep")
        assert run.job_type == ("evaluate" if record["stage"] == "base" else "train")
        assert record["metrics"].items() <= run.summary.items()
        assert "aliases" in run.values
        (log,) = log_files(folder)
        assert log.with_name(f"{log.name}.synced").exists(), "wandb sync and wandb clean know that it is sent"


def test_the_sweep_is_listed_once_under_sweeps(root, server):
    (name,) = server.store.sweeps
    assert {server.store.run(fingerprint).sweep for fingerprint in fingerprints(root, "smoke_2x2")} == {name}


def test_published_twice_is_published_once(root, server):
    pytest.importorskip(
        "wandb_workspaces", reason="wandb-workspaces is not installed: pip install 'weight-sweep[dash]'"
    )
    first = analyse(root, "tracking=wandb_offline", "publish=wandb", **server.variables)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 were there" in first.stdout
    assert "the analysis run is new" in first.stdout
    before = shown(server)
    second = analyse(root, "tracking=wandb_offline", "publish=wandb", **server.variables)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "the analysis run was up to date" in second.stdout
    assert shown(server) == before
    assert (len(server.store.charts), len(server.store.views)) == (1, 2)
    other = analyse(
        root,
        "tracking=wandb_offline",
        "publish=wandb-weights",
        "analysis.metric=validation_response_nll",
        **server.variables,
    )
    assert other.returncode == 0, other.stdout + other.stderr
    assert (len(server.store.charts), len(server.store.views)) == (1, 2), "changed in place"
    assert shown(server) != before
    assert "weights of 1 of the region's 1 runs sent" in other.stdout, "one seed: the best ray's only run"
    models = [item for item in server.store.artifacts.values() if item["artifactTypeName"] == "model"]
    assert len(models) == 1
    assert any(name.endswith(".safetensors") for name in server.store.uploads)
    assert not server.store.unknown


def shown(server: WandbServer) -> tuple:
    run = server.store.run("analysis-smoke_2x2")
    specs = [json.loads(view["spec"]) for view in server.store.views.values()]
    return (
        len(run.history),
        len(server.store.artifacts),
        [str(sorted(spec)) for spec in specs],
        {key: value for key, value in run.summary.items() if not key.startswith("_")},
    )


def test_what_is_published_is_what_was_found(root, server):
    run = server.store.run("analysis-smoke_2x2")
    assert (run.job_type, run.group, run.state) == ("analysis", "smoke_2x2", "finished")
    table = next(
        json.loads(content)
        for name, content in server.store.uploads.items()
        if "/media/table/plane/" in name or name.endswith("plane/embedded_on_embedded.table.json")
    )
    assert len(table["data"]) == 3, "one row per cell and seed"
    assert {"prompt_weight", "response_weight", "seed", "validation_exact_answer", "is_alias"} <= set(
        table["columns"]
    )
    kinds = {artifact["artifactTypeName"]: artifact for artifact in server.store.artifacts.values()}
    assert {"report", "dataset"} <= set(kinds)
    assert all(artifact["committed"] for artifact in kinds.values())
    uploads = {name.rsplit("/", 1)[-1]: content for name, content in server.store.uploads.items()}
    assert uploads["report.html"].startswith(b"<!")
    assert len(uploads["records.jsonl"].splitlines()) == 4
    assert any(name.endswith(".png") for name in uploads)
    (chart,) = server.store.charts
    assert "rect" in json.dumps(chart)
    assert run.summary["embedded_on_embedded/finding"]
    workspace, report = (json.dumps(view["spec"]) for view in server.store.views.values())
    for wanted in ("Scatter Plot", "Parallel Coordinates Plot", "train_response_nll", "training_s", "ratio"):
        assert wanted in workspace, wanted
    assert "What we found" in report


def test_the_table_comes_back_from_wandb_alone(root, server, tmp_path):
    result = run_command(
        "analysis", "from=wandb:local/weight-sweep/smoke_2x2", f"root={tmp_path}", **server.variables
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 of 4 runs are on W&B" in result.stdout
    back = pandas.read_parquet(tmp_path / "smoke_2x2" / "report" / "cells.parquet")
    there = analyse(root, "tracking=wandb_offline")
    assert there.returncode == 0, there.stderr
    pandas.testing.assert_frame_equal(
        back, pandas.read_parquet(root / "smoke_2x2" / "report" / "cells.parquet")
    )
    answers = [
        json.loads((folder / "smoke_2x2" / "report" / "region.json").read_text())
        for folder in (tmp_path, root)
    ]
    for plane in answers[1]["planes"]:
        del plane["noise"]["evaluation"]  # from the runs' items, which W&B doesn't have
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("wandb:local/weight-sweep/other", "W&B has no runs of the sweep other"),
        ("wandb:local/nothing/smoke_2x2", "W&B doesn't give local/nothing"),
        ("wandb:smoke_2x2", "from=wandb:smoke_2x2 names no sweep"),
        ("mlflow:a/b/c", "names no sweep"),
    ],
)
def test_what_can_not_be_read_back_is_one_line(server, source, line):
    result = run_command("analysis", f"from={source}", **server.variables)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert line in result.stderr


def test_optuna_dashboard_opens_the_study(root):
    pytest.importorskip(
        "optuna_dashboard", reason="optuna-dashboard is not installed: pip install 'weight-sweep[dash]'"
    )
    result = analyse(root, "tracking=wandb_offline", "publish=optuna-dashboard")
    assert result.returncode == 0, result.stderr
    path = root / "smoke_2x2" / "report" / "optuna.db"
    code = (
        "import json, sys, threading, urllib.request\n"
        "from wsgiref.simple_server import make_server\n"
        "import optuna\nfrom optuna_dashboard import wsgi\n"
        "storage = optuna.storages.RDBStorage(sys.argv[1])\n"
        "server = make_server('127.0.0.1', 0, wsgi(storage))\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "get = lambda path: json.load(urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}{path}'))\n"
        "studies = get('/api/studies')['study_summaries']\n"
        "count = lambda study: len(get('/api/studies/%d' % study['study_id'])['trials'])\n"
        "print(json.dumps([[study['study_name'], count(study)] for study in studies]))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{path}"], text=True, capture_output=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout.splitlines()[-1]) == [["smoke_2x2 embedded embedded", 3]]
