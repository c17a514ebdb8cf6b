"""python -m analysis: from a ledger on disk to a report, without training and without torch."""

import json
import subprocess
import sys

import pytest
from hand_made import hand_made_records, planted_score

from analysis.command import Request, parse_request, run
from sweep.commands.session import open_session
from train.errors import UserError
from train.files import write_json_atomic
from train.record import record_to_dict


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A root with a finished sweep: its plan is real, its records are hand-made."""
    root = tmp_path_factory.mktemp("root")
    session = open_session(parse_request(["+grid=wit_5x5", f"root={root}"]).arguments)
    session.folder.write_plan(session.plan)
    for fingerprint, record in hand_made_records(session.plan, planted_score()).items():
        folder = session.ledger.folder(fingerprint)
        folder.mkdir(parents=True)
        write_json_atomic(folder / "record.json", record_to_dict(record))
    return root


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take most of the time."""
    monkeypatch.setattr("analysis.report._figures", lambda *_: {})


def request(*words) -> Request:
    return parse_request(list(words))


def test_settings_of_the_analysis_are_taken_out_of_the_sweeps_arguments():
    parsed = request(
        "+grid=wit_5x5", "analysis.metric=validation_response_nll", "analysis.epsilon=0.02", "name=x"
    )
    assert parsed.arguments.overrides == ("+grid=wit_5x5", "name=x")
    assert parsed.settings == {"metric": "validation_response_nll", "epsilon": 0.02}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("analysis.metrik=x", "did you mean analysis.metric"),
        ("analysis.epsilon=-1", "a number above 0"),
        ("analysis.epsilon=many", "a number"),
        ("analysis.max_empty_output_rate=2", "a share from 0 to 1"),
        ("analysis.metric=exact_answer", "did you mean validation_exact_answer"),
    ],
)
def test_bad_settings_die_before_anything_slow(word, message):
    with pytest.raises(UserError, match=message):
        request("+grid=wit_5x5", word)


def test_the_whole_way_writes_the_report(swept):
    text = run(request("+grid=wit_5x5", f"root={swept}"))
    folder = swept / "wit_5x5" / "report"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cells.csv",
        "cells.parquet",
        "figures",
        "region.json",
        "report.html",
        "summary.md",
    ]
    assert "exact answers (validation)" in text
    assert str(folder / "report.html") in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert str(swept) not in page
    assert "python -m train model=embedded" in page
    plane = json.loads((folder / "region.json").read_text(encoding="utf-8"))["planes"][0]
    assert (plane["num_cells"], plane["num_rays"], plane["num_runs"], plane["num_finished"]) == (
        72,
        15,  # 13 and two of its aliases, trained all the same
        41,
        41,
    )


def test_again_gives_the_same_bytes_and_clears_old_figures(swept):
    folder = swept / "wit_5x5" / "report"
    if not folder.exists():
        run(request("+grid=wit_5x5", f"root={swept}"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "figures" / "01_plane.png").write_bytes(b"old")
    run(request("+grid=wit_5x5", f"root={swept}"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_metric_is_one_word(swept, undrawn):
    text = run(
        request("+grid=wit_5x5", f"root={swept}", "analysis.metric=validation_response_nll", "name=nll")
    )
    assert "on response nll (validation)" in " ".join(text.split())


def test_another_question_over_the_same_root_counts_what_it_shares(swept, undrawn):
    """Fewer seeds than were trained: every run is found by its fingerprint, and nothing is absent."""
    text = run(request("+grid=wit_5x5", f"root={swept}", "grid.seeds=[0,1]", "name=two_seeds"))
    region = json.loads((swept / "two_seeds" / "report" / "region.json").read_text(encoding="utf-8"))
    assert region["planes"][0]["num_seeds"] == 2
    assert region["planes"][0]["num_runs"] == region["planes"][0]["num_finished"] == 28
    assert "absent:" not in text
    text = run(request("+grid=wit_5x5", f"root={swept}", "grid.seeds=[0,1,2,3]", "name=four_seeds"))
    assert "13 runs of this plane are absent: 13 planned" in " ".join(text.split())


def test_without_records_it_says_what_to_run_first(tmp_path):
    with pytest.raises(UserError, match=r"first run: python -m sweep \+grid=smoke_2x2"):
        run(request("+grid=smoke_2x2", f"root={tmp_path / 'never'}", "name=other"))
    assert not (tmp_path / "never").exists()


def test_the_command_prints_a_line_and_exits_with_two(project):
    finished = subprocess.run(
        [sys.executable, "-m", "analysis", "+grid=wit_5x5", "analysis.metric=exact"],
        capture_output=True,
        text=True,
        cwd=project,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: unknown metric analysis.metric=exact;")
    assert finished.stderr.count("\n") == 1


def test_help_is_quick_and_no_part_loads_torch(project):
    code = (
        "import sys; sys.argv = ['analysis', '--help']\n"
        "import analysis.__main__ as command; assert command.main() == 0\n"
        "assert 'hydra' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "import analysis.report, analysis.plot\n"
        "assert not {'torch', 'pandas', 'transformers', 'wandb', 'optuna'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, stdout=subprocess.DEVNULL)
