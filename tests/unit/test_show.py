"""What people read: true, short, and without a number that isn't known."""

import io
import json
import re

import pytest
from toys import failed, finished, toy_plan, toy_spec

from sweep import show
from sweep.arguments import Arguments
from sweep.attempts import Heartbeat, tail
from sweep.claims import this_process
from sweep.commands.repeating import differences
from sweep.commands.session import command_line, find_run, history
from sweep.duration import (
    Estimate,
    duration_text,
    estimate_text,
    kind_of,
    remaining_time,
    seconds_by_kind,
)
from sweep.launch import available_cores, visible_gpus
from sweep.ledger import Ledger, RunState
from sweep.show import PlainView, aligned, last_numbers, progress_line, reason, status_counts, status_lines
from sweep.spec import Status
from sweep.timesheets import Timesheet
from train.errors import UserError


def state(status, step=None, claimed_at=0.0, failure=None):
    heartbeat = Heartbeat(step=step, num_steps=10, time=0.0) if step is not None else None
    owner = this_process() if status is Status.RUNNING else None
    owner = owner and type(owner)(
        **{**{name: getattr(owner, name) for name in owner.__slots__}, "claimed_at": claimed_at}
    )
    return RunState(status=status, attempt=1, heartbeat=heartbeat, owner=owner, failure=failure)


def states_of(plan, *states):
    return {spec.fingerprint: one for spec, one in zip(plan.runs, states, strict=True)}


FINISHED, PLANNED = state(Status.FINISHED), state(Status.PLANNED)
FAILED = state(Status.FAILED, failure=failed(toy_spec()).failure)


def test_progress_is_one_line():
    plan = toy_plan(4)
    states = states_of(plan, FINISHED, state(Status.RUNNING, step=1), FAILED, PLANNED)
    assert progress_line(plan, states, Estimate(30, 30, 30)) == (
        "1 of 4 runs finished, 1 running, 1 failed; time left: about 30 s"
    )
    over = states_of(plan, FINISHED, FINISHED, FAILED, FINISHED)
    assert progress_line(plan, over, None) == "3 of 4 runs finished, 1 failed"


def test_plain_lines_are_few_and_new(monkeypatch):
    plan, stream, clock = toy_plan(2), io.StringIO(), [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    view = PlainView(stream)
    for moment, count in ((0, 0), (5, 1), (9.9, 1), (10, 1), (30, 1), (50, 2)):
        clock[0] = moment
        view.update(plan, states_of(plan, *[FINISHED] * count, *[PLANNED] * (2 - count)), None)
    view.close()
    lines = stream.getvalue().splitlines()
    assert [line.split(" runs")[0] for line in lines] == ["0 of 2", "1 of 2", "2 of 2"]


def test_the_live_screen_shows_runs_in_flight(tmp_path):
    from rich.console import Console

    plan = toy_plan(20)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    view = show.LiveView(Ledger(tmp_path), console)
    view.update(plan, states_of(plan, FINISHED, *[state(Status.RUNNING, step=3)] * 19), None)
    view.say("[not markup]")
    view.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "step 3 of 10" in text
    assert "and 7 more" in text
    assert "[not markup]" in text
    assert "━  1 of 20 runs finished, 19 running; time left: unknown" in text


def test_one_screen_for_a_thousand_runs():
    plan = toy_plan(500, models=("toy", "other"))
    running = state(Status.RUNNING, step=5)
    states = states_of(plan, *[FINISHED] * 400, *[FAILED] * 100, *[running] * 100, *[PLANNED] * 400)
    lines = status_lines(plan, states, None)
    assert len(lines) < 50
    assert lines[0] == "toys: 1000 cells, 1000 runs"
    assert "  model  dataset  finished  running  planned  failed  runs" in lines
    assert "  toy    rows          400        0        0     100   500" in lines
    assert "  other  rows            0      100      400       0   500" in lines
    assert "  all                  400      100      400     100  1000" in lines
    assert sum("code: broken" in line for line in lines) == show.SCREEN_RUNS
    assert "  and 88 more" in lines
    assert lines[-1] == "time left: unknown until the first run is finished"
    over = status_lines(toy_plan(1), states_of(toy_plan(1), FINISHED), None)
    assert not any("time left" in line for line in over)


def test_statuses_nobody_has_take_no_column():
    plan = toy_plan(2)
    assert status_counts(plan, states_of(plan, FINISHED, PLANNED)) == [
        ["model", "dataset", "finished", "planned", "runs"],
        ["toy", "rows", "1", "1", "2"],
    ]


def test_columns_are_aligned():
    lines = aligned([["name", "n"], ["a", "10"], ["bcdef", "2"]])
    assert lines == ["  name    n", "  a      10", "  bcdef   2"]


def test_a_reason_is_one_short_line():
    assert reason(FAILED) == "code: broken"
    long = state(Status.FAILED, failure=failed(toy_spec(), message="two\nlines " + "x" * 300).failure)
    assert "\n" not in reason(long)
    assert len(reason(long)) == 140
    assert reason(state(Status.FAILED)) == "no reason was written down"


def test_the_last_number_of_a_run(tmp_path):
    ledger, spec = Ledger(tmp_path), toy_spec()
    events = ledger.folder(spec.fingerprint) / "events.jsonl"
    assert last_numbers(ledger, spec.fingerprint) == ""
    events.parent.mkdir(parents=True)
    lines = [json.dumps({"step": 1, "train_loss": 2.5}), json.dumps({"step": 2, "train_loss": 2.25})]
    events.write_text("\n".join([*lines, '{"step": 3, "tr']))
    assert last_numbers(ledger, spec.fingerprint) == "train loss 2.25"
    validated = {"step": 2, "train_loss": 2.25, "validation_response_nll": 1.23456}
    events.write_text(json.dumps(validated) + "\n[1]\n")
    assert last_numbers(ledger, spec.fingerprint) == "validation response nll 1.235"


def test_a_tail_ends_where_the_file_does(tmp_path):
    (tmp_path / "log").write_bytes(b"x" * 70000 + b"\none\r 50%\r100%\n\xff\n\n")
    assert tail(tmp_path / "log", 3) == [" 50%", "100%", "\ufffd"]
    assert tail(tmp_path / "none", 3) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (3600, "60 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (200000, "2 d 7 h"),
    ],
)
def test_durations_for_people(seconds, text):
    assert duration_text(seconds) == text


def test_an_estimate_without_history_says_so():
    assert estimate_text(None) == "unknown until the first run is finished"
    assert estimate_text(Estimate(60, 30, 80)) == "about 60 s (30 s to 80 s)"


def test_what_is_left_is_what_the_unfinished_take():
    plan = toy_plan(5)
    history = seconds_by_kind(
        [(kind_of(plan.runs[0]), finished(plan.runs[0], seconds=seconds)) for seconds in (30.0, 10.0, 20.0)]
    )
    assert history == {kind_of(plan.runs[0]): [10.0, 20.0, 30.0]}
    states = states_of(plan, FINISHED, FAILED, state(Status.RUNNING, step=5), PLANNED, PLANNED)
    assert remaining_time(plan.runs, states, history, 1, 0.0) == Estimate(50.0, 25.0, 75.0)
    assert remaining_time(plan.runs, states, history, 2, 0.0) == Estimate(25.0, 12.5, 37.5)
    unsplit = Estimate(20.0, 10.0, 30.0)
    assert remaining_time(plan.runs, states, history, 50, 0.0) == unsplit, "no run is split"
    assert remaining_time(plan.runs, states, {}, 1, 0.0) is None


def test_a_first_run_is_measured_by_its_own_pace():
    plan = toy_plan(1)
    at_half = states_of(plan, state(Status.RUNNING, step=5, claimed_at=100.0))
    assert remaining_time(plan.runs, at_half, {}, 1, 120.0) == Estimate(20.0, 20.0, 20.0)
    at_start = states_of(plan, state(Status.RUNNING, step=0, claimed_at=100.0))
    assert remaining_time(plan.runs, at_start, {}, 1, 120.0) is None


def test_history_comes_from_the_whole_root(tmp_path):
    ledger, plan, other = Ledger(tmp_path), toy_plan(2), toy_spec(seed=99)
    assert history(plan, ledger) == {}
    ledger.claim(plan.runs[0].fingerprint).commit(finished(plan.runs[0], seconds=7.0))
    assert history(plan, ledger) == {kind_of(plan.runs[0]): [7.0]}, "a root without timesheets"
    sheet = Timesheet(tmp_path, "another sweep", "worker", gpus=0, cores=1)
    sheet.begin(other)
    sheet.ready()
    sheet.end("finished", finished(other))
    ((kind, (seconds,)),) = history(plan, ledger).items()
    assert kind == kind_of(plan.runs[0])
    assert 0.0 <= seconds < 1.0


def test_a_run_is_found_by_any_part_that_names_it_alone():
    runs = toy_plan(12).runs
    for word in (runs[3].run_id, runs[3].fingerprint, runs[3].fingerprint[:10], "s3-"):
        assert find_run(runs, word) == runs[3]
    with pytest.raises(UserError, match=r"12 runs match toy-rows; expected one run; such as .*, \.\.\.$"):
        find_run(runs, "toy-rows")
    with pytest.raises(UserError, match=r"no run matches nothing; expected .*; such as toy-rows"):
        find_run(runs, "nothing")
    with pytest.raises(UserError, match="no runs"):
        find_run([], "nothing")
    with pytest.raises(UserError, match="no run is named"):
        find_run(runs, None)


def test_a_line_to_paste_is_quoted():
    arguments = Arguments(overrides=("+grid=a", "dataset.path=/my data"), config_dirs=("my conf",))
    assert command_line(arguments, "retry") == (
        "python -m sweep +grid=a 'dataset.path=/my data' retry --config-dir 'my conf'"
    )


def test_a_rerun_that_differs_says_where():
    spec = toy_spec()
    first = finished(spec)
    assert differences(first, finished(spec, seconds=9.0)) == [], "how long it took is no difference"
    assert differences(first, finished(spec, metrics={"validation_response_nll": 1.5000001})) == [
        "  validation_response_nll: 1.5, then 1.5000001"
    ]
    assert len(differences(first, failed(spec))) == 2
    more = finished(spec, metrics={"validation_response_nll": 1.5, "test_response_nll": 1.0})
    assert differences(first, more) == ["  test_response_nll: None, then 1.0"]


def test_devices_are_counted_without_torch(tmp_path):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert visible_gpus({}, tmp_path / "gpus") == ("0", "1")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-ab"}, tmp_path / "gpus") == ("3", "GPU-ab")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path / "gpus") == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path / "gpus") == ()


def test_cores_are_those_we_may_use(tmp_path):
    limit = tmp_path / "cpu.max"
    ours = available_cores(limit)
    assert ours >= 1
    limit.write_text("50000 100000\n")
    assert available_cores(limit) == 1
    limit.write_text("max 100000\n")
    assert available_cores(limit) == ours
