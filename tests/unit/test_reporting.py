"""The report after the last run: its process gets ready beside the last runs, reads nothing before, and may die."""

import io

import pytest
from hand_made import hand_made_records, planted_score

from analysis.command import parse_request, run
from sweep.claims import this_process
from sweep.commands.reporting import Reporter, show_report
from sweep.commands.session import open_session
from sweep.launch import Launch
from sweep.ledger import RunState
from sweep.spec import Status
from train.files import write_json_atomic
from train.record import record_to_dict

LAUNCH = Launch(root="unused", sweep="smoke_2x2", num_slots=2)


@pytest.fixture
def session(tmp_path):
    """A sweep that is planned; nothing is recorded yet."""
    session = open_session(parse_request(["+grid=smoke_2x2", f"root={tmp_path / 'root'}"]).arguments)
    session.folder.write_plan(session.plan)
    session.ledger.runs.mkdir(parents=True, exist_ok=True)
    return session


def record(session):
    for fingerprint, found in hand_made_records(session.plan, planted_score()).items():
        folder = session.ledger.folder(fingerprint)
        folder.mkdir(parents=True)
        write_json_atomic(folder / "record.json", record_to_dict(found))


def states_of(session, *statuses):
    """The statuses of the plan's runs, the last of which is that of all others; one worker has what is running."""
    owner = this_process("one")
    return {
        spec.fingerprint: RunState(
            status=status, attempt=1, owner=owner if status is Status.RUNNING else None
        )
        for spec, status in zip(session.plan.runs, [*statuses, *[statuses[-1]] * 9], strict=False)
    }


def process_of(reporter):
    return reporter._ready


def test_it_gets_ready_once_a_worker_has_nothing_left_to_do(session, capsys):
    reporter = Reporter(session)
    for states in (
        states_of(session, Status.PLANNED),
        states_of(session, Status.RUNNING, Status.PLANNED),  # which the other worker is about to take
        states_of(session, Status.FINISHED),
    ):
        reporter(LAUNCH, states)
        assert process_of(reporter) is None
    reporter(Launch(root="unused", sweep="smoke_2x2", num_slots=1), states_of(session, Status.RUNNING))
    assert process_of(reporter) is None  # every worker works
    reporter(LAUNCH, states_of(session, Status.FINISHED, Status.RUNNING))
    process = process_of(reporter)
    reporter(LAUNCH, states_of(session, Status.FINISHED, Status.RUNNING))
    assert process_of(reporter) is process
    record(session)  # while it waits: what it reports was recorded later than its start
    assert show_report(session, reporter) == 0
    assert process.returncode == 0
    said = capsys.readouterr().out
    assert "exact answers (validation)" in said
    assert (session.folder.report / "figures" / "plane.png").is_file()
    assert show_report(session) == 0  # shown again, not made again
    assert capsys.readouterr().out == said


def test_a_process_that_died_waiting_is_replaced_and_one_in_vain_is_ended(session, capsys):
    record(session)
    reporter = Reporter(session)
    reporter(LAUNCH, states_of(session, Status.RUNNING))
    killed = process_of(reporter)
    killed.kill()
    assert show_report(session, reporter) == 0
    assert "exact answers (validation)" in capsys.readouterr().out
    assert process_of(reporter) is None
    reporter(LAUNCH, states_of(session, Status.RUNNING))
    in_vain = process_of(reporter)
    reporter.close()
    assert in_vain.poll() is not None


def test_nobody_wants_it_any_more(session, monkeypatch):
    """Whoever started it is gone, so that its standard input ends: it writes nothing and is no error."""
    record(session)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(parse_request([*session.arguments.overrides, "--when-told"])) == ""
    assert not session.folder.report.exists()
