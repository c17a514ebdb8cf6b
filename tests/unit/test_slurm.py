"""The pure parts of sweeps on a cluster: classes, names, the queue's text, verdicts, evidence, refusals, snapshots."""

import dataclasses

import pytest
from slurm_corpus import CORPUS, REAL
from toys import finished, toy_plan, toy_spec

from sweep.claims import JOB_VARIABLE, Owner
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.launcher import LauncherConfig
from sweep.ledger import Ledger, RunState
from sweep.recovery import smaller_batches
from sweep.slurm.batches import Batch
from sweep.slurm.burial import life_of, since_the_last_run
from sweep.slurm.classes import by_class, class_of
from sweep.slurm.code import freeze
from sweep.slurm.evidence import failure_class, telling_line
from sweep.slurm.jobs import JobName, job_from_text, this_job
from sweep.slurm.queue import Queued, parse_accounting, parse_queue
from sweep.slurm.reconcile import (
    Held,
    code_at_fault,
    deaths,
    died_at_once,
    held_claims,
    hung,
    num_lacking,
    unknown_jobs,
)
from sweep.slurm.submit import refusal, sbatch_parameters, scheduler_words
from sweep.spec import Status
from sweep.worker import Worker
from train.errors import ConfigError
from train.files import read_json
from train.fingerprint import fingerprint
from train.record import Failure

BATCH = "0123456789abcdef"
JOB = JobName(batch=BATCH, key="12_3", restart=1)


def task(state="RUNNING", *, key="12_3", restart=1, batch=BATCH, node="c1", reason="None"):
    return Queued(key=key, state=state, restart=restart, batch=batch, node=node, reason=reason)


def held(silence_s, job=JOB):
    return Held(fingerprint="f", attempt=2, job=job, silence_s=silence_s, node="c1")


def verdicts(silence_s, *tasks, accounting=None):
    queue = {one.key: one for one in tasks}
    return [death.kind for death in deaths([held(silence_s)], queue, accounting or {}, 150.0)]


def test_names_of_jobs_are_read_back():
    assert job_from_text(str(JOB)) == JOB
    assert job_from_text("") is None
    assert job_from_text("12_3") is None
    environment = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}
    assert this_job(BATCH, environment) == JobName(batch=BATCH, key="12_3", restart=0)
    assert this_job(BATCH, {"SLURM_JOB_ID": "15", "SLURM_RESTART_COUNT": "2"}).restart == 2
    assert this_job(BATCH, {"SLURM_JOB_ID": "15"}).key == "15"


def test_the_queue_is_read_whatever_else_is_in_it():
    text = (
        f"12_3|RUNNING|1|wit-{BATCH}|c1|None|\n13|PENDING|0|somebody|elses|Resources|\nrubbish\n"
        "14_0|CANCELLED by 0|0|x|c2|None|\n"
    )
    found = parse_queue(text)
    assert found["12_3"].batch == BATCH
    assert set(found) == {"12_3", "14_0"} or set(found) == {"12_3", "13", "14_0"}
    assert found["14_0"].state == "CANCELLED"
    assert parse_queue("") == {}


def test_a_living_job_is_never_robbed_however_silent():
    assert verdicts(1e6, task("RUNNING")) == []
    assert verdicts(1e6, task("COMPLETING")) == []
    assert verdicts(1e6, task("SUSPENDED")) == []


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("FAILED", "killed"),
        ("CANCELLED", "cancelled"),
        ("TIMEOUT", "timeout"),
        ("PREEMPTED", "preempted"),
        ("OUT_OF_MEMORY", "host_oom"),
    ],
)
def test_an_end_that_slurm_saw_needs_a_short_silence(state, kind):
    assert verdicts(5, task(state)) == []
    assert verdicts(11, task(state)) == [kind]


def test_an_end_that_slurm_can_only_suppose_needs_a_long_one():
    assert verdicts(100, task("NODE_FAIL")) == []
    assert verdicts(151, task("NODE_FAIL")) == ["node_fail"]
    assert verdicts(100, task("PENDING", restart=2, reason="BeginTime")) == []
    assert verdicts(151, task("PENDING", restart=2, reason="BeginTime")) == ["preempted"]
    assert verdicts(151, task("RUNNING", restart=2)) == ["preempted"], (
        "it lives again; the earlier life is over"
    )


def test_a_job_that_left_the_queue():
    assert verdicts(100) == []
    assert verdicts(151) == ["killed"]
    gone = {"12_3": ("TIMEOUT", f"wit-{BATCH}")}
    assert verdicts(11, accounting=gone) == ["timeout"]
    others = {"12_3": ("COMPLETED", "wit-ffffffffffffffff")}
    assert verdicts(100, accounting=others) == [], "a reused number is somebody else's job"
    assert unknown_jobs([held(0)], {}) == ["12_3"]
    assert unknown_jobs([held(0)], {"12_3": task(batch="ffffffffffffffff")}) == ["12_3"]
    assert unknown_jobs([held(0)], {"12_3": task()}) == []


def test_the_accounting_tells_how_an_earlier_life_ended():
    mine, other = f"wit-{BATCH}", "wit-ffffffffffffffff"
    text = f"12_3|PREEMPTED|{mine}\n12_4|RUNNING|{mine}\n12_3|NODE_FAIL|{mine}\n12_3|RUNNING|{mine}\n"
    accounting = parse_accounting(text)
    assert accounting["12_3"] == ("RUNNING", mine)
    assert accounting["12_3.1"] == ("NODE_FAIL", mine)
    assert unknown_jobs([held(0)], {"12_3": task(restart=2)}) == ["12_3"]
    assert verdicts(151, task("RUNNING", restart=2), accounting=accounting) == ["node_fail"]
    stranger = parse_accounting(text.replace(mine, other))
    assert verdicts(151, task("RUNNING", restart=2), accounting=stranger) == ["preempted"]


def test_each_life_of_a_job_has_its_own_words():
    first, second = (dataclasses.replace(JOB, restart=number) for number in (0, 1))
    lines = [
        f"job {first} on c1, 5.0 min",
        "DUE TO NODE FAILURE",
        f"job {second} on c2, 5.0 min",
        "heard SIGTERM",
    ]
    assert life_of(first, lines) == lines[:2]
    assert life_of(second, lines) == lines[2:]
    assert life_of(first, ["the beginning", "is cut off"]) == ["the beginning", "is cut off"]


def test_what_a_worker_said_of_its_earlier_runs_is_no_evidence():
    lines = [
        "a",
        "interrupted toy-p1-r1-s12 after 4.4 s: disk_full: OSError: [Errno 28] No space left on device",
        "b",
    ]
    assert since_the_last_run(lines) == ["b"]
    assert since_the_last_run(lines[:1]) == ["a"]


def test_a_hung_job_is_one_that_runs_and_says_nothing():
    assert hung([held(901)], {"12_3": task()}, 900.0)
    assert not hung([held(800)], {"12_3": task()}, 900.0)
    assert not hung([held(901)], {"12_3": task(restart=2)}, 900.0)
    assert not hung([held(901)], {}, 900.0)


def running(job=JOB):
    owner = Owner(
        host="h",
        boot_id="b",
        pid_namespace="n",
        pid=1,
        process_start="1",
        worker="c1, job 12_3",
        job=str(job),
    )
    return RunState(status=Status.RUNNING, attempt=1, owner=owner)


def test_only_claims_that_name_a_job_are_judged():
    states = {
        "f": running(),
        "g": dataclasses.replace(running(), owner=None),
        "h": RunState(status=Status.PLANNED),
    }
    assert [claim.fingerprint for claim in held_claims(states, {"f": 3.0})] == ["f"]


def batch(name=BATCH, num_tasks=4, announced_at=0.0):
    return Batch(
        batch=name,
        sweep="wit",
        class_name="0gpu-240min",
        num_tasks=num_tasks,
        announced_at=announced_at,
        code="c",
    )


def lacking(states, batches, tasks, now=1000.0, max_jobs=8, runs_per_job=1):
    return num_lacking(
        states,
        batches,
        {one.key: one for one in tasks},
        "0gpu-240min",
        max_jobs=max_jobs,
        runs_per_job=runs_per_job,
        now=now,
    )


def test_workers_are_as_many_as_there_is_work_for():
    planned = [RunState(status=Status.PLANNED)] * 20
    assert lacking(planned, [], []) == 8
    assert lacking(planned, [], [], runs_per_job=5) == 4
    assert lacking(planned[:3], [], []) == 3
    assert lacking([RunState(status=Status.FINISHED)] * 3, [], []) == 0
    assert lacking([running()] * 3, [], []) == 0, "nothing is left to claim"
    tasks = [
        task("RUNNING", key="1_0"),
        task("PENDING", key="1_1"),
        task("FAILED", key="1_2"),
        task("COMPLETING", key="1_3"),
    ]
    assert lacking(planned, [batch()], tasks) == 5, "a job that is queued again is completing for a moment"
    assert lacking(planned, [batch(announced_at=990.0)], []) == 4, "just announced: not in the queue yet"
    assert lacking(planned, [batch()], []) == 8, "announced long ago and never seen"


def test_workers_that_die_at_once_are_not_sent_again_and_again():
    dead = {key: task("FAILED", key=key) for key in ("12_0", "12_1")}
    assert died_at_once([batch()], dead, [], "0gpu-240min") == batch()
    assert died_at_once([batch()], dead, [running()], "0gpu-240min") is None, "they did claim"
    assert died_at_once([batch()], {**dead, "12_2": task("RUNNING", key="12_2")}, [], "0gpu-240min") is None
    assert died_at_once([batch()], {}, [], "0gpu-240min") is None


def failed(kind="code", line="loss.py:3"):
    return RunState(status=Status.FAILED, attempt=1, failure=Failure(kind=kind, message="m", last_frame=line))


def test_the_code_is_at_fault_when_three_runs_fail_alike():
    assert code_at_fault([failed()] * 3) is not None
    assert code_at_fault([failed()] * 2) is None
    assert code_at_fault([failed(), failed(), failed(line="loss.py:4")]) is None
    assert code_at_fault([failed("nan_loss")] * 3) is None
    assert code_at_fault([*[failed()] * 3, RunState(status=Status.FINISHED)]) is None


def test_classes_follow_the_models_file_then_the_launcher():
    launcher = LauncherConfig(kind="slurm", memory_gb=16.0)
    small = toy_spec(0)
    assert class_of(small.config, launcher).gpus == 0
    large = dataclasses.replace(
        small,
        fingerprint="large",
        config=dataclasses.replace(
            small.config,
            model=dataclasses.replace(small.config.model, gpus=4, memory_gb=80.0, timeout_min=600),
        ),
    )
    assert class_of(large.config, launcher).name == "4gpu-80gb-600min"
    assert {cls.name: len(runs) for cls, runs in by_class([small, large, small], launcher, {}).items()} == {
        "0gpu-16gb-240min": 2,
        "4gpu-80gb-600min": 1,
    }
    assert class_of(small.config, launcher, 1).memory_gb == 32
    assert class_of(small.config, launcher, 5).memory_gb == 64, "a cap"
    assert fingerprint(small.config, model_identity="m", dataset_identity="d") == fingerprint(
        large.config, model_identity="m", dataset_identity="d"
    ), "how a run gets room is no part of what it is"


def test_half_the_micro_batch_is_the_same_step():
    spec = toy_spec(0)
    halved = smaller_batches(spec, 2)
    assert smaller_batches(spec, 0) is spec
    assert halved.config.train.micro_batch_tokens == spec.config.train.micro_batch_tokens // 4
    assert halved.config.train.batch_size == spec.config.train.batch_size
    assert halved.fingerprint == spec.fingerprint


def test_unknown_sbatch_options_pass_through(tmp_path):
    launcher = LauncherConfig(
        kind="slurm",
        partition="a,b",
        gres="gpu:a100:{gpus}",
        array_parallelism=3,
        sbatch=("--reservation=mine", "--exclusive"),
        setup=("module load cuda",),
    )
    spec = toy_spec(0)
    config = dataclasses.replace(spec.config, model=dataclasses.replace(spec.config.model, gpus=2))
    made = sbatch_parameters(launcher, class_of(config, launcher), batch(), tmp_path)
    assert made["additional_parameters"] == {
        "reservation": "mine",
        "exclusive": True,
        "requeue": True,
        "signal": "USR2@120",
    }
    plain = sbatch_parameters(
        dataclasses.replace(launcher, signal="none"), class_of(config, launcher), batch(), tmp_path
    )
    assert plain["additional_parameters"]["signal"] == "CONT@1", "which does nothing"
    with pytest.raises(ConfigError, match=r"launcher\.signal=KILL"):
        LauncherConfig(kind="slurm", signal="KILL")
    assert (made["gres"], made["partition"], made["array_parallelism"]) == ("gpu:a100:2", "a,b", 3)
    assert made["setup"][0] == "module load cuda"
    assert "account" not in made
    with pytest.raises(ConfigError, match=r"launcher\.sbatch"):
        LauncherConfig(kind="slurm", sbatch=("reservation=mine",))


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("invalid partition specified: nope", "launcher.partition"),
        ("Invalid account or account/partition combination specified", "launcher.partition"),
        ("Requested node configuration is not available", "launcher.gpus"),
        ("Invalid qos specification", "launcher.qos"),
        ("Invalid feature specification", "launcher.constraint"),
        ("Invalid job array specification", "launcher.max_array_size"),
        ("something new", "sbatch says: something new"),
    ],
)
def test_refusals_name_the_setting(words, setting):
    assert setting in str(refusal(scheduler_words(f"noise\nsbatch: error: {words}\nsbatch: error: {words}")))


def test_evidence_names_the_class_of_nearly_every_log():
    assert len(CORPUS) >= 100
    assert len(REAL) >= 35
    wrong = [
        (kind, failure_class(state, text), text)
        for kind, state, text in CORPUS
        if failure_class(state, text) != kind
    ]
    assert len(wrong) <= 0.05 * len(CORPUS), wrong
    by_text_alone = [text for kind, _, text in REAL if text and failure_class("", text) != kind]
    assert len(by_text_alone) <= 0.05 * len(REAL), "where there is no accounting"
    assert telling_line("host_oom", "a\nMemoryError\nb") == "MemoryError"


def test_a_snapshot_is_named_by_its_content(tmp_path):
    checkout = tmp_path / "checkout"
    for name in (
        "train/run.py",
        "sweep/plan.py",
        "conf/sweep.yaml",
        "analysis/plot.py",
        "train/__pycache__/x.pyc",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    first = freeze(tmp_path / "root", checkout)
    assert freeze(tmp_path / "root", checkout) == first
    (checkout / "train/run.py").write_text("changed")
    second = freeze(tmp_path / "root", checkout)
    assert second != first
    assert (first / "train/run.py").read_text() == "train/run.py"
    assert not (first / "train/__pycache__").exists()
    assert (read_json(first / "snapshot.json") or {})["code"] == first.name


def test_a_jobs_claim_ends_by_a_written_word_only(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    monkeypatch.setenv(JOB_VARIABLE, str(JOB))
    claim = ledger.claim("f" * 32, "c1, job 12_3")
    assert claim is not None
    monkeypatch.setattr("sweep.claims.process_lives", lambda *_: False)
    assert Ledger(tmp_path).status("f" * 32).status is Status.RUNNING, "whoever looks can't see its process"
    assert ledger.claim("f" * 32) is None
    assert ledger.give_up("f" * 32, 1, "node_fail", "job 12_3 is NODE_FAIL on c1")
    assert not ledger.give_up("f" * 32, 1, "killed", "again")
    assert Ledger(tmp_path).status("f" * 32).status is Status.LOST
    assert claim.is_fenced() is False
    second = ledger.claim("f" * 32)
    assert second is not None
    assert second.attempt == 2
    assert claim.is_fenced()
    assert ledger.losses("f" * 32) == ["node_fail"]
    assert not ledger.give_up("f" * 32, 1, "killed", "an attempt that is over")


class OutOfMemoryError(RuntimeError):
    """As torch's is named."""


def test_a_device_too_small_gets_smaller_pieces_and_the_record_says_so(tmp_path):
    plan, tried = toy_plan(1), []

    def run_one(spec, **_):
        tried.append(spec.config.train.micro_batch_tokens)
        if tried[-1] > 3000:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return finished(spec)

    folder = SweepFolder(tmp_path, plan.name)
    folder.write_plan(plan)
    ledger = Ledger(tmp_path)
    Worker(ledger, folder, Flag(), name="w", make_run_one=lambda: run_one).run()
    record = ledger.record(plan.runs[0].fingerprint)
    assert tried == [8192, 4096, 2048]
    assert record is not None
    assert record.environment["micro_batch_tokens"] == 2048
    assert ledger.losses(plan.runs[0].fingerprint) == ["cuda_oom", "cuda_oom"]
