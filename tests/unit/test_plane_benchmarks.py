"""Runs of one base asked together: texts, likelihoods, items and files as of each run asked alone."""

import json

import numpy
import pytest
import torch

import train.benchmarks.evaluation as evaluation
from train.benchmarks import plane_backend
from train.benchmarks.asking import Stopped
from train.benchmarks.evaluation import MeasuredRun, evaluate_benchmarks, evaluate_together
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Request
from train.benchmarks.plane_backend import PlaneBackend
from train.benchmarks.prompts import PromptEncoder
from train.compose import compose_run
from train.config import EvalConfig, ModelConfig, build
from train.items import Items, read_items
from train.metrics import MEASURES
from train.model import add_adapters, load_model, trainable_parameters
from train.stacked import evaluating
from train.stacked.evaluating import fill
from train.tokenizer import load_tokenizer

CPU = torch.device("cpu")
EMBEDDED = ModelConfig(name="embedded", source="embedded")
WORDS = ("wolf", "red brick in the barn", "frog", "lake", "old coal")
SHOTS = "the hen is red. the cow is in the barn. where is it? in the barn. "


class Quiz:
    """A conversation of two rounds, a sampled text, one with a stop string; and choices behind shared examples."""

    def __init__(self, name):
        self.name, self.protocol = name, name[0] * 32

    def requests(self, outputs):
        first = [Request(f"1/{i}", prompt=f"the {w}", max_new_tokens=5) for i, w in enumerate(WORDS)]
        if not outputs:
            return [
                *first,
                Request("s", prompt=f"the {self.name}", max_new_tokens=5, temperature=0.8, seed=3),
                Request("t", prompt="the wolf and the hen", max_new_tokens=7, stop=("e", ".")),
            ]
        return [
            Request(f"2/{one.key}", prompt=f"{one.prompt} {outputs[one.key].text}", max_new_tokens=3)
            for one in first
        ]

    def score(self, outputs, backend):
        choices = [
            Choice(f"{SHOTS}the {word} lives in", end) for word in WORDS for end in (" the lake", " coal")
        ]
        found = backend.likelihoods(choices)
        with torch.no_grad():
            logits = backend.model(input_ids=torch.tensor([[5, 6, 7]])).logits
        values = {
            "accuracy": [one.log_probability for one in found],
            "mean_output_tokens": [
                float(logits[0, -1, n]) + outputs[f"2/1/{n % 5}"].num_tokens for n in range(10)
            ],
        }
        ids = tuple(f"i{n}" for n in range(10))
        return Items(
            benchmark=self.name,
            protocol=self.protocol,
            metrics={name: MEASURES[name] for name in values},
            item_ids=ids,
            clusters=ids,
            splits=("validation", "test") * 5,
            values={name: numpy.array(column) for name, column in values.items()},
            outputs=tuple(outputs[key].text for key in list(outputs)[:10]),
        )


@pytest.fixture(scope="module")
def cells():
    """A backend of an adapted model, and four runs' adapters; the last does nothing."""
    recipe = compose_run(
        ["objective.prompt_weight=1", "objective.response_weight=1", "seed=0", "train=lora"]
    ).train
    model = add_adapters(load_model(EMBEDDED, CPU), recipe, 0).eval()
    tokenizer = load_tokenizer(EMBEDDED)
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    backend = HFBackend(model, tokenizer, CPU, encoder, context_length=256, batch_tokens=2048)
    torch.manual_seed(1)
    fresh = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    noisy = [
        {name: value + 0.05 * torch.randn_like(value) for name, value in fresh.items()} for _ in range(3)
    ]
    return backend, [*noisy, fresh]


@pytest.fixture
def config(monkeypatch):
    module = type("module", (), {"make_benchmark": staticmethod(lambda name, config, context: Quiz(name))})
    monkeypatch.setattr(evaluation, "import_module", lambda name: module)
    asked = {name: {"kind": "lm_eval", "tasks": ["x"]} for name in ("animals", "birds")}
    return build(EvalConfig, {"benchmarks": asked}, "eval.")


PROTOCOLS = {"animals": "a" * 32, "birds": "b" * 32}


def alone(cells, config, folder, n):
    def make():
        fill(trainable_parameters(cells[0].model), cells[1][n])
        return cells[0]

    return evaluate_benchmarks(
        config, PROTOCOLS, make, run_folder=folder, parameters_sha256=f"sha {n}", cache_folder=None
    )


def together(cells, config, folders, **settings):
    backend, all_cells = cells
    made = []

    def make(missing):
        made.append(list(missing))
        return PlaneBackend(backend, [all_cells[n] for n in missing]), missing

    runs = [MeasuredRun(folder, f"sha {n}") for n, folder in enumerate(folders)]
    found = {}
    evaluate_together(config, PROTOCOLS, make, runs, cache_folder=None, ended=found.__setitem__, **settings)
    return [found[n] for n in range(len(folders))], made


def texts(folder):
    lines = [json.loads(line) for line in (folder / "evaluations/outputs.jsonl").read_text().splitlines()]
    return {line["name"]: line for line in lines[1:]}, lines[0]


def compare(folder, other):
    assert texts(folder) == texts(other)
    for name, protocol in PROTOCOLS.items():
        mine, theirs = (read_items(one / "evaluations" / protocol, name) for one in (folder, other))
        assert (mine.item_ids, mine.splits, mine.outputs) == (theirs.item_ids, theirs.splits, theirs.outputs)
        for column in theirs.values:
            numpy.testing.assert_allclose(mine.values[column], theirs.values[column], rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("reads_together", [False, True])
def test_runs_asked_together_answer_as_alone(tmp_path, cells, config, monkeypatch, reads_together):
    if reads_together:
        monkeypatch.setitem(evaluating._TOKENS_OF_A_PASS, "cpu", 10**6)
    folders = [tmp_path / f"together {n}" for n in range(4)]
    found, made = together(cells, config, folders)
    assert made == [[0, 1, 2, 3]]
    for n, folder in enumerate(folders):
        known = alone(cells, config, tmp_path / f"alone {n}", n)
        compare(folder, tmp_path / f"alone {n}")
        assert found[n].metrics == pytest.approx(known.metrics, abs=5e-6)
        assert {name: one["protocol"] for name, one in found[n].details.items()} == {
            name: one["protocol"] for name, one in known.details.items()
        }
    assert len({tuple(sorted(line["text"] for line in texts(folder)[0].values())) for folder in folders}) == 4


def test_what_is_done_stays_and_the_rest_is_asked_of_those_that_miss_it(tmp_path, cells, config):
    folders = [tmp_path / str(n) for n in range(3)]
    alone(cells, config, folders[1], 1)
    looks = iter([False, True])
    with pytest.raises(Stopped):
        together(cells, config, folders, should_stop=lambda: next(looks, True))
    path = folders[0] / "evaluations/outputs.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:4]))  # lost some
    found, made = together(cells, config, folders)
    assert made == [[0, 2]]
    assert [one.num_reused for one in found] == [0, 2, 0]
    again, made = together(cells, config, folders)
    assert made == []
    assert [one.metrics for one in again] == [one.metrics for one in found]
    for n in (0, 2):
        alone(cells, config, tmp_path / f"alone {n}", n)
        compare(folders[n], tmp_path / f"alone {n}")


def test_a_model_that_cannot_be_stacked_is_asked_for_one_run_after_another(
    tmp_path, cells, config, monkeypatch
):
    def refuse(*_):
        raise AssertionError("stacked")

    monkeypatch.setattr(evaluating, "stacked", refuse)
    backend = PlaneBackend(cells[0], cells[1][:2], may_stack=False)
    runs = [MeasuredRun(tmp_path / f"together {n}", f"sha {n}") for n in range(2)]
    ended = {}
    evaluate_together(
        config,
        PROTOCOLS,
        lambda missing: (backend, missing),
        runs,
        cache_folder=None,
        ended=ended.__setitem__,
    )
    assert sorted(ended) == [0, 1]
    for n in range(2):
        alone(cells, config, tmp_path / f"alone {n}", n)
        compare(tmp_path / f"together {n}", tmp_path / f"alone {n}")


def test_runs_that_broke_disturb_nobody(cells):
    broken = {name: torch.full_like(value, float("nan")) for name, value in cells[1][0].items()}
    requests = [Request(str(i), prompt=f"the {word}", max_new_tokens=5) for i, word in enumerate(WORDS)]
    with_it = PlaneBackend(cells[0], [cells[1][0], broken, cells[1][1]])
    without = PlaneBackend(cells[0], [cells[1][0], cells[1][1]])
    found = with_it.generate([0, 1, 2], [[one] * 3 for one in requests])
    known = without.generate([0, 1], [[one] * 2 for one in requests])
    assert [[row[0], row[2]] for row in found] == known
    assert plane_backend.CellBackend(without, 1).generate(requests) == [row[1] for row in known]
