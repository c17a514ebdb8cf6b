"""One run and the real W&B client, against a server that is there, misbehaves, dies, or never was.

A real run shows what is said; toy runs, mirrored by the same code, show what breakage costs.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import run_command
from toy_mirror import STEP_S, loss_at, mirrored_plan
from wandb_runs import (
    QUICK,
    SMALL,
    log_files,
    server_steps,
    sleep_until_quiet,
    steps_on_disk,
    toy_run,
    toy_run_killed,
)
from wandb_server import API_KEY, WandbServer, wait_until

from train.tracking_log import num_points

pytestmark = pytest.mark.integration
CELL = ("objective.prompt_weight=0.5", "objective.response_weight=1", "seed=0")


@pytest.fixture
def server():
    with WandbServer() as running:
        yield running


def test_an_online_run_is_arranged_as_by_hand_and_holds_no_secret(tmp_path, server):
    output = tmp_path / "run"
    result = run_command(
        "train",
        *CELL,
        *SMALL,
        f"output={output}",
        "tracking=wandb",
        "tracking.tags=[mine]",
        **server.variables,
        MY_TOKEN="hf_shibboleth",
    )
    assert result.returncode == 0, result.stderr
    assert "wandb:" not in result.stdout + result.stderr, "W&B doesn't own the console"
    record = json.loads((output / "record.json").read_text())
    run = server.store.run(record["fingerprint"])
    assert "mirror" not in record["environment"], result.stdout
    assert (run.state, run.job_type, run.project) == ("finished", "train", "weight-sweep")
    assert run.tags == ["embedded", "weighted_instruction_tuning", "mine"], (
        "model and dataset share a name here"
    )
    assert server_steps(server, run.name) == list(range(1, record["num_steps"] + 1))
    assert {
        "train_loss",
        "train_prompt_nll",
        "train_response_nll",
        "learning_rate",
        "step_tokens_per_s",
        "memory_gb",
        "num_tokens",
    } <= set(run.history[-1])
    wanted = {
        "prompt_weight": 0.5,
        "response_weight": 1,
        "ratio": 0.5,
        "seed": 0,
        "model": "embedded",
        "dataset": "embedded",
        "fingerprint": record["fingerprint"],
    }
    assert wanted.items() <= run.values.items()
    assert run.values["recipe"].startswith("full adamw")
    assert len(run.values["git_commit"]) == 40
    assert record["metrics"].items() <= run.summary.items()
    metrics = run.config["_wandb"]["value"]["m"]
    steps = 1 + [metric.get("1") for metric in metrics].index("trainer_step")
    assert [metric["5"] for metric in metrics if metric.get("2") == "*"] == [steps], (
        "all is drawn over our steps"
    )
    assert not server.store.unknown
    files = [path.read_bytes() for path in output.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [
        content
        for content in [*server.bodies, *files]
        if API_KEY.encode() in content or b"shibbol" in content
    ]


def test_a_run_killed_three_times_online_is_one_run_with_one_history(tmp_path, server):
    for _ in range(3):
        toy_run_killed(tmp_path, "wandb", 25, **server.variables)
    record, _ = toy_run(tmp_path, "wandb", 100, **server.variables)
    sleep_until_quiet(server)
    assert len(server.store.creations) == 1
    assert server_steps(server, record["fingerprint"]) == list(range(1, 101)) == steps_on_disk(tmp_path)
    run = server.store.run(record["fingerprint"])
    assert run.state == "finished"
    assert [row["train_loss"] for row in run.history] == [loss_at(0, step) for step in range(1, 101)]


def test_a_server_that_dies_gets_the_rest_from_the_attempt_after_it_came_back(tmp_path, server):
    toy_run_killed(tmp_path, "wandb", 20, **server.variables)
    server.die()
    toy_run_killed(tmp_path, "wandb", 20, **server.variables)
    server.live()
    record, _ = toy_run(tmp_path, "wandb", 70, **server.variables)
    sleep_until_quiet(server)
    assert server_steps(server, record["fingerprint"]) == list(range(1, 71))


def test_a_sigkill_costs_an_offline_log_at_most_a_second_and_the_next_attempt_holds_all(tmp_path):
    toy_run_killed(tmp_path, "wandb_offline", 100, lambda: any(map(num_points, log_files(tmp_path))))
    (log,) = log_files(tmp_path)
    missing = len(steps_on_disk(tmp_path)) - num_points(log)
    assert missing * STEP_S <= 1.3, "1 s, and what the load of this machine adds"
    toy_run(tmp_path, "wandb_offline", 150)
    first, second = log_files(tmp_path)
    assert num_points(second) == 150
    assert first.with_name(f"{first.name}.synced").exists(), "wandb sync must not send the overlap"
    assert not second.with_name(f"{second.name}.synced").exists()
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(second.parent)],
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert "validation_exact_answer" in shown.stdout, shown.stderr


FAULTS = ("429", "500", "drop", "garbage", "stall")
MISTAKES = {
    "no key": "run `wandb login` or set WANDB_API_KEY, or say tracking=wandb_offline",
    "entity": "correct tracking.entity",
    "deleted": "was deleted in the default entity/weight-sweep, and W&B never takes an id again",
}


@pytest.fixture(scope="module")
def unlucky(tmp_path_factory):
    """Runs with a fault of the server's or a mistake of the user's, side by side, as they mostly wait."""

    root = tmp_path_factory.mktemp("unlucky")

    def with_fault(name: str):
        folder = root / name
        with WandbServer() as server:
            variables = {**server.variables, **QUICK}
            if name in FAULTS:
                server.fault = name
            elif name == "entity":
                server.store.entities.clear()
            elif name == "deleted":
                server.store.deleted.add(mirrored_plan(1).runs[0].fingerprint)
            else:
                variables |= {"HOME": str(root), "WANDB_API_KEY": ""}
            return folder, *toy_run(folder, "wandb", 30, **variables)

    names = (*FAULTS, *MISTAKES)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(with_fault, names), strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_misbehaves_from_the_start_costs_only_the_mirror(unlucky, fault):
    folder, record, said = unlucky[fault]
    (line,) = [line for line in said.splitlines() if "training goes on without it" in line]
    assert "W&B" in line
    (log,) = [path for path in log_files(folder) if "offline-run" in str(path)]
    assert num_points(log) == record["num_steps"], "the data is on disk"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_the_run_goes_on(unlucky, mistake):
    folder, record, said = unlucky[mistake]
    (found,) = [text for text in said.splitlines() if "training goes on without it" in text]
    assert MISTAKES[mistake] in found
    assert num_points(log_files(folder)[-1]) == record["num_steps"] == 30


def test_a_server_that_stalls_in_the_middle_is_named_and_hardly_waited_for(tmp_path, server):
    started = time.monotonic()
    with server.failing(lambda what: "stall" if what == "file_stream" else None):
        record, said = toy_run(tmp_path, "wandb", 30, **server.variables)
    assert time.monotonic() - started < 40
    assert "did not take everything" in record["environment"]["mirror"]
    assert record["environment"]["mirror"] in said
    assert num_points(log_files(tmp_path)[-1]) == record["num_steps"]


def test_mistakes_that_are_seen_at_once_start_nothing(tmp_path):
    result = run_command(
        "sweep", "+grid=smoke_2x2", f"root={tmp_path}", "tracking=wandb_offline", "tracking.project=a%b"
    )
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert "tracking.project='a%b' is no name for a W&B project" in result.stderr
    result = run_command("sweep", "+grid=smoke_2x2", f"root={tmp_path}", "tracking=wandb", HOME=str(tmp_path))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert "`wandb login`" in result.stderr
    assert not list(tmp_path.glob("**/record.json"))


def test_a_full_disk_in_wandb_dir_costs_named_points_and_no_run(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here: not root, or no mount")
    try:
        record, said = toy_run(tmp_path / "run", "wandb_offline", 300, WANDB_DIR=str(disk))
        assert f"of 300 points did not reach {disk}" in record["environment"]["mirror"]
        assert "the disk is full" in record["environment"]["mirror"]
        assert record["environment"]["mirror"] in said
        assert steps_on_disk(tmp_path / "run") == list(range(1, 301))
    finally:
        umount = ["umount", str(disk)]  # the mirror ends a moment after its run
        assert wait_until(lambda: subprocess.run(umount, capture_output=True).returncode == 0)


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    record, _ = toy_run(tmp_path / "run", "wandb_offline", 3, WANDB_DIR=str(tmp_path / "file"))
    assert "W&B could not start" in record["environment"]["mirror"]


def test_a_trackio_run_goes_on_where_it_was(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'weight-sweep[dash]'")
    toy_run_killed(tmp_path / "run", "trackio", 60, TRACKIO_DIR=str(tmp_path / "trackio"))
    record, _ = toy_run(tmp_path / "run", "trackio", 70, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert record["environment"] == {}
    code = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s; "
        f"print(json.dumps(s.get_logs('weight-sweep', '{record['run_id']}')))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={"TRACKIO_DIR": str(tmp_path / "trackio"), "PATH": ""},
        text=True,
        capture_output=True,
        timeout=60,
    )
    rows = json.loads(shown.stdout.splitlines()[-1])
    steps = [row["trainer_step"] for row in rows if "train_loss" in row]
    assert steps == list(range(1, 71)), shown.stderr
    assert rows[-1]["validation_exact_answer"] == 0.25
