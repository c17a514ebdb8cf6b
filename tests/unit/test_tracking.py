"""A mirror repeats what is on disk, each step once, and whatever breaks it doesn't reach the run."""

import dataclasses
import json
import sys
import threading
import time

import pytest
import torch
from hand_made import hand_made_plan, hand_made_records, hand_made_table, run_config
from tiny import tiny_model

from analysis.config import AnalysisConfig
from analysis.publish_weights import region_runs
from analysis.study import make_studies
from sweep.asked import asked_by_fingerprint, plan_from_asked
from train import tracking
from train.errors import ConfigError
from train.mirror import EventReader, Mirror, sinks_of
from train.record import Failure, RunRecord
from train.step_meter import StepMeter, operations_per_token
from train.tracking import MirrorProcess, NullTracker, start_tracker
from train.tracking_log import num_points
from train.tracking_values import Asked, mirrored_run, record_from_summary, summary_of
from train.tracking_wandb import explained

RECORD = RunRecord(
    run_id="r",
    fingerprint="f" * 32,
    outcome="finished",
    stage="sft",
    metrics={"validation_exact_answer": 1.0, "test_response_nll": 0.1 + 0.2},
    counts={"train_rows": 64},
    final_train_loss=2.0,
    num_steps=3,
    training_s=1.0,
    tokens_per_s=3.0,
    finished_at=1.5,
    environment={"torch": "2", "git_has_changes": True, "gpus": ["a", "b"], "nested": {"a": 1}},
)


class FakeSink:
    """Remembers. `breaks`: the call that raises; `stalls`: the one that never ends; `last`: what it has."""

    def __init__(self, breaks="", stalls="", last=0):
        self.breaks, self.stalls, self.last = breaks, stalls, last
        self.steps, self.closed_with = [], []

    def _call(self, name):
        if name == self.breaks:
            raise OSError(f"{name} is broken today")
        if name == self.stalls:
            threading.Event().wait(60)

    def open(self):
        self._call("open")
        return self.last

    def log(self, step, values):
        self._call("log")
        assert "step" not in values
        self.steps.append(step)

    def close(self, record):
        self._call("close")
        self.closed_with.append(record)
        return ""


class Watched:
    """A mirror of this process, and what it says."""

    def __init__(self, sinks, events):
        self.said, self.lacks, self.closed = [], [], threading.Event()
        self.mirror = Mirror(sinks, events, self.said.append, self.on_close)

    def on_close(self, lack):
        self.lacks.append(lack)
        self.closed.set()

    def finish(self, record):
        """What it lacks."""
        self.mirror.finish(record)
        assert self.closed.wait(10)
        (lack,) = self.lacks
        return lack


def write_steps(path, steps):
    with open(path, "a") as stream:
        stream.writelines(json.dumps({"step": step, "train_loss": 0.5}) + "\n" for step in steps)


def mirrored(config=None, **changes):
    config = config or run_config(0.25, 0.5, 3)
    asked = Asked("sweep_name", ("p0.5 r1",), {"place": 0})
    return mirrored_run(
        dataclasses.replace(config, **changes), "run-id", "f" * 32, {"model_identity": "m"}, "abc", asked
    )


def test_a_reader_gives_each_step_once_and_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.new() == []
    path.write_text('{"step": 1}\nnonsense\n[1]\n{"validation": 2}\n{"step": 2, "trai')
    assert reader.new() == [{"step": 1}]
    assert reader.new() == []
    with open(path, "a") as stream:
        stream.write('n_loss": 0.5}\n')
    assert reader.new() == [{"step": 2, "train_loss": 0.5}]


def test_a_mirror_repeats_the_file_and_closes_with_the_record(tmp_path):
    sink, events = FakeSink(), tmp_path / "events.jsonl"
    watched = Watched([lambda: sink], events)
    for step in range(1, 6):
        write_steps(events, [step])
        watched.mirror.begin()
    assert watched.finish(RECORD) == ""
    assert sink.steps == [1, 2, 3, 4, 5]
    assert sink.closed_with == [RECORD]


def test_a_mirror_goes_on_behind_what_the_server_has(tmp_path):
    events = tmp_path / "events.jsonl"
    write_steps(events, range(1, 8))
    sink = FakeSink(last=5)
    assert Watched([lambda: sink], events).finish(None) == ""
    assert sink.steps == [6, 7]
    assert sink.closed_with == [None]


def test_a_mirror_does_not_read_what_a_resumed_run_is_about_to_cut(tmp_path):
    events = tmp_path / "events.jsonl"
    write_steps(events, range(1, 8))
    sink = FakeSink()
    watched = Watched([lambda: sink], events)
    time.sleep(1.2)
    events.write_text("")  # what the loop does before its first step: back to the checkpoint
    write_steps(events, range(1, 4))
    watched.mirror.begin()
    watched.finish(None)
    assert sink.steps == [1, 2, 3]


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_sink_that_breaks_is_named_and_nothing_more(tmp_path, where):
    events = tmp_path / "events.jsonl"
    write_steps(events, [1])
    assert f"{where} is broken today" in Watched([lambda: FakeSink(breaks=where)], events).finish(RECORD)


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_sink_that_stalls_keeps_no_other_from_closing(tmp_path, where):
    events, other = tmp_path / "events.jsonl", FakeSink()
    write_steps(events, [1])
    stalled = Watched([lambda: FakeSink(stalls=where)], events)
    stalled.mirror.finish(RECORD)
    assert Watched([lambda: other], events).finish(RECORD) == ""
    assert other.steps == [1]
    assert not stalled.lacks


def test_the_second_sink_takes_over_if_the_first_does_not_open(tmp_path):
    events, second = tmp_path / "events.jsonl", FakeSink()
    write_steps(events, [1, 2])
    watched = Watched([lambda: FakeSink(breaks="open"), lambda: second], events)
    assert watched.finish(RECORD) == ""
    assert second.steps == [1, 2]
    assert watched.said == ["training goes on without it: OSError: open is broken today"]


def test_the_modes_are_tried_in_their_order(tmp_path):
    modes = {
        mode: [make().mode for make in sinks_of(mode, mirrored(), tmp_path, None)]
        for mode in ("wandb", "wandb_offline")
    }
    assert modes == {"wandb": ["online", "offline"], "wandb_offline": ["offline"]}


def in_its_place(code):
    """A process that is started where train.mirror would be."""
    return MirrorProcess([sys.executable, "-c", "import json, sys, time\n" + code])


def finished_by(process, wait_s=30.0):
    run = process.open({"mode": "wandb"}, wait_s)
    for step in range(1000):  # would wait for ever if a run waited for its mirror
        run.log(step, {"train_loss": 0.5})
    return run.finish(RECORD)


def test_a_process_hears_of_each_run_once_and_what_it_lacks_is_said(capsys):
    process = in_its_place(
        "heard = []\n"
        "for line in sys.stdin:\n"
        "    heard.append(json.loads(line))\n"
        "    run = heard[-1]['run']\n"
        "    if 'finish' in heard[-1]:\n"
        "        print('nonsense', flush=True)\n"
        "        print(json.dumps({'run': run, 'say': 'WANDB_API_KEY=' + 40 * 'b'}), flush=True)\n"
        "        print(json.dumps({'run': run, 'lack': ' '.join(list(map(str, heard[-1]))[1:2] + "
        "[key for request in heard for key in request if key != 'run'])}), flush=True)\n"
    )
    first = finished_by(process)
    assert "incomplete: finish open begin finish; events.jsonl and record.json have it all" in first
    assert "finish open begin finish open begin finish" in finished_by(process)
    said = capsys.readouterr().out
    assert first in said
    assert "WANDB_API_KEY=[hidden]" in said
    process.close()


def test_a_process_that_hangs_costs_a_run_a_bounded_wait():
    process = in_its_place("time.sleep(60)")
    process.send({"run": 0, "more than a pipe holds": "x" * 1_000_000})
    assert "did not end within 0.3 s" in finished_by(process, wait_s=0.3)
    process._process.kill()


def test_a_process_that_dies_is_named_and_the_next_run_gets_another(tmp_path, monkeypatch):
    process = in_its_place("sys.exit('boom, token=abcdefgh')")
    assert "its process ended with exit code 1: boom, token=[hidden]" in finished_by(process)
    assert "boom" in process.open({}, 1.0).finish(None)
    monkeypatch.setattr(tracking, "_process", process)
    others = []
    monkeypatch.setattr(tracking, "MirrorProcess", lambda: others.append(in_its_place("pass")) or others[-1])
    config = run_config(0, 1, 0)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, mode="trackio"))
    assert "its process ended with exit code 0" in start_tracker(config, mirrored(), tmp_path).finish(None)


def test_a_process_that_can_not_be_started_stops_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_process", None)
    monkeypatch.setattr(tracking.sys, "executable", str(tmp_path / "no python"))
    config = run_config(0, 1, 0)
    config = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, mode="wandb"))
    tracker = start_tracker(config, mirrored(), tmp_path)
    tracker.log(1, {})
    assert "its process could not be started: " in tracker.finish(RECORD)


def test_no_tracking_is_no_thread(tmp_path):
    before = threading.active_count()
    tracker = start_tracker(run_config(0, 1, 0), mirrored(), tmp_path)
    assert isinstance(tracker, NullTracker)
    assert threading.active_count() == before
    assert tracker.finish(RECORD) == ""


def test_a_run_is_shown_flat_and_findable():
    shown = mirrored()
    assert (shown.id, shown.name, shown.group, shown.job_type) == ("f" * 32, "run-id", "sweep_name", "train")
    assert shown.tags == ("tiny", "facts", "weighted_instruction_tuning", "sweep:sweep_name")
    wanted = {
        "prompt_weight": 0.25,
        "response_weight": 0.5,
        "ratio": 0.5,
        "seed": 3,
        "model": "tiny",
        "dataset": "facts",
        "fingerprint": "f" * 32,
        "git_commit": "abc",
        "aliases": ["p0.5 r1"],
        "recipe": "full adamw 2e-05",
    }
    assert wanted.items() <= shown.config.items()
    assert not any(isinstance(value, dict) for value in shown.config.values())


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ((0, 1), "instruction_tuning"),
        ((1, 1), "instruction_modelling"),
        ((1, 0), "prompt_only"),
        ((0.5, 1), "weighted_instruction_tuning"),
    ],
)
def test_the_objective_has_a_name(weights, name):
    assert name in mirrored(run_config(*weights, 0)).tags


def test_the_base_model_is_evaluated_not_trained():
    assert mirrored(run_config(0, 0, 0, stage="base")).job_type == "evaluate"


def test_a_tag_too_long_for_wandb_is_cut():
    config = run_config(0, 1, 0)
    tags = mirrored(config, tracking=dataclasses.replace(config.tracking, tags=("x" * 99, ""))).tags
    assert "x" * 64 in tags
    assert all(0 < len(tag) <= 64 for tag in tags)


FAILED = dataclasses.replace(RECORD, outcome="failed", failure=Failure(kind="code", message="boom"))


@pytest.mark.parametrize("record", [RECORD, FAILED])
def test_a_record_survives_its_summary(record):
    summary = summary_of(record)
    assert summary["validation_exact_answer"] == 1.0
    assert summary["counts/train_rows"] == 64
    over_the_wire = json.loads(
        json.dumps(
            {
                key: int(value) if isinstance(value, float) and value.is_integer() else value
                for key, value in summary.items()
            }
        )
    )
    over_the_wire |= {"_runtime": 3, "trainer_step": 3, "train_loss": 1.0}
    again = record_from_summary(over_the_wire)
    assert again == record
    assert isinstance(again.metrics["validation_exact_answer"], float)


def test_a_summary_without_a_record_is_none():
    assert record_from_summary({"train_loss": 1.0, "_step": 3}) is None


def test_a_plan_survives_its_runs():
    plan = hand_made_plan()
    asked = asked_by_fingerprint(plan)
    found = [
        (
            json.loads(
                mirrored_run(
                    spec.config,
                    spec.run_id,
                    spec.fingerprint,
                    {"model_identity": spec.model_identity, "dataset_identity": spec.dataset_identity},
                    None,
                    asked[spec.fingerprint],
                ).config["run_json"]
            ),
            json.loads(json.dumps(asked[spec.fingerprint].cells)),
        )
        for spec in reversed(plan.runs)
    ]
    assert plan_from_asked(plan.name, found) == (plan, len(plan.runs))
    fewer, num_asked = plan_from_asked(plan.name, found[3:])
    assert len(fewer.runs) == len(plan.runs) - 3
    assert num_asked == len(plan.runs)
    assert len(hand_made_records(fewer, lambda p, r, s: {})) == len(fewer.runs)


@pytest.mark.parametrize("name", ["", "a/b", "50%", "why?", "x" * 129])
def test_a_project_name_that_wandb_refuses_is_refused_here(name):
    config = run_config(0, 1, 0)
    with pytest.raises(ConfigError, match="is no name for a W&B project"):
        dataclasses.replace(config.tracking, project=name)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("api_key not configured (no-tty)", "wandb login"),
        ("run a/b/c was previously created and deleted; try a new run name", "tracking.project=ANOTHER"),
        ("entity nobody not found during upsertBucket", "correct tracking.entity"),
        ("invalid character '<' looking for beginning of value", "check WANDB_BASE_URL"),
        ("something\nnew", "W&B could not start: something new"),
    ],
)
def test_what_wandb_says_becomes_one_line(error, line):
    text = explained(RuntimeError(error), mirrored())
    assert line in text
    assert "\n" not in text


def test_a_log_that_is_absent_or_torn_holds_what_it_holds(tmp_path):
    assert num_points(tmp_path / "none.wandb") == 0
    (tmp_path / "torn.wandb").write_bytes(b":W&B\x00\x00\x00" + b"\x01\x02\x03\x04\xff\x00\x01half")
    assert num_points(tmp_path / "torn.wandb") == 0


def test_a_step_meter_counts_tokens_and_memory():
    model = tiny_model()
    meter = StepMeter(model, torch.device("cpu"), "bfloat16")
    numbers = meter.numbers(100)
    assert set(numbers) == {"step_tokens_per_s", "memory_gb"}, "no peak is known of a CPU, so no mfu"
    assert numbers["step_tokens_per_s"] > 0
    assert 0.01 < numbers["memory_gb"] < 100
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert operations_per_token(model) == 6 * parameters
    next(model.parameters()).requires_grad_(False)
    assert 4 * parameters < operations_per_token(model) < 6 * parameters


def test_the_weights_that_are_sent_are_the_regions():
    table = hand_made_table()
    (study,) = make_studies(table, AnalysisConfig())
    best = study.chosen.rays[study.region.best]
    runs = [table.spec_by_fingerprint[fingerprint] for fingerprint in region_runs(table, study)]
    assert len(runs) == len({spec.fingerprint for spec in runs})
    assert {spec.config.seed for spec in runs} == {0, 1, 2}
    assert best.trained_at in {
        (s.config.objective.prompt_weight, s.config.objective.response_weight) for s in runs
    }
    assert len(runs) == 3 * int(study.region.members_Y.sum())
