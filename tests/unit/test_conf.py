"""Every file of conf/ composes, says what it is, and holds what its neighbours hold."""

import re
from pathlib import Path

import pytest
from planning import composed

from sweep.grid import expand_cells
from train.compose import CONF, compose_run, config_groups, config_options
from train.config import RunConfig

WEIGHTS = ("objective.prompt_weight=0.5", "objective.response_weight=1", "seed=0")
PATHS = {
    "model": "model.path=/models/mine",
    "dataset": "dataset.path=/data/mine.jsonl",
    "preference": "preference.path=/data/pairs.jsonl",
}
FILES = [(group, name) for group in config_groups() for name in config_options(group)]


def test_the_groups():
    assert config_groups() == (
        "dataset",
        "dpo",
        "eval",
        "grid",
        "launcher",
        "model",
        "preference",
        "search",
        "tracking",
        "train",
    )


@pytest.mark.parametrize(
    ("group", "name"), [pair for pair in FILES if pair[0] not in ("grid", "launcher", "search")]
)
def test_every_file_of_a_run_composes(group, name):
    path = [PATHS[group]] if name == "local" else []
    config = compose_run([f"{group}={name}", *path, *WEIGHTS])
    assert isinstance(config, RunConfig)
    if group in ("model", "dataset", "preference") and name != "local":
        assert getattr(config, group).name == name, "reports and files must agree on names"


@pytest.mark.parametrize(("group", "name"), [pair for pair in FILES if pair[0] in ("launcher", "search")])
def test_every_file_of_a_sweep_composes(group, name):
    assert composed("+grid=smoke_2x2", f"{group}={name}").config


@pytest.mark.parametrize("name", config_options("grid"))
def test_every_grid_composes_and_is_named_like_its_file(name):
    sweep = composed(f"+grid={name}")
    assert sweep.config.name == sweep.config.grid.name == name
    assert sweep.cells == expand_cells(
        sweep.config.grid, default_model="embedded", default_dataset="embedded"
    )
    text = (CONF / "grid" / f"{name}.yaml").read_text(encoding="utf-8")
    assert re.search(r"^# Hypothesis \(\d{4}-\d\d-\d\d\): ", text, re.MULTILINE), (
        "a grid is a question with a date"
    )


@pytest.mark.parametrize(
    "path", sorted(CONF.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_every_file_begins_with_what_it_is(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize(
    "name", [name for name in config_options("model") if name not in ("embedded", "local")]
)
def test_hub_models_are_pinned(name):
    assert re.fullmatch(r"[0-9a-f]{40}", str(compose_run([f"model={name}", *WEIGHTS]).model.revision))


def test_the_paper_recipe():
    recipe = compose_run(["train=paper", *WEIGHTS]).train
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.warmup_ratio) == (
        2e-5,
        0.1,
        64,
        0.01,
    )
    assert (recipe.schedule, recipe.clip_norm, recipe.optimizer) == ("cosine", None, "adamw")
    assert compose_run(["dataset=lima", *WEIGHTS]).dataset.max_tokens == 4096


def test_the_launcher_counts_slots_itself_by_default():
    assert composed("+grid=smoke_2x2").config.launcher.slots is None
    assert composed("+grid=smoke_2x2", "launcher.slots=3").config.launcher.slots == 3


def test_the_recipe_of_instruction_modelling():
    recipe = compose_run(["train=im", *WEIGHTS]).train
    assert (recipe.learning_rate, recipe.weight_decay, recipe.batch_size, recipe.warmup_ratio) == (
        2e-5,
        0.0,
        128,
        0.03,
    )
    assert (recipe.schedule, recipe.clip_norm, recipe.beta2, recipe.epsilon) == ("linear", None, 0.999, 1e-8)


def test_the_instruction_modelling_study():
    sweep = composed("+grid=im_study")
    assert len(sweep.cells) == 7 * 2 * 3
    assert {config.dataset.max_tokens for config in sweep.configs} == {2048}
    assert {config.objective.normalisation for config in sweep.configs} == {"sequence_mean"}
    assert {
        (config.objective.prompt_weight, config.objective.response_weight) for config in sweep.configs
    } == {
        (0.0, 1.0),
        (1.0, 1.0),
    }
    assert {config.train.epochs for config in sweep.configs if config.dataset.name == "lima"} == {10.0}


def test_the_papers_preference_tuning():
    config = compose_run(["dpo=paper", "preference=ultrafeedback", *WEIGHTS])
    dpo = config.dpo
    assert (dpo.learning_rate, dpo.batch_size, dpo.epochs, dpo.warmup_ratio, dpo.weight_decay, dpo.beta) == (
        5e-7,
        32,
        2.0,
        0.1,
        0.0,
        0.1,
    )
    assert re.fullmatch(r"[0-9a-f]{40}", str(config.preference.revision))
