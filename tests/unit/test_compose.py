"""Composition: the fast route equals Hydra's own for every cell; every mistake is one line with a way out."""

import shlex
from pathlib import Path

import pytest
from planning import composed, refusal

from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep
from sweep.errors import ComposeError
from train.compose import compose_run
from train.errors import UserError
from train.overrides import overrides_for

AXIS = "grid.axes={train.learning_rate: [1e-3, 3e-3]}"
LOCAL = ("model=local", "model.path=/models/mine", "dataset=local", "dataset.path=/data/mine.jsonl")


def by_hydra(cell, words):
    """What Hydra itself composes for one cell, everything said as overrides."""
    numbers = {
        "objective.prompt_weight": cell.prompt_weight,
        "objective.response_weight": cell.response_weight,
        "seed": cell.seed,
        "model": cell.model,
        "dataset": cell.dataset,
        **dict(cell.settings),
    }
    kept = [word for word in words if not word.startswith(("+grid", "grid.", "model=", "dataset="))]
    return compose_run([*kept, *(f"{key}={value}" for key, value in numbers.items())])


@pytest.mark.parametrize(
    "words",
    [
        ("+grid=smoke_2x2",),
        ("+grid=smoke_2x2", AXIS),
        ("+grid=smoke_2x2", "grid.axes={train: [paper, lora], eval: [likelihood]}", "train.batch_size=4"),
        ("+grid=smoke_2x2", "grid.models=[embedded,llama_3_2_1b]", "grid.seeds=[7]", "model.template=chat"),
        ("+grid=smoke_2x2", *LOCAL, "train=lora"),
        # Interpolations that read a swept number, a fixed one, and an axis: cell by cell, but right.
        ("+grid=smoke_2x2", "grid.seeds=[1,2]", "dataset.split_seed=${seed}"),
        ("+grid=smoke_2x2", "train.weight_decay=${train.learning_rate}", AXIS),
    ],
)
def test_every_cell_equals_plain_hydra_composition(words):
    sweep = composed(*words)
    assert len(sweep.cells) == len(sweep.configs) >= 3
    for cell, config in zip(sweep.cells, sweep.configs, strict=True):
        assert config == by_hydra(cell, words)


def test_the_paper_grid_sets_epochs_by_dataset_and_the_rate_by_model():
    sweep = composed("+grid=wit_paper")
    assert len(sweep.cells) == 525
    seen = {
        (cell.dataset, config.train.epochs) for cell, config in zip(sweep.cells, sweep.configs, strict=True)
    }
    assert seen == {("lima", 5), ("alpaca_cleaned", 2), ("tulu_v2_150k", 1)}
    rates = {
        (cell.model == "mistral_7b", config.train.learning_rate)
        for cell, config in zip(sweep.cells, sweep.configs, strict=True)
    }
    assert rates == {(True, 5e-6), (False, 2e-5)}
    assert {config.train.weight_decay for config in sweep.configs} == {0.1}


def test_what_the_user_says_wins_over_the_paper_grid():
    mistral = ("+grid=wit_paper", "model=mistral_7b", "grid.datasets=[lima,tulu_v2_150k]")
    assert {config.train.epochs for config in composed(*mistral, "train.epochs=3").configs} == {3}
    lora = composed(*mistral, "train=lora")
    assert {config.train.method for config in lora.configs} == {"lora"}
    assert {config.train.learning_rate for config in lora.configs} == {2e-4}, "adjusts no other recipe"
    one = composed("+grid=wit_paper", "model=llama_3_2_1b")
    assert {cell.model for cell in one.cells} == {"llama_3_2_1b"}
    assert len(one.cells) == 105
    own = composed("+grid=wit_paper", *LOCAL)
    assert len(own.cells) == 35
    assert {config.train.learning_rate for config in own.configs} == {2e-5}


@pytest.mark.parametrize(
    "grid", ["+grid=smoke_2x2", "grid=smoke_2x2", "++grid=smoke_2x2", "grid=smoke_2x2.yaml"]
)
def test_every_spelling_of_grid(grid):
    assert composed(grid).config.name == "smoke_2x2"


def test_names_come_from_paths():
    def names(*words):
        config = composed("+grid=smoke_2x2", *words).configs[0]
        return config.model.name, config.dataset.name

    assert names("model=local", "model.path=/models/pythia_70m/hf") == ("pythia_70m", "embedded")
    assert names("model=local", "model.path=/models/my model (2)/") == ("my_model_2", "embedded")
    assert names("dataset=local", "dataset.path=/data/a=b, 'c'.jsonl.gz") == ("embedded", "a_b_c")
    assert names(*LOCAL, "model.name=own", "dataset.name=rows") == ("own", "rows")


@pytest.mark.parametrize(
    "path",
    [
        "/a b",
        "/a'b",
        '/a"b',
        "/a\\'b",
        "/a\\",
        "/a\\\\",
        "/{a}[b],c:d=e#f",
        "/$a %b!",
        "/\u0434\u0430\u043d",
        "/1e3",
        "/null",
    ],
)
def test_paths_need_no_quotes_of_hydra(path):
    sweep = composed("+grid=smoke_2x2", "model=local", f"model.path={path}", f"root={path}")
    assert sweep.configs[0].model.path == sweep.config.root == path
    assert compose_run(overrides_for(sweep.configs[0])) == sweep.configs[0]


def test_relative_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(["+grid=smoke_2x2", "model=local", "model.path=models/mine"])
    config = compose_sweep(arguments).configs[0]
    assert config.model.path == str(tmp_path / "models" / "mine")
    assert list(tmp_path.iterdir()) == [], "Hydra must leave nothing behind"


def test_a_folder_of_the_users_own(tmp_path):
    for group, name, text in (
        (
            "grid",
            "mine",
            "# @package grid\nname: mine\ncells: {product: {prompt_weight: [1],"
            " response_weight: [0.5, 1]}}\n",
        ),
        ("train", "quick", "max_steps: 3\n"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / f"{name}.yaml").write_text(text)
    sweep = composed("+grid=mine", "train=quick", config_dirs=[str(tmp_path)])
    assert [config.train.max_steps for config in sweep.configs] == [3, 3]
    assert "mine, smoke_2x2" in refusal("+grid=nope", "--config-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: bad\ncells: [", "doesn't compose"),
        (
            "# @package grid\ncells: {product: {prompt_weight: [1], response_weight: [1]}}",
            "grid.name is not set",
        ),
        ("# @package grid\nname: bad\nsedes: [1]", "did you mean grid.seeds?"),
        (
            "# @package grid\nname: bad\ncells: {product: {prompt_weight: [1], response_weight: ['0,1']}}",
            "is no weight",
        ),
        ("# @package grid\nname: bad\ncells:", "the grid has no prompt_weight"),
        (
            "# @package grid\nname: bad\nadjust: {dataset: {limma: {train.epochs: 1}}}\ncells: {product: "
            "{prompt_weight: [1], response_weight: [1]}}",
            "did you mean lima?",
        ),
        (
            "# @package grid\nname: bad\nadjust: {dataset: {lima: {train.epoch: 1}}}\ncells: {product: "
            "{prompt_weight: [1], response_weight: [1]}}",
            "did you mean train.epochs?",
        ),
    ],
)
def test_a_broken_file_of_the_users_own(tmp_path, text, words):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "bad.yaml").write_text(text)
    assert words in refusal("+grid=bad", "--config-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("+grid=wit_5x6", "did you mean wit_5x5?"),
        ("+grid=smoke_2x2 model=lama_3_8b", "mistral_7b; did you mean llama_3_8b?"),
        ("+grid=smoke_2x2 dataset=zzz", "unknown dataset zzz; expected one of al"),
        ("+grid=smoke_2x2 grid.models=[nope]", "unknown model nope"),
        ("+grid=smoke_2x2 train.learning_rat=1", "did you mean train.learning_rate?"),
        ("+grid=smoke_2x2 learning_rate=1", "did you mean train.learning_rate?"),
        ("+grid=smoke_2x2 +train.learning_rat=1", "did you mean train.learning_rate?"),
        ("+grid=smoke_2x2 mdel=local", "did you mean model?"),
        ("+grid=smoke_2x2 launcher.slot=1", "did you mean launcher.slots?"),
        ("+grid=smoke_2x2 grid.sedes=[1]", "did you mean grid.seeds?"),
        ("+grid=smoke_2x2 +foo=1", "unknown key foo"),
        ("+grid=smoke_2x2 train.epochs=many", "train.epochs='many' has the wrong type; expected a number"),
        ("+grid=smoke_2x2 train.epochs=-1", "expected a number above 0"),
        ("+grid=smoke_2x2 train.epochs=1,2", "say 'grid.axes={train.epochs: [...]}'"),
        ("+grid=smoke_2x2 model=local,embedded", "say grid.models=[...]"),
        ("+grid=smoke_2x2 train.epochs=[1", "can't read 'train.epochs=[1'"),
        ("+grid=smoke_2x2 =3", "has no key"),
        ("+grid=smoke_2x2 ~model", "say model=NAME"),
        ("+grid=smoke_2x2 hydra.run.dir=x", "a setting of Hydra"),
        ("+grid=smoke_2x2 train=null", "names no file; expected one of embedded, "),
        ("+grid=smoke_2x2 train.epochs=${nope}", "can't be resolved"),
        ("+grid=smoke_2x2 model=local", "add model.path="),
        ("+grid=smoke_2x2 dataset=local", "add dataset.path="),
        ("+grid=smoke_2x2 model=embedded grid.models=[embedded]", "contradict each other"),
        ("+grid=smoke_2x2 seed=7", "say grid.seeds=[7]"),
        ("+grid=smoke_2x2 objective.prompt_weight=1", "is an axis of the grid"),
        (
            "+grid=smoke_2x2 grid.axes={train.epochs:[1]} train.epochs=2",
            "train.epochs is an axis of the grid",
        ),
        ("+grid=smoke_2x2 grid.axes={train:[paper,lorra]}", "did you mean lora?"),
        ("+grid=smoke_2x2 grid.seeds=[]", "seed has no values"),
        ("+grid=smoke_2x2 stage=base", "a grid sets the stage"),
        ("+grid=smoke_2x2 --config-dir /no/such/folder", "is no folder"),
        (
            "+grid=smoke_2x2 grid.cells={product:{prompt_weight:[nan],response_weight:[1]}}",
            "prompt_weight=nan",
        ),
        ("+grid=smoke_2x2 grid.cells={product:{prompt_weight:[0],response_weight:[0,1]}}", "(0, 0)"),
        ("plan", "add +grid=NAME"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(words, answer):
    assert answer in refusal(*words.split(" "))


def test_axes_from_the_command_line_in_both_spellings():
    first = composed("+grid=smoke_2x2", AXIS)
    second = composed("+grid=smoke_2x2", "grid.axes.train.learning_rate=[1e-3,3e-3]")
    assert first.cells == second.cells
    assert {config.train.learning_rate for config in first.configs} == {1e-3, 3e-3}


def test_parts_of_a_grid_from_the_command_line():
    wider = composed("+grid=smoke_2x2", "grid.cells.product.prompt_weight=[0,0.5,1]")
    assert len(wider.cells) == 5
    only = composed("+grid=wit_5x5", "grid.cells.only=[{prompt_weight: 0.25, seed: [0, 1]}]")
    assert len(only.cells) == 10
    assert (
        len(composed("+grid=wit_5x5", "grid.cells.only=[{response_weight: 1}]", "grid.seeds=[0]").cells) == 5
    )


def test_the_analysis_composes_the_same_cells():
    analysis = compose_sweep(parse_arguments(["+grid=smoke_2x2"]), config_name="analysis")
    assert analysis.configs == composed("+grid=smoke_2x2").configs
    assert set(analysis.extras) == {"analysis"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("statos", "did you mean status?"),
        ("action=plann", "did you mean plan?"),
        ("wit_5x5", "say +grid=wit_5x5"),
        ("--confg", "did you mean --config-dir?"),
        ("--multirun", "say +grid=NAME"),
        ("why", "why has no run"),
        ("+grid=a +grid=b", "two questions"),
        ("grid=", "names no grid"),
        ("plan extra", "unexpected word extra"),
        ("yes=maybe", "true or false"),
        ("--config-dir", "has no folder"),
    ],
)
def test_bad_words(words, answer):
    with pytest.raises(UserError) as caught:
        parse_arguments(words.split(" "))
    assert answer in str(caught.value)


def test_words():
    parsed = parse_arguments(
        shlex.split("+grid=x why p0.5 -f model=local 'model.path=/a b' yes=true --config-dir c")
    )
    assert (parsed.action, parsed.run, parsed.follow, parsed.yes) == ("why", "p0.5", True, True)
    assert parsed.overrides == ("+grid=x", "model=local", "model.path=/a b")
    assert parsed.config_dirs == ("c",)
    assert parse_arguments(["+grid=x"]).action == "run"
    assert parse_arguments(["action=logs", "run=r1", "grid=x"]).run == "r1"
    assert parse_arguments(["--help"]).help


def test_arguments_are_compose_errors_only_once_composed():
    with pytest.raises(ComposeError):
        composed("+grid=smoke_2x2", "train.epochs=x")


def test_composing_from_another_folder(monkeypatch, tmp_path):
    expected = composed("+grid=smoke_2x2").configs
    monkeypatch.chdir(tmp_path)
    assert compose_sweep(parse_arguments(["+grid=smoke_2x2"])).configs == expected
    assert not Path("outputs").exists()
