"""Runs of several ranks: how many, what a launcher gives them, and whose fault it was when one failed."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
from planning import run_config
from toys import toy_plan

from sweep.errors import LaunchError
from sweep.launch import Launch, check_ranks
from sweep.launcher import LauncherConfig
from sweep.slots import devices_of, holders, take_slot, take_slots
from sweep.slurm.batches import new_batch
from sweep.slurm.classes import ResourceClass, class_of
from sweep.slurm.submit import sbatch_parameters
from train.errors import ConfigError, DataError
from train.failures import RankFailedError, RankLostError, failure_from_exception
from train.launch import cause_of
from train.rank_processes import RankProcesses, how_it_ended, start_ranks

FSDP = {"train__distributed": "fsdp"}


@pytest.mark.parametrize(
    ("settings", "ranks", "nodes"),
    [
        ({}, 1, 1),
        ({"model__gpus": 4}, 1, 1),
        (FSDP, 1, 1),
        ({**FSDP, "model__gpus": 4}, 4, 1),
        ({**FSDP, "model__gpus": 8, "model__nodes": 2}, 16, 2),
        ({**FSDP, "train__num_ranks": 3}, 3, 1),
        ({**FSDP, "train__num_ranks": 4, "model__nodes": 2}, 4, 2),
    ],
)
def test_a_run_has_a_rank_for_each_device_or_as_many_as_said(settings, ranks, nodes):
    config = run_config(**settings)
    assert (config.num_ranks, config.num_nodes) == (ranks, nodes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model__nodes": 2}, "model.nodes=2 with train.distributed=none"),
        ({**FSDP, "model__nodes": 0}, "model.nodes=0"),
        ({**FSDP, "model__nodes": 2, "train__num_ranks": 3}, "train.num_ranks=3 on model.nodes=2"),
        ({**FSDP, "train__num_ranks": 2, "stage": "dpo"}, "stage=dpo on 2 ranks"),
        ({"train__num_ranks": 2}, "train.num_ranks=2 with train.distributed=none"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(settings, says):
    with pytest.raises(ConfigError) as caught:
        run_config(**settings)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_of_ranks_has_a_device_for_each_and_one_run(tmp_path):
    launcher = LauncherConfig(kind="slurm", cpus_per_worker=3, max_jobs=5, gpus=1)
    large = {**FSDP, "model__source": "local", "model__path": "/m", "train__device": "auto"}
    config = run_config(**large, model__nodes=2, model__gpus=4)
    resources = class_of(config, launcher)
    assert resources == ResourceClass(gpus=4, memory_gb=None, time_min=240, nodes=2, ranks=4)
    assert resources.name == "4gpu-2x4ranks-240min"
    assert resources.is_shared
    by_number = class_of(run_config(**large, train__num_ranks=4, model__nodes=2), launcher)
    assert (by_number.gpus, by_number.ranks) == (2, 2)
    assert class_of(run_config(**FSDP, train__num_ranks=4, model__nodes=2), launcher).gpus == 0, "embedded"
    made = sbatch_parameters(launcher, resources, new_batch("s", resources.name, 40, "c", ""), tmp_path)
    assert (made["nodes"], made["ntasks_per_node"], made["cpus_per_task"]) == (2, 1, 12)
    assert made["gres"] == "gpu:4"
    assert made["array_parallelism"] == 5, "all runs are in the array, since nobody may look again"
    assert "--nodes=1" in made["srun_args"], "the worker is one process on the first node"


def test_a_worker_of_ranks_holds_as_many_slots_or_none(tmp_path):
    other = take_slot(tmp_path, "s", 1)
    assert take_slots(tmp_path, "s", 2, "", 3, 3) is None
    held = take_slots(tmp_path, "s", 2, "7", 2, 3)
    assert held is not None
    assert sorted(held) == [0, 2], "on from its own, past the one that is taken"
    found = holders(tmp_path)
    assert {slot: holder.ranks for slot, holder in found.items()} == {0: 2, 1: 1, 2: 2}
    assert take_slots(tmp_path, "s", 0, "", 1, 3) is None, "it's somebody's"
    for lock in (other, *held.values()):
        assert lock is not None
        lock.close()


def test_a_worker_of_ranks_sees_as_many_devices():
    gpus = ("0", "1", "2", "3")
    assert devices_of([1], gpus, 4, 1) == ["1"]
    assert devices_of([2, 3], gpus, 4, 2) == ["2", "3"]
    assert devices_of([0], gpus, 1, 4) == ["0", "1", "2", "3"], "fewer slots than devices"
    assert devices_of([0, 2], gpus[:2], 4, 2) == ["0", "1"], "two slots a device"
    assert devices_of([0, 1], (), 2, 2) == []


def test_more_devices_than_there_are_and_several_nodes_are_refused_here():
    plan, launch = toy_plan(1), Launch(root="r", sweep="s", num_slots=2, gpus=("0", "1"))
    spec = plan.runs[0]

    def with_settings(**settings):
        recipe = dataclasses.replace(spec.config.train, distributed="fsdp", device="auto", num_ranks=4)
        model = dataclasses.replace(spec.config.model, **settings)
        config = dataclasses.replace(spec.config, train=recipe, model=model)
        return dataclasses.replace(plan, runs=(dataclasses.replace(spec, config=config),))

    check_ranks(plan, launch)
    check_ranks(with_settings(), dataclasses.replace(launch, gpus=()))
    with pytest.raises(LaunchError, match="takes 4 devices of 2"):
        check_ranks(with_settings(), launch)
    with pytest.raises(LaunchError, match="spread over 2 nodes"):
        check_ranks(with_settings(nodes=2), launch)


def words(rank, error, time_s=0.0):
    """What a failing rank writes."""
    try:
        raise error
    except Exception as caught:
        failure = dataclasses.asdict(failure_from_exception(caught))
    return {"rank": rank, "time": time_s, "failure": failure}


def test_the_rank_that_failed_first_says_why_and_the_others_only_that_they_lost_it():
    lost = words(0, RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"), 1.0)
    own = words(2, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2.0)
    error = cause_of([lost, own], "ended with exit code 1")
    assert isinstance(error, RankFailedError)
    failure = failure_from_exception(error)
    assert failure.kind == "cuda_oom"
    assert failure.message.startswith("rank 2: RuntimeError: CUDA out of memory")
    user = words(1, DataError("rows.jsonl is empty", "rows", "add some"))
    user["user_error"] = {"kind": "DataError", "parts": ["rows.jsonl is empty", "rows", "add some"]}
    assert isinstance(cause_of([user, lost], ""), DataError)


@pytest.mark.parametrize(
    ("message", "log", "kind"),
    [
        (None, "", "killed"),
        ("[gloo/transport/tcp/pair.cc:537] Connection closed by peer", "", "killed"),
        ("NCCL error: unhandled system error, ncclSystemError: socket closed", "", "node_fail"),
        ("DistBackendError: watchdog", "NVRM: Xid 79, GPU has fallen off the bus", "node_fail"),
        (None, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=3.1", "host_oom"),
    ],
)
def test_a_rank_that_died_without_a_word_is_lost_and_not_the_codes_fault(message, log, kind):
    errors = [words(0, RuntimeError(message))] if message else []
    error = cause_of(errors, how_it_ended(-9), log)
    assert isinstance(error, RankLostError)
    assert failure_from_exception(error).kind == kind
    assert "SIGKILL" in str(error)


def test_endings_in_words():
    assert how_it_ended(-6) == "was ended by SIGABRT"
    assert how_it_ended(137) == "was ended by SIGKILL", "as srun and shells say it"
    assert how_it_ended(1) == "ended with exit code 1"


def test_one_that_failed_takes_the_others_with_it():
    codes = ["import time; time.sleep(60)", "raise SystemExit(3)"]
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    ranks = RankProcesses(processes)
    while (code := ranks.poll()) is None:
        time.sleep(0.01)
    assert code == 3
    assert processes[0].poll() == -signal.SIGKILL


def test_ranks_know_who_they_are_and_do_not_hear_the_schedulers_signals(tmp_path):
    code = (
        "import os, signal; [os.kill(os.getpid(), s) for s in (signal.SIGUSR2, signal.SIGTERM)];"
        "names = 'RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR';"
        "os.write(1, (' '.join(os.environ[n] for n in names) + chr(10)).encode())"  # unbuffered prints would mix
    )
    config = run_config(**FSDP, train__num_ranks=2)
    with open(tmp_path / "log", "wb") as log:
        ranks = start_ranks(config, [sys.executable, "-c", code], log, "STARTER")
        ranks.wait(60)
    assert ranks.poll() == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["0 0 2 127.0.0.1", "1 1 2 127.0.0.1"]


def test_a_run_over_nodes_needs_a_job(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with open(os.devnull, "wb") as log, pytest.raises(ConfigError, match=r"model\.nodes=2, but this process"):
        start_ranks(run_config(**FSDP, train__num_ranks=2, model__nodes=2), ["true"], log, "STARTER")
