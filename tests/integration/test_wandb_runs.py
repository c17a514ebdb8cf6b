"""One run and the real W&B client, against a server that is there, misbehaves, dies, or never was."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_runs import QUICK, sleep_until_quiet, steps_on_disk, train, train_and_kill
from wandb_server import API_KEY, WandbServer

from train.tracking_log import num_points

pytestmark = pytest.mark.integration


@pytest.fixture
def server():
    with WandbServer() as running:
        yield running


def record_of(output: Path) -> dict:
    return json.loads((output / "record.json").read_text())


def log_files(output: Path) -> list[Path]:
    return sorted(output.glob("wandb/*run-*/run-*.wandb"))


def test_an_online_run_is_arranged_as_by_hand(tmp_path, server):
    result = train(tmp_path / "run", "tracking=wandb", "tracking.tags=[mine]", **server.variables)
    assert result.returncode == 0, result.stderr
    assert "wandb" not in result.stderr.lower(), "W&B doesn't own the console"
    record = record_of(tmp_path / "run")
    run = server.store.run(record["fingerprint"])
    assert "mirror" not in record["environment"]
    assert (run.state, run.job_type, run.project) == ("finished", "train", "weight-sweep")
    assert run.tags == ["embedded", "weighted_instruction_tuning", "mine"], "model and dataset share a name here"
    assert [row["trainer_step"] for row in run.history] == list(range(1, record["num_steps"] + 1))
    row = run.history[-1]
    assert {"train_loss", "train_prompt_nll", "train_response_nll", "learning_rate", "step_tokens_per_s", "memory_gb",
            "num_tokens"} <= set(row)
    wanted = {"prompt_weight": 0.5, "response_weight": 1, "ratio": 0.5, "seed": 0, "model": "embedded",
              "dataset": "embedded", "fingerprint": record["fingerprint"]}
    assert wanted.items() <= run.values.items()
    assert run.values["recipe"].startswith("full adamw")
    assert len(run.values["git_commit"]) == 40
    assert record["metrics"].items() <= run.summary.items()
    axes = {item.get("1") or item.get("2"): item for item in run.config["_wandb"]["value"]["m"]}
    assert {"*", "trainer_step"} <= set(axes), "everything is drawn over our own steps"
    assert not server.store.unknown


def test_no_secret_leaves_or_stays(tmp_path, server):
    assert train(tmp_path / "run", "tracking=wandb", **server.variables, MY_TOKEN="hf_shibboleth").returncode == 0
    for body in server.bodies:
        assert API_KEY.encode() not in body
        assert b"shibboleth" not in body
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert API_KEY.encode() not in path.read_bytes(), path
            assert b"shibboleth" not in path.read_bytes(), path


def test_a_run_killed_three_times_online_is_one_run_with_one_history(tmp_path, server):
    output = tmp_path / "run"
    for _ in range(3):
        train_and_kill(output, 25, "tracking=wandb", **server.variables)
    assert train(output, "LONG", "tracking=wandb", **server.variables).returncode == 0
    sleep_until_quiet(server)
    record = record_of(output)
    run = server.store.run(record["fingerprint"])
    assert len(server.store.creations) == 1
    assert [row["trainer_step"] for row in run.history] == list(range(1, record["num_steps"] + 1))
    assert run.state == "finished"
    losses = [json.loads(line)["train_loss"] for line in (output / "events.jsonl").read_text().splitlines()]
    assert [row["train_loss"] for row in run.history] == losses


def test_a_sigkill_costs_an_offline_log_at_most_a_second_and_the_next_attempt_holds_all(tmp_path):
    output = tmp_path / "run"
    train_and_kill(output, 60, "tracking=wandb_offline", "train.checkpoint_every_s=1000")
    killed = steps_on_disk(output)
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().split("\n")[:-1]]
    seconds_per_step = [event["num_tokens"] / event["step_tokens_per_s"] for event in events]
    (log,) = log_files(output)
    missing = len(killed) - num_points(log)
    assert sum(seconds_per_step[len(killed) - missing :]) <= 1.3, "1 s, and what this machine's load adds"
    assert train(output, "LONG", "tracking=wandb_offline").returncode == 0
    latest = log_files(output)[-1]
    assert num_points(latest) == record_of(output)["num_steps"]
    assert [path.with_name(f"{path.name}.synced").exists() for path in log_files(output)] == [True, False]
    shown = subprocess.run([sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(latest.parent)],
                           text=True, capture_output=True, timeout=120)
    assert "validation_response_nll" in shown.stdout, shown.stderr


@pytest.mark.parametrize("fault", ["429", "500", "drop", "garbage", "stall"])
def test_a_server_that_misbehaves_from_the_start_costs_only_the_mirror(tmp_path, server, fault):
    with server.failing(fault):
        started = time.monotonic()
        result = train(tmp_path / "run", "tracking=wandb", **server.variables, **QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    assert time.monotonic() - started < 60
    (said,) = [line for line in result.stdout.splitlines() if "training goes on without it" in line]
    assert "W&B" in said
    record = record_of(tmp_path / "run")
    assert num_points(log_files(tmp_path / "run")[-1]) == record["num_steps"], "the data is on disk"


def test_a_server_that_stalls_in_the_middle_is_named_and_not_waited_for(tmp_path, server):
    with server.failing(lambda what: "stall" if what == "file_stream" else None):
        result = train(tmp_path / "run", "tracking=wandb", **server.variables, **QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    record = record_of(tmp_path / "run")
    assert "did not take everything" in record["environment"]["mirror"]
    assert record["environment"]["mirror"] in result.stdout
    assert num_points(log_files(tmp_path / "run")[-1]) == record["num_steps"]


def test_a_server_that_dies_and_comes_back_gets_the_rest_from_the_next_attempt(tmp_path, server):
    output = tmp_path / "run"
    train_and_kill(output, 20, "tracking=wandb", **server.variables)
    server.die()
    train_and_kill(output, 20, "tracking=wandb", **server.variables)
    server.live()
    assert train(output, "LONG", "tracking=wandb", **server.variables).returncode == 0
    sleep_until_quiet(server)
    record = record_of(output)
    steps = [row["trainer_step"] for row in server.store.run(record["fingerprint"]).history]
    assert steps == list(range(1, record["num_steps"] + 1))


@pytest.mark.parametrize(("arguments", "variables", "line"), [
    ((), {"WANDB_API_KEY": "", "HOME": "HOME"}, "run `wandb login` or set WANDB_API_KEY"),
    (("tracking.entity=nobody",), {}, "no entity nobody that takes runs of yours"),
])
def test_a_mistake_is_one_line_and_the_run_goes_on(tmp_path, server, arguments, variables, line):
    variables = {**server.variables, **variables, **({"HOME": str(tmp_path)} if "HOME" in variables else {})}
    result = train(tmp_path / "run", "tracking=wandb", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    (said,) = [text for text in result.stdout.splitlines() if "training goes on without it" in text]
    assert line in said


def test_a_run_id_deleted_on_the_server_is_one_line(tmp_path, server):
    assert train(tmp_path / "run", "tracking=wandb", **server.variables).returncode == 0
    server.store.delete(record_of(tmp_path / "run")["fingerprint"])
    result = train(tmp_path / "again", "tracking=wandb", **server.variables)
    assert result.returncode == 0
    assert "was deleted in the default entity/weight-sweep, and W&B never takes an id again" in result.stdout


def test_a_project_name_that_wandb_refuses_is_a_mistake_in_the_input(tmp_path):
    result = train(tmp_path / "run", "tracking=wandb_offline", "tracking.project=a%b")
    assert result.returncode == 2
    assert "tracking.project='a%b' is no name for a W&B project" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk_in_wandb_dir_costs_named_points_and_no_run(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here: not root, or no mount")
    try:
        result = train(tmp_path / "run", "LONG", "dataset.num_train_rows=800", "tracking=wandb_offline",
                       WANDB_DIR=str(disk))
        assert result.returncode == 0, result.stderr
        record = record_of(tmp_path / "run")
        assert f"of {record['num_steps']} points did not reach {disk}" in record["environment"]["mirror"]
        assert "the disk is full" in record["environment"]["mirror"]
        assert record["environment"]["mirror"] in result.stdout
        assert steps_on_disk(tmp_path / "run") == list(range(1, record["num_steps"] + 1))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = train(tmp_path / "run", "tracking=wandb_offline", WANDB_DIR=str(tmp_path / "file"))
    assert result.returncode == 0, result.stderr
    assert "W&B could not start" in record_of(tmp_path / "run")["environment"]["mirror"]
