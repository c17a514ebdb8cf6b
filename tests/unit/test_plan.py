"""Plans: how many runs answer how many cells, which cell owns a run, order, names, and the line to paste."""

import json
import shlex
from collections import Counter
from pathlib import Path

import pytest
from planning import composed, fake_identities, planned

from sweep.plan import (
    check_fingerprints,
    make_plan,
    plan_from_dict,
    plan_to_dict,
    summary_lines,
    train_command,
)
from train.compose import compose_run


def answers(plan, prompt, response, seed=0):
    return next(
        cell
        for cell in plan.cells
        if cell.cell.seed == seed
        and (cell.cell.prompt_weight, cell.cell.response_weight) == (prompt, response)
    )


def test_the_5x5_square_is_13_runs_per_seed_and_2_scale_checks_at_the_first(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_5x5")
    assert len(plan.cells) == 72
    per_seed = Counter(cell.cell.seed for cell in plan.cells if cell.is_alias)
    assert per_seed == {0: 9, 1: 11, 2: 11}
    assert len(plan.runs) == 3 * 13 + 2 + 1
    assert len({run.fingerprint for run in plan.runs}) == len({run.run_id for run in plan.runs}) == 42
    assert summary_lines(plan) == [
        "24 cells \u2192 13 runs per seed (11 aliases), 2 aliases trained as scale check",
        "3 seeds, 1 plane: 72 cells \u2192 41 runs + 1 untrained base model",
    ]
    assert {cell.cell.group for cell in plan.cells} == {("embedded", "embedded", ())}


def test_the_owner_of_a_run_is_the_cell_with_its_very_weights(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_5x5")
    assert answers(plan, 0.5, 0.5).is_alias
    assert not answers(plan, 1, 1).is_alias
    assert answers(plan, 0.5, 0.5).fingerprint == answers(plan, 1, 1).fingerprint
    assert plan.spec(answers(plan, 0.5, 0.5).fingerprint).config.objective.prompt_weight == 1
    assert not answers(plan, 0.25, 0.75).is_alias, "nobody asks for (1/3, 1): the first on the ray owns it"
    for run in plan.runs[1:]:
        assert sum(cell.fingerprint == run.fingerprint and not cell.is_alias for cell in plan.cells) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("grid.collapse=none",),
        ("train.clip_norm=1",),
        ("train.optimizer=sgd",),
        ("train.optimizer=adam",),
        ("train.epsilon=1e-6",),
    ],
)
def test_rays_are_not_merged_where_scale_matters(monkeypatch, words):
    plan = planned(monkeypatch, "+grid=wit_5x5", "grid.seeds=[0]", *words)
    assert len(plan.runs) == 25
    assert not any(cell.is_alias for cell in plan.cells)


def test_scale_checks_train_the_aliases_farthest_from_their_runs_at_one_seed(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_5x5")
    checks = {spec.fingerprint: spec for spec in plan.runs if spec.fingerprint in check_fingerprints(plan)}
    weights = {
        (spec.config.objective.prompt_weight, spec.config.objective.response_weight, spec.config.seed)
        for spec in checks.values()
    }
    assert weights == {(0.0, 0.25, 0), (0.25, 0.25, 0)}
    assert not answers(plan, 0.25, 0.25).is_alias
    assert answers(plan, 0.25, 0.25, seed=1).fingerprint == answers(plan, 1, 1, seed=1).fingerprint
    none = planned(monkeypatch, "+grid=wit_5x5", "grid.scale_checks=0")
    assert not check_fingerprints(none)
    assert {spec.fingerprint for spec in none.runs} == {spec.fingerprint for spec in plan.runs} - set(checks)
    many = planned(monkeypatch, "+grid=wit_5x5", "grid.scale_checks=99", "grid.seeds=[0]")
    assert len(many.runs) == 25, "every cell is trained: then nothing is merged"


@pytest.mark.parametrize("words", [("train.clip_norm=1",), ("objective.normalisation=weight_sum",)])
def test_nothing_is_checked_where_nothing_is_assumed(monkeypatch, words):
    plan = planned(monkeypatch, "+grid=wit_5x5", *words)
    assert not check_fingerprints(plan)


def test_the_rays_grid_covers_small_ratios(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_rays", "grid.seeds=[0]")
    ratios = {
        spec.config.objective.prompt_weight
        for spec in plan.runs[1:]
        if spec.config.objective.response_weight == 1
    }
    assert {0.02, 0.05, 0.1} < ratios
    assert len(plan.runs) == 1 + 11 + 2


def test_the_paper_grid_is_21_runs_and_2_checks_for_each_of_15_planes(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_paper")
    assert len(plan.cells) == 525
    assert len(plan.bases) == 15
    assert len(plan.runs) == 15 * (21 + 2) + 15
    assert set(Counter(cell.cell.group for cell in plan.cells).values()) == {35}
    assert set(Counter(cell.cell.group for cell in plan.cells if cell.is_alias).values()) == {12}


def test_bases_come_first_then_seeds_then_planes(monkeypatch):
    plan = planned(monkeypatch, "+grid=smoke_2x2", "grid.seeds=[3,1]", "grid.models=[embedded,gemma_2_2b]")
    assert [run.config.stage for run in plan.runs[:3]] == ["base", "base", "sft"]
    order = [(run.config.seed, run.config.model.name) for run in plan.runs[2:]]
    assert list(dict.fromkeys(order)) == [
        (3, "embedded"),
        (3, "gemma_2_2b"),
        (1, "embedded"),
        (1, "gemma_2_2b"),
    ]
    assert order == sorted(order, key=lambda pair: (-pair[0], pair[1])), "planes of a seed stay together"


def test_planes_of_one_model_share_its_base(monkeypatch):
    plan = planned(monkeypatch, "+grid=smoke_2x2", "grid.axes={train.learning_rate: [1e-3, 3e-3]}")
    assert len(plan.bases) == 2
    assert len({base.fingerprint for base in plan.bases}) == 1
    assert sum(run.config.stage == "base" for run in plan.runs) == 1
    assert [base.settings for base in plan.bases] == [
        (("train.learning_rate", rate),) for rate in (1e-3, 3e-3)
    ]


def test_names_of_runs(monkeypatch):
    plan = planned(monkeypatch, "+grid=smoke_2x2", "model=local", "model.path=/models/my model")
    base, *others = plan.runs
    assert base.run_id == f"my_model-embedded-base-{base.fingerprint[:12]}"
    assert [run.run_id.rsplit("-", 1)[0] for run in others] == [
        "my_model-embedded-p0-r1-s0",
        "my_model-embedded-p1-r0-s0",
        "my_model-embedded-p1-r1-s0",
    ]
    assert {cell.cell.model for cell in plan.cells} == {"my_model"}, "local says nothing in a table"


def test_two_files_under_one_name_stay_two_planes(monkeypatch):
    fake_identities(monkeypatch)
    sweep = composed("+grid=smoke_2x2", "grid.models=[embedded,gemma_2_2b]", "model.name=same")
    assert {cell.cell.model for cell in make_plan(sweep, cache_folder=None).cells} == {
        "embedded",
        "gemma_2_2b",
    }


def test_identities_are_asked_once_for_each_model_and_dataset(monkeypatch):
    asked = fake_identities(monkeypatch)
    make_plan(composed("+grid=wit_paper"), cache_folder=Path("unused"))
    assert asked == {"model": 5, "dataset": 3}


def test_fingerprints_ignore_what_changes_no_result(monkeypatch):
    def names(*words):
        return [run.fingerprint for run in planned(monkeypatch, "+grid=smoke_2x2", *words).runs]

    assert names() == names(
        "tracking=wandb_offline", "launcher.slots=3", "root=elsewhere", "train.device=cpu"
    )
    assert names() != names("train.epochs=3")


@pytest.mark.parametrize(
    "words",
    [
        ("+grid=wit_5x5",),
        ("+grid=wit_paper",),
        (
            "+grid=smoke_2x2",
            "model=local",
            "model.path=/models/my model/hf",
            "dataset=local",
            "dataset.path=/data/a=b, 'c'.jsonl",
            "train=lora",
            "train.lora_rank=4",
            "objective.template_weight=0.5",
        ),
        (
            "+grid=smoke_2x2",
            "grid.axes={train: [paper, lora], train.clip_norm: [null, 0.5], seeds.init: [4]}",
            "model.add_bos=true",
            "eval=likelihood",
            "model.name=mine",
            "dataset.max_tokens=99",
        ),
    ],
)
def test_the_line_to_paste_composes_the_same_experiment(monkeypatch, words):
    plan = planned(monkeypatch, *words)
    for run in [plan.runs[0], *plan.runs[1 :: max(1, len(plan.runs) // 5)]]:
        command = shlex.split(train_command(run))
        assert command[:3] == ["python", "-m", "train"]
        assert compose_run(command[3:]) == run.config


def test_the_line_to_paste_is_short(monkeypatch):
    plan = planned(monkeypatch, "+grid=wit_paper", "model=llama_3_2_1b", "dataset=lima")
    run = plan.spec(answers(plan, 0.4, 0.8, seed=23).fingerprint)
    assert train_command(run) == (
        "python -m train model=llama_3_2_1b dataset=lima train=paper train.epochs=5 "
        "objective.prompt_weight=0.5 objective.response_weight=1 seed=23"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("+grid=wit_5x5",),
        ("+grid=smoke_2x2", "grid.axes={train.clip_norm: [null, 1], tracking.tags: [[a, b]]}"),
    ],
)
def test_a_plan_survives_the_round_trip(monkeypatch, words):
    plan = planned(monkeypatch, *words)
    text = json.dumps(plan_to_dict(plan), allow_nan=False)
    assert plan_from_dict(json.loads(text)) == plan
    assert json.dumps(plan_to_dict(plan_from_dict(json.loads(text)))) == text


def test_planning_twice_gives_the_same_plan(monkeypatch):
    assert planned(monkeypatch, "+grid=wit_5x5") == planned(monkeypatch, "grid=wit_5x5")
