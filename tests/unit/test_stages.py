"""Preference tuning in a sweep: two stages in one plan, identities that hold their parents, blocked runs."""

import dataclasses
import json

import pytest
from planning import composed, planned, refusal, run_config
from toys import failed, finished, toy_plan, toy_spec

from sweep.commands.session import find_run
from sweep.controller import take_controller_lock
from sweep.flag import Flag
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.plan import plan_from_dict, plan_to_dict, summary_lines, train_command
from sweep.retention import prune, region_fingerprints, remove_workers_files
from sweep.slots import take_slot
from sweep.spec import Plan, Status
from sweep.worker import NOTHING_LEFT, Worker
from train.files import write_json_atomic
from train.fingerprint import fingerprint
from train.kept import ABOUT, FOLDER, has_weights

GRID = ("+grid=smoke_2x2", "grid.stages=[sft,dpo]")


def dpo_name(parent="parent", preference="pairs", **changes):
    return fingerprint(
        run_config(stage="dpo", **changes),
        model_identity="m",
        dataset_identity="d",
        parent_fingerprint=parent,
        preference_identity=preference,
    )


def test_every_supervised_run_gets_its_preference_tuned_one(monkeypatch):
    plan = planned(monkeypatch, *GRID)
    supervised = [spec for spec in plan.runs if spec.config.stage == "sft"]
    tuned = [spec for spec in plan.runs if spec.config.stage == "dpo"]
    assert [spec.parent_fingerprint for spec in tuned] == [spec.fingerprint for spec in supervised]
    assert not set(plan.runs) - {*supervised, *tuned, plan.runs[0]}
    assert {dict(item.cell.settings).get("stage") for item in plan.cells} == {None, "dpo"}
    assert "3 supervised runs, 3 preference-tuned runs on top of them" in summary_lines(plan)
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan
    assert {spec.config.keep for spec in supervised} == {"until_dpo"}
    assert {spec.config.keep for spec in tuned} == {"none"}
    assert all(spec.run_id.rsplit("-", 1)[0].endswith("-dpo") for spec in tuned)


def test_supervised_runs_are_the_same_experiments_with_and_without(monkeypatch):
    alone, both = planned(monkeypatch, GRID[0]), planned(monkeypatch, *GRID)
    assert [spec.fingerprint for spec in both.runs[:4]] == [spec.fingerprint for spec in alone.runs]


def test_beta_is_an_axis_of_the_second_stage_only(monkeypatch):
    plan = planned(monkeypatch, *GRID, "grid.axes={dpo.beta: [0.1, 0.3]}")
    assert sum(spec.config.stage == "sft" for spec in plan.runs) == 3
    assert (
        sorted(spec.config.dpo.beta for spec in plan.runs if spec.config.stage == "dpo")
        == [0.1] * 3 + [0.3] * 3
    )
    assert "the grid has no stage dpo" in refusal_of_plan(monkeypatch)
    assert "grid.stages" in refusal("+grid=smoke_2x2", "grid.stages=[dpo]")
    assert "retention=some" in refusal("+grid=smoke_2x2", "retention=some")


def refusal_of_plan(monkeypatch):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its line is read
        planned(monkeypatch, GRID[0], "grid.axes={dpo.beta: [0.1, 0.3]}")
    return str(caught.value)


def test_rays_are_merged_in_both_stages(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_5x5", "grid.stages=[sft,dpo]", "grid.seeds=[0]")
    assert sum(spec.config.stage == "dpo" for spec in plan.runs) == 13 + 2
    assert len(plan.cells) == 48


def test_the_line_of_a_tuned_run_names_its_parent(monkeypatch):
    plan = planned(monkeypatch, *GRID, "dpo.beta=0.3", "train.learning_rate=7e-4")
    spec = plan.runs[-1]
    line = train_command(spec)
    assert f"parent=outputs/.runs/{spec.parent_fingerprint}" in line
    assert "dpo.beta=0.3" in line
    assert "stage=dpo" in line
    assert "train.learning_rate" not in line


def test_a_tuned_runs_name_holds_its_parent_and_its_pairs():
    names = {
        dpo_name(),
        dpo_name(parent="other"),
        dpo_name(preference="other"),
        dpo_name(dpo__beta=0.2),
        dpo_name(dpo__learning_rate=1e-6),
        dpo_name(dpo__schedule="cosine"),
        dpo_name(dpo__batch_size=16),
        dpo_name(preference__max_tokens=99),
        dpo_name(preference__split_seed=4),
    }
    assert len(names) == 9
    assert dpo_name(dpo__micro_batch_pairs=1, keep="all", preference__name="x") == dpo_name()


def test_sections_of_preferences_are_no_part_of_a_supervised_run():
    def name(**changes):
        return fingerprint(run_config(**changes), model_identity="m", dataset_identity="d")

    assert name(dpo__beta=0.4, preference__max_tokens=9, keep="all") == name()


def child_of(parent, seed=0):
    config = dataclasses.replace(toy_spec(seed).config, stage="dpo")
    name = fingerprint(
        config,
        model_identity="toy",
        dataset_identity="rows",
        parent_fingerprint=parent.fingerprint,
        preference_identity="pairs",
    )
    return dataclasses.replace(
        parent,
        run_id=f"{parent.run_id}-dpo",
        fingerprint=name,
        config=config,
        parent_fingerprint=parent.fingerprint,
        preference_identity="pairs",
    )


def family(num=2):
    plan = toy_plan(num)
    parents = [
        dataclasses.replace(spec, config=dataclasses.replace(spec.config, keep="until_dpo"))
        for spec in plan.runs
    ]
    tuned = [child_of(spec, spec.config.seed) for spec in parents]
    return (
        Plan(plan.name, plan.cells, (), (*tuned, *parents)),
        parents,
        tuned,
    )  # children first: order must not matter


def worked(folder, train):
    trained = []

    def run_one(spec, *, folder, attempt, should_stop, on_progress):
        trained.append(spec.run_id)
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / ABOUT).write_text("{}")
        return train(spec, attempt)

    code = Worker(Ledger(folder.root), folder, Flag(), name="me", make_run_one=lambda: run_one).run()
    return code, trained


def test_a_child_starts_when_its_parents_record_exists(tmp_path):
    plan, parents, tuned = family()
    folder = SweepFolder(tmp_path, plan.name)
    folder.write_plan(plan)
    code, trained = worked(folder, lambda spec, attempt: finished(spec, attempt=attempt))
    assert code == NOTHING_LEFT
    assert trained == [*(spec.run_id for spec in parents), *(spec.run_id for spec in tuned)]
    ledger = Ledger(tmp_path)
    assert not any(has_weights(ledger.folder(spec.fingerprint)) for spec in parents), (
        "kept for their children only"
    )


def test_a_failed_parent_is_reported_and_not_waited_for(tmp_path):
    plan, parents, tuned = family()
    folder = SweepFolder(tmp_path, plan.name)
    folder.write_plan(plan)
    fails = parents[0].fingerprint

    def train(spec, attempt):
        return (
            failed(spec, attempt=attempt, kind="nan_loss")
            if spec.fingerprint == fails
            else finished(spec, attempt=attempt)
        )

    _, trained = worked(folder, train)
    assert tuned[0].run_id not in trained
    state = Ledger(tmp_path).status(tuned[0].fingerprint)
    assert state.status is Status.FAILED
    assert state.failure.kind == "blocked"
    assert state.failure.message == f"blocked by parent {parents[0].run_id}, which failed: broken"
    assert Ledger(tmp_path).status(tuned[1].fingerprint).status is Status.FINISHED
    for spec in (parents[0], tuned[0]):
        assert Ledger(tmp_path).retry(spec.fingerprint)
    worked(folder, lambda spec, attempt: finished(spec, attempt=attempt))
    assert Ledger(tmp_path).status(tuned[0].fingerprint).status is Status.FINISHED


def test_a_parent_that_somebody_else_trains_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("sweep.worker.PARENT_EVERY_S", 0.01)
    plan, parents, tuned = family(1)
    folder = SweepFolder(tmp_path, plan.name)
    folder.write_plan(plan)
    ledger = Ledger(tmp_path)
    ledger.write_spec(parents[0].fingerprint, {})
    claim = ledger.claim(parents[0].fingerprint, "somebody")
    looks = []
    original = Flag.wait

    def wait(self, timeout_s):
        looks.append(timeout_s)
        if len(looks) == 3:
            claim.commit(finished(parents[0]))
        return original(self, timeout_s)

    monkeypatch.setattr(Flag, "wait", wait)
    _, trained = worked(folder, lambda spec, attempt: finished(spec, attempt=attempt))
    assert trained == [tuned[0].run_id]
    assert len(looks) >= 3


def test_retention_keeps_the_region_only(tmp_path, monkeypatch):
    plan = planned(monkeypatch, "+grid=smoke_2x2", "retention=region")
    assert {spec.config.keep for spec in plan.runs if spec.config.stage == "sft"} == {"all"}
    folder, ledger = SweepFolder(tmp_path, plan.name), Ledger(tmp_path)
    folder.write_plan(plan)
    trained = plan.runs[1:]
    for spec in trained:
        (ledger.folder(spec.fingerprint) / FOLDER).mkdir(parents=True)
        (ledger.folder(spec.fingerprint) / FOLDER / ABOUT).write_text("{}")
    cell = plan.cells[0].cell
    ray = {"prompt_weight": cell.prompt_weight, "response_weight": cell.response_weight, "aliases": []}
    report = {"planes": [{"model": cell.model, "dataset": cell.dataset, "settings": {}, "best": ray}]}
    assert region_fingerprints(plan, report) == {plan.cells[0].fingerprint}
    folder.report.mkdir(parents=True)
    write_json_atomic(folder.report / "region.json", report)
    assert prune(plan, ledger, folder) == (1, 2)
    assert [has_weights(ledger.folder(spec.fingerprint)) for spec in trained] == [
        spec.fingerprint == plan.cells[0].fingerprint for spec in trained
    ]


def test_composed_cells_know_nothing_of_stages():
    assert len(composed(*GRID).cells) == 3
    assert find_run(toy_plan(1).runs, toy_plan(1).runs[0].fingerprint)


def test_the_papers_follow_up_shares_its_supervised_runs(monkeypatch):
    alone, both = planned(monkeypatch, "+grid=wit_paper"), planned(monkeypatch, "+grid=wit_paper_dpo")
    supervised = {spec.fingerprint for spec in alone.runs}
    assert supervised < {spec.fingerprint for spec in both.runs}
    assert len(both.cells) == 2 * 525
    assert sum(spec.config.stage == "dpo" for spec in both.runs) == 15 * (21 + 2)
    assert {spec.parent_fingerprint for spec in both.runs if spec.parent_fingerprint} < supervised


def test_workers_files_go_when_nobody_may_write_there(tmp_path):
    folder = SweepFolder(tmp_path, "toys")
    (folder.workers / "20260101T000000-1").mkdir(parents=True)
    controller = take_controller_lock(folder)
    remove_workers_files(folder)
    assert folder.workers.exists(), "somebody runs the sweep"
    controller.close()
    worker = take_slot(tmp_path, "toys", 0)
    remove_workers_files(folder)
    assert folder.workers.exists(), "a worker is still ending"
    worker.seek(0)
    worker.truncate()
    other = take_slot(tmp_path, "another", 1)
    remove_workers_files(folder)
    assert not folder.workers.exists()
    worker.close()
    other.close()
