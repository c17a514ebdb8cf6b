"""Fingerprints: equal if and only if the experiment is; new settings re-run nothing, changed defaults all."""

import dataclasses
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import run_config

from train.config import RunConfig, config_to_dict, neutral, run_config_from_dict
from train.fingerprint import fingerprint, identity_tree

# Changing it re-runs every experiment that anybody has recorded. Raise SCIENCE_VERSION, or find the mistake.
GOLDEN = "648ad2f771864b9ffbf23d0359306609"


def name_of(config, model="model", dataset="dataset"):
    return fingerprint(config, model_identity=model, dataset_identity=dataset)


def test_the_golden_fingerprint():
    assert name_of(run_config()) == GOLDEN


@settings(deadline=None)
@given(st.sampled_from([1, 2, 3]))
def test_numbers_count_by_value(number):
    names = {
        name_of(run_config(objective__prompt_weight=value, train__epochs=value, train__lora_alpha=value))
        for value in (number, float(number), float(f"{number}e0"))
    }
    assert len(names) == 1


@settings(deadline=None)  # a busy machine is no finding
@given(st.randoms())
def test_the_order_of_keys_does_not_matter(random):
    def shuffled(tree):
        items = [(key, shuffled(value) if isinstance(value, dict) else value) for key, value in tree.items()]
        random.shuffle(items)
        return dict(items)

    tree = config_to_dict(run_config())
    assert name_of(run_config_from_dict(shuffled(tree))) == name_of(run_config())


@pytest.mark.parametrize(
    "change",
    [
        {"model__name": "other"},
        {"model__path": "/models/x"},
        {"dataset__name": "other"},
        {"dataset__path": "/data/x"},
        {"train__device": "cuda"},
        {"train__num_threads": 8},
        {"train__checkpoint_every_s": 1},
        {"eval__batch_rows": 1},
        {"tracking__mode": "wandb"},
        {"tracking__tags": ["a"]},
        {"tracking__project": "p"},
        {"objective__template_weight": 0.0},
        {"train__lora_rank": 16},
    ],
)
def test_how_and_neutral_values_do_not_matter(change):
    assert name_of(run_config(**change)) == name_of(run_config())


def science_fields(schema=RunConfig, prefix=""):
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        if item.metadata.get("identity") == "how":
            continue
        if dataclasses.is_dataclass(hints[item.name]):
            yield from science_fields(hints[item.name], f"{prefix}{item.name}__")
        else:
            yield f"{prefix}{item.name}", hints[item.name]


def another_value(hint, value):
    if typing.get_origin(hint) is typing.Literal:
        return next((option for option in typing.get_args(hint) if option != value), None)
    if isinstance(value, bool) or hint is bool or bool in typing.get_args(hint):
        return not value
    if isinstance(value, int | float) and value == 1:
        return 0.5
    if isinstance(value, str):
        return value + "x"
    if hint is float or float in typing.get_args(hint):
        return (value or 0) * 0.6 + 0.15
    return (value or 0) + 1


@pytest.mark.parametrize(("key", "hint"), [pair for pair in science_fields() if pair[0] != "stage"])
def test_every_science_field_matters(key, hint):
    value = run_config()
    for part in key.split("__"):
        value = getattr(value, part)
    other = another_value(hint, value)
    if other is None:
        assert key == "objective__normalisation", "a choice of one can't matter yet"
        return
    assert name_of(run_config(**{key: other})) != name_of(run_config())


def test_the_content_of_model_and_dataset_matters():
    config = run_config()
    assert (
        len(
            {
                name_of(config),
                name_of(config, model="m2"),
                name_of(config, dataset="d2"),
                name_of(config, model="dataset", dataset="model"),
            }
        )
        == 4
    )


def with_field(config: RunConfig, name, kind, field):
    """The configuration as it would be, had the recipe one setting more."""
    recipe = dataclasses.make_dataclass(
        "Recipe", [(name, kind, field)], bases=(type(config.train),), frozen=True, kw_only=True
    )
    values = {item.name: getattr(config.train, item.name) for item in dataclasses.fields(config.train)}
    return dataclasses.replace(config, train=recipe(**values))


def test_a_new_neutral_setting_re_runs_nothing():
    config = run_config()
    assert name_of(with_field(config, "label_smoothing", float, neutral(0.0, 0.0))) == name_of(config)


def test_a_new_setting_away_from_its_neutral_value_matters():
    config = run_config()
    assert name_of(with_field(config, "label_smoothing", float, neutral(0.1, 0.0))) != name_of(config)


def test_changing_an_existing_default_re_runs_what_relied_on_it():
    config = run_config()
    changed = with_field(config, "beta2", float, dataclasses.field(default=0.95))
    changed = dataclasses.replace(changed, train=dataclasses.replace(changed.train, beta2=0.95))
    assert name_of(changed) != name_of(config)
    assert identity_tree(config)["train"]["beta2"] == 0.999, "defaults enter by value, not by absence"


def test_a_base_model_is_measured_once_whatever_the_recipe():
    def base(**changes):
        return run_config(stage="base", objective__prompt_weight=0, objective__response_weight=0, **changes)

    assert name_of(base()) == name_of(base(seed=3, train__learning_rate=1.0, seeds__init=4))
    assert name_of(base()) != name_of(base(eval__max_new_tokens=7))
    assert name_of(base()) != name_of(run_config())
