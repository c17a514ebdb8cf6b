"""The ledger's promises: one owner, whole records only, nothing lost, nothing believed that isn't ours."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from toys import failed, finished, toy_plan, toy_spec

from sweep import claims, deaths
from sweep.claims import Owner, is_alive, process_lives, process_start, this_process
from sweep.deaths import PATIENCE
from sweep.errors import LedgerError
from sweep.folder import SweepFolder, check_root, link_run, sweep_names
from sweep.ledger import Ledger
from sweep.spec import Status
from train.record import record_to_dict

SPEC = toy_spec()
RUN = SPEC.fingerprint


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "root")


@pytest.fixture
def dead_process():
    """The name of a process that has ended: its number and its start."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid)
    process.communicate(b"\n")
    return process.pid, start


def bury(ledger, claim, dead_process, **changes):
    """Rewrite a claim as a dead process's."""
    pid, start = dead_process
    owner = dataclasses.replace(this_process("dead"), pid=pid, process_start=start, **changes)
    claim.path("json").write_text(json.dumps(dataclasses.asdict(owner)))
    return claim


def status(ledger):
    return ledger.status(RUN).status


def test_an_unknown_run_is_planned(ledger):
    assert status(ledger) is Status.PLANNED
    assert ledger.status(RUN).attempt == 0
    assert ledger.last_attempt(RUN) == 0
    assert ledger.records([RUN]) == {}


def test_a_claim_holds_the_run_until_it_is_committed(ledger):
    claim = ledger.claim(RUN, "me")
    assert claim.attempt == 1
    assert status(ledger) is Status.RUNNING
    assert ledger.status(RUN).owner.worker == "me"
    assert ledger.claim(RUN) is None
    assert claim.commit(finished(SPEC))
    assert status(ledger) is Status.FINISHED
    assert ledger.claim(RUN) is None
    assert Ledger(ledger.root).records([RUN]) == {RUN: finished(SPEC)}


def test_of_many_threads_one_gets_the_run(ledger):
    won, gate = [], threading.Barrier(12)

    def try_it():
        gate.wait()
        claim = Ledger(ledger.root).claim(RUN)
        if claim:
            won.append(claim)

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


@pytest.mark.parametrize("is_takeover", [False, True])
def test_of_many_processes_one_gets_the_run(ledger, dead_process, is_takeover, project):
    if is_takeover:
        bury(ledger, ledger.claim(RUN), dead_process)
    code = (
        "import sys; from sweep.ledger import Ledger; sys.stdin.readline()\n"
        f"print('won' if Ledger({str(ledger.root)!r}).claim({RUN!r}) else 'lost', flush=True)\n"
        "sys.stdin.readline()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=project,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]  # all alive until all have tried
    for process in processes:
        process.communicate("\n")
    assert sorted(answers) == ["lost", "lost", "lost", "won"]
    assert ledger.last_attempt(RUN) == (2 if is_takeover else 1)


def test_a_dead_owners_run_is_lost_and_taken_over(ledger, dead_process):
    first = bury(ledger, ledger.claim(RUN), dead_process)
    assert status(ledger) is Status.LOST
    second = ledger.claim(RUN)
    assert second.attempt == 2
    assert first.path("json").exists(), "a claim is never deleted"
    assert status(ledger) is Status.RUNNING


def test_a_fenced_owner_cannot_commit(ledger, dead_process):
    first = bury(ledger, ledger.claim(RUN), dead_process)
    assert not first.is_fenced()
    second = ledger.claim(RUN)
    assert first.is_fenced()
    assert not second.is_fenced()
    assert not first.commit(finished(SPEC, seconds=9.0))
    assert status(ledger) is Status.RUNNING
    assert second.commit(finished(SPEC, attempt=2))
    assert ledger.record(RUN).attempt == 2


def test_the_first_record_wins(ledger):
    claim = ledger.claim(RUN)
    assert claim.commit(finished(SPEC, seconds=1.0))
    assert not claim.commit(finished(SPEC, seconds=2.0))
    assert Ledger(ledger.root).record(RUN).training_s == 1.0


def test_a_claim_against_a_record_that_came_in_between_is_given_back(ledger, dead_process, monkeypatch):
    claim = bury(ledger, ledger.claim(RUN), dead_process)
    assert status(ledger) is Status.LOST
    early_looks, believe = [None, None], ledger.record  # the first two looks come before the commit
    claim.commit(finished(SPEC))
    monkeypatch.setattr(ledger, "record", lambda name: early_looks.pop() if early_looks else believe(name))
    assert ledger.claim(RUN) is None
    assert not early_looks
    assert ledger.attempt_path(RUN, 2, "released").exists()


def test_a_paused_run_waits_until_its_stop_moves(ledger):
    ledger.stops = {RUN: 0.25}
    ledger.claim(RUN).pause(0.25, {"validation_exact_answer": 0.5})
    assert status(ledger) is Status.PAUSED
    assert ledger.claim(RUN) is None
    ledger.stops = {RUN: 0.5}
    assert status(ledger) is Status.INTERRUPTED
    ledger.claim(RUN).pause(0.5, {"validation_exact_answer": 0.75})
    assert status(ledger) is Status.PAUSED
    assert ledger.rungs(RUN) == {
        0.25: {"validation_exact_answer": 0.5},
        0.5: {"validation_exact_answer": 0.75},
    }
    ledger.stops = {}
    assert ledger.claim(RUN) is not None, "nothing stops it any more"


def test_a_released_run_can_be_claimed(ledger):
    ledger.claim(RUN).release()
    assert status(ledger) is Status.INTERRUPTED
    assert ledger.claim(RUN).attempt == 2


def test_a_failed_run_waits_for_a_retry(ledger):
    assert not ledger.retry(RUN)
    ledger.claim(RUN).fail(failed(SPEC))
    state = ledger.status(RUN)
    assert state.status is Status.FAILED
    assert state.failure.message == "broken"
    assert ledger.claim(RUN) is None
    assert ledger.retry(RUN)
    assert status(ledger) is Status.PLANNED
    assert not ledger.retry(RUN)
    again = ledger.claim(RUN)
    assert again.attempt == 2
    again.fail(failed(SPEC, attempt=2, message="again"))
    assert ledger.status(RUN).failure.message == "again"


@pytest.mark.parametrize("text", ["", "{", '{"version": 1, "run_id"', "null", "[]", "{}", '{"version": 99}'])
def test_half_a_record_is_never_believed(ledger, text):
    claim = ledger.claim(RUN)
    path = claim.folder / "record.json"
    path.write_text(text)
    assert status(ledger) is Status.RUNNING
    assert claim.commit(finished(SPEC))
    assert status(ledger) is Status.FINISHED
    assert (claim.folder / "record.unreadable-0001.json").read_text() == text, "kept, but not believed"


@pytest.mark.parametrize("change", [{"fingerprint": "f" * 32}, {"version": 2}, {"outcome": "failed"}])
def test_a_record_of_something_else_is_never_believed(ledger, change):
    folder = ledger.folder(RUN)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record_to_dict(finished(SPEC)) | change))
    assert status(ledger) is Status.PLANNED
    assert ledger.claim(RUN) is not None


@pytest.mark.parametrize("record", [failed(SPEC), finished(toy_spec(seed=1))])
def test_only_the_finished_record_of_this_run_can_be_committed(ledger, record):
    with pytest.raises(ValueError, match="not the record"):
        ledger.claim(RUN).commit(record)


def test_a_run_that_kills_its_worker_again_and_again_has_failed(ledger, dead_process):
    for attempt in range(1, 6):
        claim = ledger.claim(RUN)
        assert claim.attempt == attempt
        claim.path("log").write_text("loading\nSegmentation fault, surely\n\n")
        bury(ledger, claim, dead_process)
        assert status(ledger) is (Status.LOST if attempt < 5 else Status.FAILED)
    failure = ledger.status(RUN).failure
    assert failure.kind == "crash"
    assert "5 times" in failure.message
    assert "Segmentation fault, surely" in failure.message
    assert ledger.claim(RUN) is None
    assert ledger.retry(RUN)
    bury(ledger, ledger.claim(RUN), dead_process)
    assert status(ledger) is Status.LOST, "forgiven deaths don't count"


def test_deaths_between_which_the_run_got_further_do_not_count(ledger, dead_process):
    for attempt in range(1, 12):
        claim = ledger.claim(RUN)
        claim.beat(attempt, 100)
        bury(ledger, claim, dead_process)
    assert status(ledger) is Status.LOST
    for _ in range(4):
        claim = ledger.claim(RUN)
        claim.beat(11, 100)
        bury(ledger, claim, dead_process)
    assert status(ledger) is Status.FAILED


def test_deaths_without_a_sign_of_the_runs_own_doing_end_it_much_later(ledger, dead_process):
    """A storm of kills before its first step; the words of a library that found nothing wrong are no sign."""
    for _ in range(5 * PATIENCE):
        assert status(ledger) is not Status.FAILED
        claim = ledger.claim(RUN)
        claim.path("log").write_text("loading 100%, a significant signal 9 of sigmoid\n")
        bury(ledger, claim, dead_process)
        ledger.give_up(RUN, claim.attempt, "killed", "job 7 is FAILED on c1; its last heartbeat was 12 s ago")
    assert status(ledger) is Status.FAILED
    assert f"{5 * PATIENCE} times" in ledger.status(RUN).failure.message


@pytest.mark.parametrize(
    "words",
    [
        "Fatal Python error: Segmentation fault",
        "terminate called after throwing an instance of 'c10::Error'",
        "free(): invalid pointer",
        "a process of the run was ended by SIGABRT",
    ],
)
@pytest.mark.parametrize("place", ["log", "evidence"])
def test_words_of_a_crash_are_such_a_sign(ledger, dead_process, words, place):
    for _ in range(5):
        claim = ledger.claim(RUN)
        claim.path("log").write_text(words if place == "log" else "")
        bury(ledger, claim, dead_process)
        ledger.give_up(RUN, claim.attempt, "killed", words if place == "evidence" else "its worker is gone")
    assert status(ledger) is Status.FAILED


@pytest.mark.parametrize(
    ("evidence", "are_own"), [("signal 11", True), ("signal 9", False), ("exit code 3", True)]
)
def test_how_a_packed_worker_ended_is_a_sign(ledger, dead_process, evidence, are_own):
    for _ in range(5):
        claim = ledger.claim(RUN)
        bury(ledger, claim, dead_process)
        ledger.give_up(RUN, claim.attempt, "killed", f"its worker: ended by {evidence}")
    assert (status(ledger) is Status.FAILED) == are_own


def test_memory_that_ran_out_meanwhile_is_such_a_sign(ledger, dead_process, monkeypatch):
    for attempt in range(1, 6):
        monkeypatch.setattr(claims, "num_oom_kills", lambda number=attempt: number)
        bury(ledger, ledger.claim(RUN), dead_process)
    monkeypatch.setattr(deaths, "num_oom_kills", lambda: 5)
    assert status(ledger) is Status.LOST, "none ended while the last one lived"
    monkeypatch.setattr(deaths, "num_oom_kills", lambda: 6)
    assert status(ledger) is Status.FAILED


def test_max_attempts_is_the_callers(tmp_path, dead_process):
    ledger = Ledger(tmp_path, max_attempts=1)
    claim = ledger.claim(RUN)
    claim.beat(1, 10)
    bury(ledger, claim, dead_process)
    assert status(ledger) is Status.FAILED


def test_beats_are_few_and_say_how_far_it_is(ledger):
    claim = ledger.claim(RUN)
    claim.beat(1, 10)
    claim.beat(2, 10)
    assert ledger.status(RUN).heartbeat.step == 1, "at most one in two seconds"
    claim.beat(3, 10, force=True)
    heartbeat = ledger.status(RUN).heartbeat
    assert (heartbeat.step, heartbeat.num_steps) == (3, 10)
    assert abs(heartbeat.time - time.time()) < 60


def foreign(ledger, claim, silence_s=0.0, **changes):
    """Rewrite a claim as another machine's, last heard of `silence_s` ago."""
    owner = dataclasses.replace(this_process(), host="elsewhere", **changes)
    claim.path("json").write_text(json.dumps(dataclasses.asdict(owner)))
    moment = time.time() - silence_s
    for suffix in ("json", "heartbeat"):
        if claim.path(suffix).exists():
            os.utime(claim.path(suffix), (moment, moment))


@pytest.mark.parametrize(
    ("silence_s", "expected"),
    [(0, Status.RUNNING), (290, Status.RUNNING), (310, Status.LOST), (-900, Status.RUNNING)],
)
def test_elsewhere_silence_decides(ledger, silence_s, expected, dead_process):
    claim = ledger.claim(RUN)
    foreign(ledger, claim, silence_s, pid=dead_process[0])
    assert status(ledger) is expected
    claim.beat(1, 2)
    foreign(ledger, claim, silence_s, pid=dead_process[0])
    assert status(ledger) is expected
    assert not list(ledger.runs.glob(".clock*"))


@pytest.mark.parametrize("part", ["host", "boot_id", "pid_namespace"])
def test_a_process_number_means_nothing_elsewhere(part, dead_process):
    here = this_process()
    assert is_alive(here, lambda: float("inf")), "here, silence means nothing"
    there = dataclasses.replace(here, **{part: "another"})
    assert not is_alive(there, lambda: 301.0)
    assert is_alive(dataclasses.replace(there, pid=dead_process[0]), lambda: 299.0)


def test_here_only_the_very_same_process_is_alive(dead_process):
    here = this_process()
    assert process_lives(here.pid, here.process_start)
    assert not process_lives(here.pid, str(int(here.process_start) + 1)), "another process has its number now"
    assert not process_lives(*dead_process)
    assert process_lives(here.pid, ""), "without /proc, the number must do"
    assert not process_lives(dead_process[0], "")


def test_a_zombie_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(process.pid)
    process.stdin.close()
    deadline = time.monotonic() + 10
    while process_start(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not process_lives(process.pid, start)
    process.wait()


def test_an_unreadable_claim_still_counts(ledger):
    claim = ledger.claim(RUN)
    claim.path("json").write_text("{")
    assert status(ledger) is Status.LOST
    assert ledger.claim(RUN).attempt == 2


def test_statuses_are_those_asked_in_their_order(ledger):
    specs = toy_plan(4).runs
    ledger.claim(specs[2].fingerprint).commit(finished(specs[2]))
    names = [spec.fingerprint for spec in reversed(specs)]
    states = ledger.statuses(names)
    assert list(states) == names
    assert [str(states[name].status) for name in names] == ["planned", "finished", "planned", "planned"]


def test_a_thousand_statuses_are_read(ledger):  # how fast: tests/bench/bench_planning.py
    specs = [toy_spec(seed) for seed in range(1000)]
    for index, spec in enumerate(specs):
        folder = ledger.folder(spec.fingerprint) / "attempts"
        folder.mkdir(parents=True)
        if index % 2:
            (folder.parent / "record.json").write_text(json.dumps(record_to_dict(finished(spec))))
        else:
            (folder / "0001.json").write_text(json.dumps(dataclasses.asdict(this_process())))
    states = Ledger(ledger.root).statuses(spec.fingerprint for spec in specs)
    assert sum(state.status is Status.FINISHED for state in states.values()) == 500


def test_a_spec_is_written_once(ledger):
    ledger.write_spec(RUN, {"run_id": "first"})
    ledger.write_spec(RUN, {"run_id": "second"})
    assert json.loads((ledger.folder(RUN) / "spec.json").read_text()) == {"run_id": "first"}


def test_owners_without_proc_are_named_by_their_number(monkeypatch):
    monkeypatch.setattr(claims, "process_start", lambda pid: None)
    owner = claims.this_process()
    assert owner.process_start == ""
    assert isinstance(owner, Owner)
    assert claims.owner_from_dict({"pid": 3}) is None
    assert claims.owner_from_dict({**dataclasses.asdict(owner), "later": "version"}) == owner


def test_a_folder_that_can_hold_results_is_left_as_it_was(tmp_path):
    check_root(tmp_path / "new" / "root")
    assert [path.name for path in (tmp_path / "new" / "root").iterdir()] == [".runs"]


def test_a_file_is_no_root(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"can't hold results: .*; expected a folder; set root="):
        check_root(tmp_path / "file")


@pytest.mark.parametrize("name", ["link", "symlink", "replace", "fsync"])
def test_a_file_system_that_lacks_something_is_refused(tmp_path, monkeypatch, name):
    def refuse(*_):
        raise OSError(28 if name == "fsync" else 95, "No")

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(LedgerError, match="free space" if name == "fsync" else "links and locks"):
        check_root(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".runs"], "no probe is left behind"


def test_another_question_sets_the_old_plan_aside(tmp_path):
    folder = SweepFolder(tmp_path, "toys")
    assert folder.plan() is None
    assert folder.write_plan(toy_plan(2))
    assert not folder.write_plan(toy_plan(2))
    version = folder.plan_version()
    folder.report.mkdir()
    (folder.report / "report.md").write_text("old")
    assert folder.write_plan(toy_plan(3))
    assert folder.plan() == toy_plan(3)
    assert folder.plan_version() != version
    assert not folder.report.exists()
    (moment,) = (folder.path / "previous").iterdir()
    assert (moment / "report" / "report.md").read_text() == "old"
    assert len(json.loads((moment / "plan.json").read_text())["runs"]) == 2
    assert sweep_names(tmp_path) == ["toys"]


def test_links_lead_to_the_runs_there_are(tmp_path):
    folder, plan, ledger = SweepFolder(tmp_path, "toys"), toy_plan(2), Ledger(tmp_path)
    first, second = plan.runs
    ledger.claim(first.fingerprint).commit(finished(first))
    folder.link_runs(plan)
    folder.link_runs(plan)
    link_run(folder.path / "runs", first.run_id, first.fingerprint)
    assert (folder.path / "runs" / first.run_id / "record.json").is_file()
    assert not (folder.path / "runs" / second.run_id).is_symlink()


def test_a_request_to_stop_is_for_those_who_were_there(tmp_path):
    folder = SweepFolder(tmp_path, "toys")
    assert not folder.was_stopped_after(0.0)
    before = time.time() - 1
    folder.ask_to_stop()
    assert folder.was_stopped_after(before)
    assert not folder.was_stopped_after(time.time() + 1)
