"""Runs of a plane end in the records they have alone, whatever becomes of their company."""

import dataclasses
import json

import pytest
from test_loop import events, without_speed
from test_run import config_of as config_of_run
from test_run import run_of

from train.fingerprint import fingerprint as fingerprint_of
from train.identity import dataset_identity, model_identity
from train.loop import Interrupted
from train.plane import Member, run_plane
from train.record import RunRecord, record_from_dict, record_to_dict
from train.run import Workbench
from train.stacked.choice import Choice

CELLS = [(0.0, 1.0), (0.5, 1.0), (1.0, 0.0), (1.0, 1.0)]
STEPS = 5
TINY = (
    "dataset.num_train_rows=40",
    "dataset.num_validation_rows=8",
    "dataset.num_test_rows=8",
    "dataset.num_robustness_rows=0",
    "eval.generate=false",
)
SCIENCE = (
    "outcome",
    "metrics",
    "measured",
    "counts",
    "final_train_loss",
    "num_steps",
    "parameters_sha256",
    "stage",
)


def config_of(*cell_and_overrides):
    return config_of_run(*cell_and_overrides[:2], *TINY, *cell_and_overrides[2:])


@pytest.fixture(scope="module")
def workbench(tmp_path_factory):
    return Workbench(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def alone(workbench, tmp_path_factory):
    """What each cell is by itself, and where."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        cell: run_of(config_of(*cell), folder / str(index), workbench) for index, cell in enumerate(CELLS)
    }, folder


class Plane:
    """Cells as members, and what becomes of each: a record, or an exception."""

    def __init__(self, folder, workbench, *overrides, cells=CELLS):
        self.folder, self.workbench, self.found, self.stopping = folder, workbench, {}, False
        self.steps = dict.fromkeys(cells, 0)
        self.leaving: set = set()
        self.configs = {cell: config_of(*cell, *overrides) for cell in cells}
        first = next(iter(self.configs.values()))
        self.identities = {
            "model_identity": model_identity(first.model, cache_folder=None),
            "dataset_identity": dataset_identity(first.dataset, cache_folder=None),
        }

    def member(self, cell):
        def told(step, num_steps):
            self.steps[cell] = step
            self.on_step(cell, step)

        return Member(
            config=self.configs[cell],
            run_id=f"p{cell}",
            fingerprint=fingerprint_of(self.configs[cell], **self.identities),
            folder=self.folder / str(list(self.configs).index(cell)),
            attempt=1,
            should_stop=lambda: cell in self.leaving,
            on_progress=told,
        )

    def on_step(self, cell, step):
        """A test may want something to happen then."""

    def train(self, size=4, cells=None, micro_batch_tokens=0):
        members = {self.member(cell).run_id: cell for cell in cells or self.configs}

        def ended(member, what):
            assert members[member.run_id] not in self.found, "told twice"
            self.found[members[member.run_id]] = what

        run_plane(
            [self.member(cell) for cell in cells or self.configs],
            Choice(size, "a test", micro_batch_tokens=micro_batch_tokens),
            workbench=self.workbench,
            should_stop=lambda: self.stopping,
            ended=ended,
            **self.identities,
        )
        return self.found


def science(record):
    assert isinstance(record, RunRecord), record
    return {name: getattr(record, name) for name in SCIENCE}


def test_every_record_is_that_of_the_run_alone(tmp_path, workbench, alone):
    records, folder = alone
    found = Plane(tmp_path, workbench).train()
    for index, cell in enumerate(CELLS):
        assert science(found[cell]) == science(records[cell]), cell
        mine, theirs = tmp_path / str(index), folder / str(index)
        assert [without_speed(event) for event in events(mine)] == [
            without_speed(event) for event in events(theirs)
        ]
        for item in (theirs / "items").iterdir():
            assert (mine / "items" / item.name).read_bytes() == item.read_bytes()
        assert record_from_dict(json.loads(json.dumps(record_to_dict(found[cell])))) == found[cell]
    ways = {cell: found[cell].environment["plane"]["runs"] for cell in CELLS}
    assert ways == {(0, 1): 3, (0.5, 1): 3, (1, 1): 3, (1, 0): 1}, "prompt-only rows end earlier"
    assert found[0, 1].environment["plane"]["why"] == "a test"
    assert found[0, 1].environment.keys() >= records[0, 1].environment.keys()
    assert found[0, 1].training_s == found[1, 1].training_s, "even shares of the stack's time"


def test_a_stack_has_at_most_so_many_runs(tmp_path, workbench, alone):
    found = Plane(tmp_path, workbench).train(size=2)
    assert [found[cell].environment["plane"]["runs"] for cell in CELLS] == [2, 2, 1, 1]
    assert {cell: science(record) for cell, record in found.items()} == {
        cell: science(record) for cell, record in alone[0].items()
    }


def test_a_plane_that_is_stopped_goes_on_from_its_checkpoints(tmp_path, workbench, alone):
    cells = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    plane = Plane(tmp_path, workbench, cells=cells)
    plane.on_step = lambda cell, step: setattr(plane, "stopping", step == 3)
    with pytest.raises(Interrupted, match=f"stopped after step 3 of {STEPS}"):
        plane.train()
    assert plane.found == {}
    again = Plane(tmp_path, workbench, cells=cells)
    first_steps = []
    again.on_step = lambda cell, step: first_steps.append(step)
    again.train()
    assert min(first_steps) == 4
    for cell in cells:
        assert science(again.found[cell]) == science(alone[0][cell])


def test_runs_that_stand_elsewhere_are_not_set_back(tmp_path, workbench, alone):
    cells = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    plane = Plane(tmp_path, workbench, cells=cells)
    plane.on_step = lambda cell, step: setattr(plane, "stopping", step == 3)
    with pytest.raises(Interrupted):
        plane.train(cells=cells[:2])
    again = Plane(tmp_path, workbench, cells=cells)
    steps = []
    again.on_step = lambda cell, step: steps.append((cell, step))
    again.train()
    assert min(step for cell, step in steps if cell != cells[2]) == 4
    assert {cell: again.found[cell].environment["plane"]["runs"] for cell in cells} == {
        cells[0]: 2,
        cells[1]: 2,
        cells[2]: 1,
    }
    for cell in cells:
        assert science(again.found[cell]) == science(alone[0][cell])


def test_a_run_that_is_called_away_leaves_saved_and_the_others_go_on(tmp_path, workbench, alone):
    cells = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    plane = Plane(tmp_path, workbench, cells=cells)
    when = []

    def call_away(cell, step):
        if step == 3:
            plane.leaving.add(cells[1])
        if cell == cells[0] and cells[1] in plane.found and not when:
            when.append(step)

    plane.on_step = call_away
    plane.train()
    assert isinstance(plane.found[cells[1]], Interrupted)
    assert str(plane.found[cells[1]]) == f"stopped after step 3 of {STEPS}"
    assert when == [4], "it is told at once, not at the stack's end"
    assert len(events(tmp_path / "1")) == 3
    for cell in (cells[0], cells[2]):
        assert science(plane.found[cell]) == science(alone[0][cell])
    again = Plane(tmp_path, workbench, cells=cells).train(cells=[cells[1]])
    assert science(again[cells[1]]) == science(alone[0][cells[1]])


def test_a_run_whose_loss_is_no_number_fails_alone(tmp_path, workbench, alone, monkeypatch):
    from train.stacked.step import StackedStepper

    real_step = StackedStepper.step

    def poisoned(self, step, steps):
        if step == 2:
            for view in self.stack.cells[1].values():
                view.data.view(-1)[0] = float("nan")
        return real_step(self, step, steps)

    monkeypatch.setattr(StackedStepper, "step", poisoned)
    cells = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    found = Plane(tmp_path, workbench, cells=cells).train()
    assert found[cells[1]].outcome == "failed"
    assert found[cells[1]].failure.kind == "nan_loss"
    assert found[cells[1]].metrics == {}
    for cell in (cells[0], cells[2]):
        assert science(found[cell]) == science(alone[0][cell])


@pytest.mark.parametrize(
    ("error", "words", "ways"),
    [
        (MemoryError(), "4 together did not fit in memory: 2 and 2 one after another", {2}),
        (RuntimeError("odd"), "each run alone: a stack of them broke (RuntimeError: odd)", {1}),
    ],
)
def test_what_a_stack_cannot_do_is_done_with_less(
    tmp_path, workbench, alone, monkeypatch, capsys, error, words, ways
):
    import train.cells as module

    real = module.train_stacked

    def limited(model, split, runs, **how):
        if len(runs) > 2:
            raise error
        return real(model, split, runs, **how)

    monkeypatch.setattr(module, "train_stacked", limited)
    cells = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.5)]
    found = Plane(tmp_path, workbench, cells=cells).train()
    assert words in capsys.readouterr().out.splitlines()
    assert {record.environment["plane"]["runs"] for record in found.values()} == ways
    for cell in cells[:3]:
        assert science(found[cell]) == science(alone[0][cell])


def test_a_full_disk_is_the_machines_fault_and_not_the_stacks(tmp_path, workbench, monkeypatch):
    import train.cells as module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "train_stacked", full)
    plane = Plane(tmp_path, workbench)
    with pytest.raises(OSError, match="No space left"):
        plane.train()
    assert plane.found == {}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
def test_what_cannot_be_stacked_is_trained_alone_and_says_why(tmp_path, workbench, capsys):
    cells = [(0.0, 1.0), (1.0, 1.0)]
    plane = Plane(tmp_path, workbench, "train=lora", "train.lora_targets=lm_head", cells=cells)
    plane.train()
    why = "lm_head is among the LoRA targets"
    assert f"each run alone: {why}" in capsys.readouterr().out
    for record in plane.found.values():
        assert record.environment["plane"] == {"runs": 1, "why": why}


def test_a_weight_for_tokens_that_are_not_there_is_that_runs_mistake(tmp_path, workbench, alone):
    from train.errors import TemplateError

    cells = [(0.0, 1.0), (1.0, 1.0), (0.5, 1.0)]
    plane = Plane(tmp_path, workbench, cells=cells)
    wrong = plane.configs[cells[1]]
    plane.configs[cells[1]] = dataclasses.replace(
        wrong, objective=dataclasses.replace(wrong.objective, template_weight=1.0)
    )
    found = plane.train()
    assert isinstance(found[cells[1]], TemplateError)
    assert science(found[cells[0]]) == science(alone[0][cells[0]])
