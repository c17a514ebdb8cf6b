"""The typed configuration: every bad value is one line that names the key, the value and the way out."""

import pytest
from planning import composed, refusal, run_config

from sweep.config import grid_config_from_dict
from train.config import RunConfig, config_to_dict, defaults_tree, run_config_from_dict
from train.errors import ConfigError

BAD = {
    "unknown key": ({"train__learning_rat": 1}, "did you mean train.learning_rate?"),
    "unknown group": ({"trian": {}}, "did you mean train?"),
    "a value for a group": ({"train": 3}, "train=3 is not a group"),
    "text for a number": (
        {"train__epochs": "many"},
        "train.epochs='many' has the wrong type; expected a number",
    ),
    "number for a text": ({"model__template": [1]}, "model.template=[1]"),
    "part of a whole": ({"train__batch_size": 1.5}, "expected a whole number"),
    "number for a switch": ({"eval__generate": 1}, "expected true or false"),
    "switch for a number": ({"seed": True}, "seed=True"),
    "nan": ({"train__learning_rate": float("nan")}, "a finite number"),
    "infinite": ({"objective__prompt_weight": float("inf")}, "a finite number"),
    "zero rate": ({"train__learning_rate": 0}, "expected a number above 0"),
    "negative weight": ({"objective__prompt_weight": -0.5}, "expected a number of at least 0"),
    "negative template weight": ({"objective__template_weight": -1}, "objective.template_weight=-1"),
    "negative system weight": ({"objective__system_weight": -1}, "objective.system_weight=-1"),
    "negative decay": ({"train__weight_decay": -1}, "train.weight_decay=-1"),
    "no share": ({"train__warmup_ratio": 2}, "a share from 0 to 1"),
    "no choice": ({"train__optimizer": "adamm"}, "one of adamw, adam, sgd"),
    "empty batch": ({"train__batch_size": 0}, "at least 1"),
    "no steps": ({"train__max_steps": 0}, "at least 1"),
    "no clip": ({"train__clip_norm": 0}, "above 0"),
    "short rows": ({"dataset__max_tokens": 1}, "at least 2"),
    "negative rows": ({"dataset__num_test_rows": -1}, "at least 0"),
    "no rows": ({"dataset__num_train_rows": 0}, "at least 1"),
    "no answers": ({"eval__max_new_tokens": 0}, "at least 1"),
    "negative seed": ({"seed": -1}, "at least 0"),
    "no seed": ({"seed": "???"}, "add seed="),
    "no weight": ({"objective": {"response_weight": 1}}, "add objective.prompt_weight="),
    "no path": ({"model": {"name": "x", "source": "local"}}, "add model.path=/folder"),
    "no hub id": ({"model": {"name": "x", "source": "hub"}}, "add model.path=org/name"),
    "no data path": ({"dataset": {"name": "x", "source": "local"}}, "add dataset.path="),
    "nothing trained": ({"objective": {"prompt_weight": 0, "response_weight": 0}}, "exclude the pair"),
    "tags": ({"tracking__tags": "a"}, "a list of a text"),
    "a tag": ({"tracking__tags": [[1]]}, "tracking.tags[0]=[1]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_line(name):
    changes, words = BAD[name]
    with pytest.raises(ConfigError) as caught:
        run_config(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_survives_the_round_trip():
    config = run_config(tracking__tags=["a", "b"], train__clip_norm=1, seeds__init=3)
    assert run_config_from_dict(config_to_dict(config)) == config


def test_the_schema_holds_every_key_and_asks_for_what_has_no_default():
    tree = defaults_tree(RunConfig)
    assert tree["seed"] == tree["objective"]["prompt_weight"] == tree["model"]["name"] == "???"
    assert tree["train"]["learning_rate"] == 2e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("launcher.slots=0", "launcher.slots=0; expected a whole number of at least 1"),
        ("launcher.slots=many", "launcher.slots=many; expected a whole number, or auto"),
        ("launcher.kind=cloud", "one of local"),
        ("launcher.max_attempts=0", "launcher.max_attempts=0"),
        ("name=a/b", "a word that can name a folder"),
        ("name=..", "a word that can name a folder"),
        ("root=null", "root=None names no folder"),
        ("root=", "names no folder"),
        ("grid.collapse=ray", "rays or none"),
        ("grid.axes=5", "is not a mapping"),
        ("grid.models=[1]", "grid.models holds 1"),
    ],
)
def test_bad_values_of_a_sweep(override, words):
    assert words in refusal("+grid=smoke_2x2", override)


def test_the_values_of_a_sweep():
    config = composed(
        "+grid=smoke_2x2",
        "action=plan",
        "root=/data/my results",
        "name=5",
        "grid.collapse=none",
        "grid.seeds=4",
        "grid.models=embedded",
    ).config
    assert (config.action, config.root, config.name) == ("plan", "/data/my results", "5")
    assert (config.grid.collapse, config.grid.seeds, config.grid.models) == ("none", (4,), ("embedded",))


def test_a_grid_without_lists_has_one_seed():
    grid = grid_config_from_dict({"name": "x", "seeds": None})
    assert (grid.seeds, grid.models, grid.collapse) == ((0,), None, "rays")
