"""confirm: fresh seeds at the pair that the report recommends, and refusals of everything else."""

import json

import pytest
from planning import fake_identities

from sweep.arguments import parse_arguments
from sweep.commands.session import Session, command_line, open_session
from sweep.confirm import FIRST_SEED, evidence
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.spec import Plan, RunSpec
from train.errors import UserError
from train.record import RunRecord


@pytest.fixture
def root(tmp_path, monkeypatch):
    fake_identities(monkeypatch)
    return tmp_path


def session_of(root, *words: str) -> Session:
    return open_session(parse_arguments(("+grid=wit_5x5", f"root={root}", *words)))


def finish(ledger: Ledger, specs: list[RunSpec]) -> None:
    for spec in specs:
        ledger.write_spec(spec.fingerprint, {"run_id": spec.run_id})
        claim = ledger.claim(spec.fingerprint)
        assert claim is not None
        claim.commit(
            RunRecord(
                run_id=spec.run_id,
                fingerprint=spec.fingerprint,
                outcome="finished",
                stage=spec.config.stage,
                parameters_sha256=spec.fingerprint,
            ),
        )


def write_report(session: Session, *pairs: tuple[float, float] | None, **changes: object) -> None:
    """region.json as the analysis writes it, for one plane after another."""
    groups = list(dict.fromkeys(planned.cell.group for planned in session.plan.cells))
    records = session.ledger.records(spec.fingerprint for spec in session.plan.runs)
    planes = []
    for (model, dataset, settings), pair in zip(groups, pairs, strict=True):
        plane: dict[str, object] = {"model": model, "dataset": dataset, "settings": dict(settings)}
        if pair is not None:
            plane["recommended"] = {"prompt_weight": pair[0], "response_weight": pair[1]}
        planes.append(plane)
    folder = SweepFolder(session.config.root, "wit_5x5").report
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"planes": planes, "evidence": evidence(session.plan, records), **changes})
    (folder / "region.json").write_text(text)


def pairs_and_seeds(plan: Plan) -> set[tuple[float, float, int]]:
    return {(p.cell.prompt_weight, p.cell.response_weight, p.cell.seed) for p in plan.cells}


def refusal(root, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        session_of(root, "confirm", *words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_three_pairs_under_three_seeds_that_no_cell_has(root):
    main = session_of(root)
    write_report(main, (0.1, 0.8))
    session = session_of(root, "confirm")
    assert session.folder.name == "wit_5x5.confirm"
    assert pairs_and_seeds(session.plan) == {
        (p, r, FIRST_SEED + k) for k in range(3) for p, r in ((0.1, 0.8), (0.0, 1.0), (1.0, 1.0))
    }
    assert len(session.plan.runs) == 9
    assert not {s.fingerprint for s in session.plan.runs} & {s.fingerprint for s in main.plan.runs}
    weights = {spec.config.objective.prompt_weight for spec in session.plan.runs}
    assert weights == {0.125, 0.0, 1.0}  # the ray's own representative, as in the grid


def test_seeds_that_the_grid_has_are_never_fresh(root):
    words = (f"grid.seeds=[0,{FIRST_SEED},{FIRST_SEED + 2}]", "confirm.num_seeds=2")
    write_report(session_of(root, *words), (0.25, 1))
    session = session_of(root, "confirm", *words)
    assert {planned.cell.seed for planned in session.plan.cells} == {FIRST_SEED + 1, FIRST_SEED + 3}


def test_a_pair_on_the_ray_of_instruction_modelling_needs_six_runs(root):
    write_report(session_of(root), (0.5, 0.5))
    session = session_of(root, "confirm")
    assert (len(session.plan.cells), len(session.plan.runs)) == (9, 6)


def test_every_plane_confirms_its_own_pair_but_not_where_it_is_the_convention(root):
    words = ("'grid.axes={train.learning_rate: [1e-3, 3e-3, 1e-2]}'".strip("'"),)
    write_report(session_of(root, *words), (0.25, 1), (0.0, 0.5), (1.0, 0.25))
    session = session_of(root, "confirm", *words)
    by_rate: dict[float, set[tuple[float, float]]] = {}
    for planned in session.plan.cells:
        rate = dict(planned.cell.settings)["train.learning_rate"]
        by_rate.setdefault(rate, set()).add((planned.cell.prompt_weight, planned.cell.response_weight))
    assert by_rate == {
        1e-3: {(0.25, 1.0), (0.0, 1.0), (1.0, 1.0)},
        1e-2: {(1.0, 0.25), (0.0, 1.0), (1.0, 1.0)},
    }
    assert {spec.config.train.learning_rate for spec in session.plan.runs} == {1e-3, 1e-2}


def test_preference_tuning_confirms_with_the_run_it_starts_from(root, monkeypatch):
    monkeypatch.setattr("train.preferences.preference_identity", lambda config, **_: "preference")
    words = ("grid.stages=[sft,dpo]",)
    write_report(session_of(root, *words), None, (0.5, 1))
    session = session_of(root, "confirm", *words)
    assert len(session.plan.cells) == 9
    stages = [spec.config.stage for spec in session.plan.runs]
    assert (stages.count("sft"), stages.count("dpo")) == (9, 9)
    assert all(dict(planned.cell.settings)["stage"] == "dpo" for planned in session.plan.cells)


def test_without_a_report_it_says_what_to_type(root):
    assert "there is no report to confirm" in refusal(root)
    assert "python -m analysis +grid=wit_5x5" in refusal(root)


def test_a_report_of_fewer_records_is_refused(root):
    main = session_of(root)
    write_report(main, (0.25, 1))
    finish(main.ledger, [next(spec for spec in main.plan.runs if spec.config.stage == "sft")])
    assert "the report is older than the records" in refusal(root)
    write_report(main, (0.25, 1))
    assert len(session_of(root, "confirm").plan.runs) == 9


def test_a_base_model_measured_later_changes_nothing(root):
    main = session_of(root)
    write_report(main, (0.25, 1))
    finish(main.ledger, [spec for spec in main.plan.runs if spec.config.stage == "base"])
    assert len(session_of(root, "confirm").plan.runs) == 9


def test_a_report_without_a_recommendation_is_refused(root):
    write_report(session_of(root), None)
    assert "recommends no pair yet" in refusal(root)


@pytest.mark.parametrize("response_weight", [1.0, 0.8])
def test_the_convention_itself_has_no_gain_to_confirm(root, response_weight):
    write_report(session_of(root), (0.0, response_weight))
    assert "no gain to confirm" in refusal(root)


def test_one_seed_confirms_nothing(root):
    write_report(session_of(root), (0.25, 1))
    assert "confirm.num_seeds=1; expected 2 or more" in refusal(root, "confirm.num_seeds=1")


def test_looking_after_it_uses_what_was_planned_whatever_the_report_says_now(root):
    assert "nothing confirms wit_5x5 yet" in refusal(root, "status")
    main = session_of(root)
    write_report(main, (0.25, 1))
    session = session_of(root, "confirm")
    session.folder.write_plan(session.plan)
    write_report(main, (1.0, 0.25))
    for action in ("status", "cancel", "watch"):
        assert session_of(root, "confirm", action).plan == session.plan
    assert session_of(root, "confirm").plan != session.plan


def test_words():
    arguments = parse_arguments(["+grid=wit_5x5", "confirm", "status"])
    assert (arguments.confirms, arguments.action) == (True, "status")
    assert parse_arguments(["+grid=wit_5x5", "action=confirm"]).confirms
    assert command_line(arguments) == "python -m sweep +grid=wit_5x5 confirm"
    assert command_line(arguments, "cancel") == "python -m sweep +grid=wit_5x5 confirm cancel"
    assert not parse_arguments(["+grid=wit_5x5", "status"]).confirms
    with pytest.raises(UserError, match="did you mean confirm"):
        parse_arguments(["+grid=wit_5x5", "confrim"])
