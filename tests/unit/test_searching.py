"""A search grows its plan by what is written down: bounded, seeded, resumable, and asked once."""

import dataclasses
import math
from pathlib import Path

import pytest
from planning import composed, fake_identities, refusal
from toys import finished

from analysis.search.questions import question_from_dict
from sweep.asking import Asker
from sweep.candidates import pilot, van_der_corput, weights_at
from sweep.controller import take_controller_lock
from sweep.errors import GridError, LedgerError, SearchError
from sweep.folder import SweepFolder
from sweep.ledger import Ledger
from sweep.plan import make_plan, plan_from_dict, plan_to_dict
from sweep.proposals import read_batches
from sweep.searching import Search, spaces_of
from sweep.spec import Status
from train.files import read_json

WIT = ("+grid=wit_5x5", "search=tpe", "grid.scale_checks=0")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda number: None)
    fake_identities(monkeypatch)


class Searched:
    """A sweep under `root` that a search extends; its runs are recorded instead of trained."""

    def __init__(self, root: Path, *words: str, ask=None):
        sweep = composed(*(words or WIT))
        self.ledger, self.folder = Ledger(root), SweepFolder(root, sweep.config.name)
        self.questions = []
        self.answer = ask or self.first_candidates
        self.search = Search(
            sweep, lambda one: make_plan(one, cache_folder=None), self.folder, self.ledger, self.ask
        )

    def ask(self, question):
        self.questions.append(question)
        return self.answer(question)

    def first_candidates(self, question):
        chosen = question["candidates"][: question["wanted"]]
        found = [{"weights": weights, "settings": {}, "expected": 0.5} for weights in chosen]
        return {"proposals": found, "is_known": False, "why": ""}

    def train(self, number=None):
        """Record the plan's runs; how many were open."""
        states = self.states()
        names = [name for name, state in states.items() if state.status is Status.PLANNED][:number]
        for name in names:
            spec = self.search.plan.spec(name)
            claim = self.ledger.claim(name)
            claim.commit(finished(spec, metrics={"validation_exact_answer": 0.5}))
        return len(names)

    def states(self):
        return self.ledger.statuses(spec.fingerprint for spec in self.search.plan.runs)

    def extend(self, num_workers=2):
        return self.search.extend(self.states(), num_workers)

    @property
    def asked(self):
        return [(cell.prompt_weight, cell.response_weight, cell.seed) for cell in self.search._cells]


def test_the_pilot_is_both_baselines_and_the_widest_angles():
    (space,) = spaces_of(composed(*WIT))
    assert len(space.candidates) == 13
    assert space.num_runs == 39
    cells = pilot(space, composed(*WIT).config.search)
    trained = list(dict.fromkeys(_canonical(cell) for cell in cells))
    assert trained[:2] == [(0.0, 1.0), (1.0, 1.0)]
    assert len(trained) == 5
    assert {cell.seed for cell in cells} == {0}
    # every cell of the grid that the runs answer is asked: the plane stays on the grid's axes
    assert [(cell.prompt_weight, cell.response_weight) for cell in cells[:4]] == [
        (0.0, 0.25),
        (0.0, 0.5),
        (0.0, 0.75),
        (0.0, 1.0),
    ]


def _canonical(cell):
    largest = max(cell.prompt_weight, cell.response_weight)
    return cell.prompt_weight / largest, cell.response_weight / largest


def test_a_ratio_becomes_weights_on_the_edge():
    assert weights_at(0) == (0.0, 1.0)
    assert weights_at(0.12345678) == (0.1235, 1.0)
    assert weights_at(4) == (1.0, 0.25)
    assert weights_at(math.inf) == (1.0, 0.0)
    assert [van_der_corput(index) for index in range(5)] == [0, 0.5, 0.25, 0.75, 0.125]


def test_a_search_asks_for_what_is_free_and_no_more(tmp_path):
    it = Searched(tmp_path)
    assert len(it.search.plan.runs) == 6  # five of the pilot and the base model
    assert not it.extend(num_workers=2), "five runs wait already"
    it.train(4)  # the base model and three of the pilot
    assert it.extend(num_workers=2)
    assert [question["wanted"] for question in it.questions] == [1], (
        "two workers and one ahead, less two open"
    )
    (question,) = it.questions
    assert len(question["told"]) == 3
    assert len(question["pending"]) == 2
    assert question["told"][0]["metrics"] == {"validation_exact_answer": 0.5}
    assert not it.extend(num_workers=2), "the new run waits"


def test_a_repeated_proposal_gets_a_fresh_seed(tmp_path):
    it = Searched(tmp_path)
    for _ in range(4):
        it.train()
        it.extend(num_workers=1)
    seeds = {seed for prompt, response, seed in it.asked if (prompt, response) == (0.0, 1.0)}
    assert seeds >= {0, 1, 2, 3}, "the grid's three seeds, then the next number"


def test_the_budget_ends_the_search(tmp_path):
    it = Searched(tmp_path, *WIT, "search.max_runs=7")
    for _ in range(5):
        it.train()
        it.extend(num_workers=4)
    assert len({planned.fingerprint for planned in it.search.plan.cells}) == 7
    assert it.search.is_over
    assert "the budget of 7 runs is spent" in it.search.lines()[0]


def test_a_known_region_ends_it_and_stays_known(tmp_path):
    it = Searched(tmp_path, ask=lambda question: {"proposals": [], "is_known": True, "why": "it is known"})
    it.train()
    it.extend()
    assert it.search.is_over
    again = Searched(tmp_path)
    assert again.search.is_over
    assert "it is known" in again.search.lines()[0]
    assert not Searched(tmp_path, *WIT, "search.confidence=0.99").search.is_over, "asked for more"


def test_the_same_line_continues_where_the_files_are(tmp_path):
    it = Searched(tmp_path)
    it.train()
    it.extend()
    again = Searched(tmp_path)
    assert again.search.plan == it.search.plan
    assert again.search.question == it.search.question
    assert plan_from_dict(plan_to_dict(again.search.plan)) == again.search.plan


def test_of_two_who_ask_at_once_one_is_believed(tmp_path):
    first, second = Searched(tmp_path), Searched(tmp_path)
    first.train()

    def slow(question):
        first.extend()  # the other process asks, and writes, while this one waits for its answer
        return {
            "proposals": [{"weights": question["candidates"][3], "settings": {}}],
            "is_known": False,
            "why": "",
        }

    second.answer = slow
    second.extend()
    assert len(read_batches(first.folder.path)) == 1
    assert second.search.plan == first.search.plan


def test_a_longer_plan_is_the_same_question_and_keeps_its_report(tmp_path):
    it = Searched(tmp_path)
    it.folder.write_plan(it.search.plan)
    (it.folder.path / "report").mkdir()
    it.train()
    it.extend()
    assert it.folder.write_plan(it.search.plan)
    assert (it.folder.path / "report").is_dir()
    assert not (it.folder.path / "previous").exists()
    assert read_json(it.folder.plan_path)["question"] == it.search.question


def test_another_question_under_the_name_sees_none_of_it(tmp_path):
    it = Searched(tmp_path)
    it.train()
    it.extend()
    other = Searched(tmp_path, *WIT, "train.learning_rate=3e-3")
    assert other.search.question != it.search.question
    assert len(other.search.plan.runs) == 6


def test_exhaustive_asks_for_the_grid_and_what_was_proposed(tmp_path):
    words = (*WIT, "search.ranges={ratio: [0, 0.5]}")
    it = Searched(tmp_path, *words, ask=lambda question: _at(0.123))
    it.train()
    it.extend(num_workers=1)
    assert (0.123, 1.0, 0) in it.asked
    whole = Searched(tmp_path, *words, "search.exhaustive=true")
    fingerprints = {planned.fingerprint for planned in whole.search.plan.cells}
    assert fingerprints > {planned.fingerprint for planned in it.search.plan.cells}
    assert len(fingerprints) == 39 + 1 + 3, "two of the pilot, (0, 1) and (0.5, 1), are the grid's"
    assert not whole.extend()


def _at(ratio):
    return {"proposals": [{"weights": weights_at(ratio), "settings": {}}], "is_known": False, "why": ""}


def test_other_axes_are_cells_like_any_other(tmp_path):
    words = (*WIT, "search.ranges={train.learning_rate: [1e-4, 1e-2], train.batch_size: [4, 16]}")
    it = Searched(tmp_path, *words)
    rates = [dict(cell.settings)["train.learning_rate"] for cell in it.search._cells]
    assert 0.001 in rates
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert all(isinstance(dict(cell.settings)["train.batch_size"], int) for cell in it.search._cells)
    assert len(it.search.plan.runs) == 6, "one untrained model for all of them"
    assert len(it.search.lines()) == 1, "one plane is searched"
    configs = {spec.config.train.learning_rate for spec in it.search.plan.runs if spec.config.stage == "sft"}
    assert configs == set(rates)


def test_planes_share_what_is_free(tmp_path):
    it = Searched(tmp_path, *WIT, "grid.models=[embedded,llama_3_2_1b]", "search.at_once=4", "search.ahead=0")
    it.train()
    it.extend(num_workers=4)
    assert [question["wanted"] for question in it.questions] == [2, 2]


def test_a_range_in_other_units_than_the_ledgers_is_refused(tmp_path):
    it = Searched(tmp_path, *WIT, "search.ranges={train.learning_rate: [1e-4, 1e-2]}", ask=_in_rate)
    it.train()
    it.extend()
    with pytest.raises(LedgerError, match=r"ledger has train\.learning_rate from 0\.0001 to 0\.01"):
        Searched(tmp_path, *WIT, "search.ranges={train.learning_rate: [0.1, 10]}")


def _in_rate(question):
    found = {"weights": [0.0, 1.0], "settings": {"train.learning_rate": 0.002}}
    return {"proposals": [found], "is_known": False, "why": ""}


def test_an_unreadable_proposal_is_named(tmp_path):
    it = Searched(tmp_path)
    (it.folder.path / "proposals").mkdir(parents=True)
    (it.folder.path / "proposals" / "0001.json").write_text("{")
    with pytest.raises(LedgerError, match=r"0001\.json can't be read"):
        Searched(tmp_path)


def test_two_stages_are_refused(tmp_path):
    with pytest.raises(GridError, match="expected one stage"):
        Searched(tmp_path, *WIT, "grid.stages=[sft,dpo]")


def test_an_axis_of_the_grid_is_not_searched_as_well(tmp_path):
    words = (
        "grid.axes={train.learning_rate: [1e-3, 3e-3]}",
        "search.ranges={train.learning_rate: [1e-4, 1e-2]}",
    )
    with pytest.raises(GridError, match=r"train\.learning_rate is an axis of the grid and in search\.ranges"):
        Searched(tmp_path, *WIT, *words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("search=foo",), "unknown search foo; expected one of adaptive, gp, none, tpe"),
        (
            ("search.kind=foo",),
            "search.kind='foo' has the wrong type; expected one of none, adaptive, gp, tpe",
        ),
        (("search.max_runs=3",), "search.max_runs=3 is below the pilot design of 5 runs"),
        (("search.ranges={ratio: [2, 0]}",), "search.ranges.ratio=[2, 0] is reversed or empty"),
        (("search.ranges={ratio: [-1, 1]}",), "expected ratios of at least 0"),
        (("search.ranges={ratio: 3}",), "expected two numbers, the lower one first"),
        (("search.ranges={train.learning_rat: [0, 1]}",), "did you mean train.learning_rate?"),
        (("search.ranges={train.learning_rate: [a, b]}",), "expected two numbers"),
        (("search=none", "search.ranges={ratio: [0, 1]}"), "search.ranges with search=none"),
        (
            ("search=adaptive", "search.ranges={train.learning_rate: [1e-4, 1e-2]}"),
            "search=adaptive over train.learning_rate; expected the two weights",
        ),
        (
            ("search=adaptive", "search.rungs=[0.5]"),
            "search=adaptive with search.rungs; expected runs that are measured at the same step",
        ),
        (("search.rungs=[0.5,0.25]",), "expected rising shares of a run between 0 and 1"),
        (("search.confidence=1",), "expected a probability from 0.5 to below 1"),
        (("search.epsilon=0",), "expected a loss above 0"),
        (("search.metrics=[a,b,c]",), "expected one metric, or two"),
    ],
)
def test_mistakes_are_one_line(words, problem):
    assert problem in refusal("+grid=smoke_2x2", "search=tpe", *words)


def test_a_search_process_that_dies_says_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr("sweep.asking.sys.executable", "/bin/false")
    with pytest.raises(SearchError, match="the search ended without an answer; it said: nothing"):
        Asker(tmp_path / "search.log")({})


def test_workers_wait_while_a_living_controller_searches(tmp_path):
    folder = SweepFolder(tmp_path, "wit")
    assert not folder.awaits_proposals()
    lock = take_controller_lock(folder)
    folder.set_searching(True)
    assert folder.awaits_proposals()
    owner = read_json(folder.lock_path)
    folder.lock_path.write_text(
        str({**owner, "process_start": "another life"}).replace("'", '"').replace("None", "null")
    )
    assert not folder.awaits_proposals(), "its controller was killed"
    folder.set_searching(False)
    lock.close()


def test_the_question_is_plain_values(tmp_path):
    it = Searched(tmp_path, *WIT, "search.ranges={ratio: [0, inf]}")
    it.train()
    (space,) = it.search.spaces
    question = it.search.question_of(space, it.states(), 1)
    assert question["search"]["ranges"] == [
        {"axis": "ratio", "low": 0.0, "high": None, "is_whole": False, "is_log": False}
    ]
    read = question_from_dict(question)
    assert read.ranges == it.search.config.ranges
    assert len(read.told) == 5
    assert dataclasses.asdict(read)["kind"] == "tpe"
