"""Benchmarks' core without lm-eval: one bounded generation, kept outputs, honest averages, protocols with names."""

import dataclasses
import json

import numpy
import pytest
import torch
from tiny import tiny_model

from train.benchmarks.aggregates import aggregate_scores, check_aggregates
from train.benchmarks.columns import Columns, as_number, output_values
from train.benchmarks.config import benchmark_configs, evaluation_fingerprint, protocols
from train.benchmarks.evaluation import Stopped, evaluate_benchmarks, read_result
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.interface import Choice, Output, Request
from train.benchmarks.prompts import PromptEncoder
from train.config import EvalConfig, ModelConfig, build
from train.errors import ConfigError
from train.items import Items, Score, read_items
from train.metrics import MEASURES
from train.model import load_model
from train.tokenizer import load_tokenizer

EMBEDDED = ModelConfig(name="embedded", source="embedded")


@pytest.fixture(scope="module")
def backend() -> HFBackend:
    tokenizer = load_tokenizer(EMBEDDED)
    model = load_model(EMBEDDED, torch.device("cpu"))
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    return HFBackend(model, tokenizer, torch.device("cpu"), encoder, context_length=256, batch_tokens=2048)


def test_outputs_do_not_depend_on_their_neighbours(backend):
    asked = [
        Request(
            f"k{index}",
            prompt=f"the {word} is",
            max_new_tokens=4 + 4 * (index % 2),
            stop=("a",) * (index % 3),
        )
        for index, word in enumerate(["wolf", "red brick in the barn", "frog", "lake", "old coal", "x"])
    ]
    together = backend.generate(asked)
    assert together == [backend.generate([one])[0] for one in asked]
    assert together == backend.generate(asked[::-1])[::-1]


def test_a_generation_that_never_stops_is_bounded(backend):
    (output,) = backend.generate([Request("k", prompt="the wolf " * 400, max_new_tokens=10**9)])
    assert output.num_tokens <= 128
    assert output.is_cut


def test_a_stop_string_ends_the_text_before_it(backend):
    (free,) = backend.generate([Request("k", prompt="the wolf", max_new_tokens=12)])
    stop = free.text.split()[1]
    (output,) = backend.generate([Request("k", prompt="the wolf", max_new_tokens=12, stop=(stop,))])
    assert output.text == free.text[: free.text.index(stop)]
    assert not output.is_truncated
    assert output.num_tokens < free.num_tokens


def test_sampling_is_seeded_row_by_row(backend):
    asked = [Request(f"k{i}", prompt="the wolf", max_new_tokens=6, temperature=0.9, seed=i) for i in range(5)]
    outputs = backend.generate(asked)
    assert outputs[3] == backend.generate([asked[3]])[0]
    assert len({output.text for output in outputs}) > 1


def test_sampling_follows_the_model():
    """Of 4,000 first tokens each is drawn as often as its probability says, within four standard errors."""

    class Ids:
        eos_token_id = pad_token_id = 2

        def decode(self, tokens, **_):
            return " ".join(map(str, tokens))

        def encode(self, request):
            return [5, 6, 7]

    model = tiny_model()
    tiny = HFBackend(model, Ids(), torch.device("cpu"), Ids(), context_length=64)
    count = 4000
    asked = [Request(str(i), max_new_tokens=1, temperature=0.7, seed=i) for i in range(count)]
    drawn = [int(output.text or 2) for output in tiny.generate(asked)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1]
    shares = torch.softmax(logits / 0.7, -1).numpy()
    error = numpy.sqrt(shares * (1 - shares) / count)
    assert (numpy.abs(numpy.bincount(drawn, minlength=61) / count - shares) < 4 * error + 1e-9).all()


def test_likelihoods_are_the_models_own(backend):
    choices = [
        Choice("the wolf lives in the", " forest"),
        Choice("the wolf lives in the", " lake of coal"),
        Choice("the frog ", "and the hat"),
    ]
    for choice, found in zip(choices, backend.likelihoods(choices), strict=True):
        context, continuation = backend.encoder.encode_pair(choice.context, choice.continuation)
        with torch.no_grad():
            logits = backend.model(input_ids=torch.tensor([context + continuation])).logits[0]
        log_p = torch.log_softmax(logits.float(), -1)[len(context) - 1 : -1]
        expected = log_p.gather(1, torch.tensor(continuation)[:, None]).sum()
        assert found.log_probability == pytest.approx(float(expected), abs=1e-4)
        assert found.is_greedy == bool((log_p.argmax(-1) == torch.tensor(continuation)).all())


def test_a_template_ends_where_the_answer_begins(backend):
    turns = (("user", "where does the wolf live?"),)
    ids = backend.encoder.encode(Request("k", messages=turns))
    assert backend.tokenizer.decode(ids, skip_special_tokens=True) == "where does the wolf live?"
    longer = (*turns, ("assistant", "forest"), ("user", f"and{backend.tokenizer.eos_token} the frog?"))
    ids = backend.encoder.encode(Request("k", messages=longer))
    assert ids.count(backend.tokenizer.eos_token_id) == 1, "only the first answer's own end"


class Quiz:
    """Two rounds: a word for each of five prompts, then the same prompt with that word."""

    name, protocol, num_scored = "quiz", "p" * 32, 0

    def requests(self, outputs):
        first = [Request(f"1/{i}", prompt=f"the {w}", max_new_tokens=3) for i, w in enumerate("abcde")]
        if not outputs:
            return first
        return [
            Request(f"2/{one.key}", prompt=f"{one.prompt} {outputs[one.key].text}", max_new_tokens=3)
            for one in first
        ]

    def score(self, outputs, backend):
        type(self).num_scored += 1
        assert len(outputs) == 10
        return Items(
            benchmark="quiz",
            protocol=self.protocol,
            metrics={"accuracy": MEASURES["accuracy"]},
            item_ids=tuple(f"i{i}" for i in range(5)),
            clusters=tuple(f"i{i}" for i in range(5)),
            splits=("validation", "validation", "test", "test", "test"),
            values={"accuracy": numpy.array([1.0, 0, 1, 1, 0])},
        )


@pytest.fixture
def quiz(monkeypatch):
    import train.benchmarks.evaluation as evaluation

    module = type("module", (), {"make_benchmark": staticmethod(lambda name, config, context: Quiz())})
    monkeypatch.setattr(evaluation, "import_module", lambda name: module)
    Quiz.num_scored = 0
    return build(EvalConfig, {"benchmarks": {"quiz": {"kind": "lm_eval", "tasks": ["x"]}}}, "eval.")


def measure(config, folder, make_backend, **settings):
    return evaluate_benchmarks(
        config,
        {"quiz": Quiz.protocol},
        make_backend,
        run_folder=folder,
        parameters_sha256="sha",
        cache_folder=None,
        **settings,
    )


def test_an_evaluation_is_resumed_and_done_once(tmp_path, backend, quiz, monkeypatch):
    import train.benchmarks.asking as asking

    monkeypatch.setattr(asking, "_SLAB", 2)
    calls = []

    class Counting:
        def generate(self, requests):
            calls.append(len(requests))
            return backend.generate(requests)

    looks = iter([False, False, True])
    with pytest.raises(Stopped):
        measure(quiz, tmp_path, Counting, should_stop=lambda: next(looks))
    assert calls == [2, 2]
    path = tmp_path / "evaluations" / "outputs.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # as a kill may leave it
    found = measure(quiz, tmp_path, Counting)
    assert sum(calls) == 4 + 10 - 3
    again = measure(quiz, tmp_path, lambda: pytest.fail("nothing is left to generate"))
    assert (again.metrics, again.details) == (found.metrics, found.details)
    assert (found.num_reused, again.num_reused, Quiz.num_scored) == (0, 1, 1)
    assert found.metrics["validation_quiz.accuracy"] == 0.5
    assert found.metrics["all_quiz.accuracy"] == pytest.approx(0.6)
    assert found.details["all_quiz.accuracy"]["num_items"] == 5
    assert len(read_items(tmp_path / "evaluations" / Quiz.protocol, "quiz")) == 5
    assert read_result(tmp_path / "evaluations", "quiz", Quiz.protocol, "other weights") is None


def test_outputs_of_other_weights_are_not_believed(tmp_path, backend, quiz):
    measure(quiz, tmp_path, lambda: backend)
    path = tmp_path / "evaluations" / "outputs.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({"version": 1, "parameters_sha256": "else"}), *lines[1:]]) + "\n")
    (tmp_path / "evaluations" / Quiz.protocol / "result.json").unlink()
    calls = []

    class Counting:
        def generate(self, requests):
            calls.append(len(requests))
            return backend.generate(requests)

    measure(quiz, tmp_path, Counting)
    assert sum(calls) == 10


def test_an_average_is_over_all_its_terms_or_absent():
    terms = check_aggregates(
        {"outer": ["five.mean", "1-wmt.translation_edit_rate"], "five": ["a.accuracy", "b.rating/10"]},
        ["a", "b", "wmt"],
    )
    scores = {
        "a.accuracy": Score(0.5, 0.03, 10, 10),
        "b.rating": Score(7.0, 0.4, 20, 10),
        "wmt.translation_edit_rate": Score(0.8, 0.1, 5, 5),
    }
    found = aggregate_scores(terms, scores)
    assert found["five.mean"].mean == pytest.approx((0.5 + 0.7) / 2)
    assert found["five.mean"].standard_error == pytest.approx(0.05 / 2)
    assert found["outer.mean"].mean == pytest.approx((0.6 + 0.2) / 2)
    assert aggregate_scores(terms, {name: scores[name] for name in ("a.accuracy", "b.rating")}).keys() == {
        "five.mean"
    }


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"x": ["wmt.translation_edit_rate"]}, "say 1-wmt.translation_edit_rate"),
        ({"x": ["1-a.accuracy"]}, "say a.accuracy"),
        ({"x": ["a.rating"]}, "say a.rating/10"),
        ({"x": ["a.mean_output_tokens"]}, "shares only"),
        ({"x": ["b.accuracy"]}, "of no benchmark"),
        ({"x": ["a.acuracy"]}, "did you mean accuracy"),
        ({"x": ["y.mean"], "y": ["x.mean"]}, "made of each other"),
    ],
)
def test_unlike_things_are_not_averaged_silently(terms, said):
    with pytest.raises(ConfigError, match=said):
        check_aggregates(terms, ["a", "wmt"])


def configured(**changes):
    values = {"benchmarks": {"ifeval": {"kind": "lm_eval", "tasks": ["ifeval"]}}, **changes}
    return build(EvalConfig, values, "eval.")


def test_a_protocol_has_a_name_that_follows_its_settings():
    name = protocols(configured(), {})["ifeval"]
    assert name == protocols(configured(batch_tokens=7, data="/elsewhere"), {})["ifeval"]
    others = [
        protocols(configured(limit=10), {}),
        protocols(configured(add_bos=False), {}),
        protocols(configured(half_seed=1), {}),
        protocols(configured(), {"ifeval": "sha"}),
        protocols(
            dataclasses.replace(configured(), benchmarks={"ifeval": {"kind": "lm_eval", "tasks": ["x"]}}), {}
        ),
    ]
    assert len({name, *(other["ifeval"] for other in others)}) == 6
    one = evaluation_fingerprint("run", {"ifeval": name}, {})
    assert one != evaluation_fingerprint("other", {"ifeval": name}, {})
    assert one != evaluation_fingerprint("run", {"ifeval": name}, {"five": ["ifeval.prompt_strict"]})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quiz": {"kind": "lm_evil", "tasks": ["x"]}}, "did you mean lm_eval"),
        ({"quiz": {"kind": "lm_eval"}}, "tasks"),
        (
            {"quiz": {"kind": "lm_eval", "tasks": ["x"], "metrics": {"acuracy": "acc,none"}}},
            "did you mean accuracy",
        ),
        ({"quiz": {"kind": "lm_eval", "tasks": ["x"], "limt": 3}}, "did you mean eval.benchmarks.quiz.limit"),
        ({"Quiz 1": {"kind": "lm_eval", "tasks": ["x"]}}, "lower-case"),
    ],
)
def test_a_mistake_in_a_benchmark_is_one_line(values, said):
    with pytest.raises(ConfigError, match=said) as caught:
        benchmark_configs(values)
    assert "\n" not in str(caught.value)


def test_columns_know_what_is_absent_and_what_weighs():
    columns = Columns()
    columns.add("a", "t", {"accuracy": None}, 1.0, {})
    columns.add("b", "t", {"accuracy": 1, "f1": 0.5}, 1.0, {})
    numpy.testing.assert_array_equal(columns.column("accuracy"), [numpy.nan, 1])
    numpy.testing.assert_array_equal(columns.column("f1"), [numpy.nan, 0.5])
    assert not columns.is_weighted("accuracy")
    columns.add("c", "t", {"accuracy": [True, False, False]}, 1.0, {})
    assert columns.is_weighted("accuracy")
    assert as_number("instruction_strict", [True, False]) == (0.5, 2.0)
    with pytest.raises(ConfigError, match="no mean over its items"):
        as_number("f1", ("a", "b"))


def test_an_empty_output_is_seen():
    signs = output_values([Output("  \n", 2, True), Output("x", 4, False)])
    assert signs["empty_output_rate"] == 0.5
    assert signs["mean_output_tokens"] == 3
    assert output_values([]) == {}
