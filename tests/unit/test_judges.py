"""The judge client against a real HTTP server: verdicts, order, cache, limits, and every way an endpoint fails."""

import json
import socket
import time

import pytest
from judge_server import Judge, judge_server

from train.errors import ConfigError, DataError
from train.judges import alpaca_eval, mt_bench
from train.judges.config import JudgeConfig
from train.judges.endpoint import Endpoint, JudgeError, Question, Reply
from train.judges.panel import estimate, judge

PAIRS = [
    alpaca_eval.Pair(f"instruction {n}", "one two three", " ".join(f"word{m}" for m in range(n)))
    for n in range(6)
]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A judge, and an endpoint of it with settings."""
    monkeypatch.setattr("train.judges.endpoint._LONGEST_WAIT_SECONDS", 0.01)
    server = Judge()
    with judge_server(server) as url:
        made = []

        def endpoint(**settings):
            settings = {"model": "local", "key_variable": None, "base_url": url} | settings
            made.append(Endpoint(JudgeConfig(**settings), tmp_path / "judgements"))
            return made[-1]

        yield server, endpoint
        for each in made:
            each.close()


def prefer(endpoint, pairs=PAIRS):
    result = judge(endpoint, alpaca_eval.questions(pairs), alpaca_eval.read_preference)
    return alpaca_eval.preferences(result.verdicts), result


def test_both_orders_are_averaged_so_that_a_liking_for_a_position_cancels(bench):
    server, endpoint = bench
    calm = [preference.mean for preference in prefer(endpoint())[0]]
    assert calm[3] == pytest.approx(0.5)
    assert calm[0] < calm[3] < calm[5]
    server.position_bias = 0.5
    biased = prefer(endpoint(temperature=0.5))[0]  # other sampling, so other questions
    for before, now in zip(calm, biased, strict=True):
        assert now.shown_first > now.shown_second
        assert now.mean == pytest.approx(before, abs=0.02)
    assert not biased[3].is_consistent
    assert biased[0].is_consistent


def test_a_question_is_paid_once(bench):
    server, endpoint = bench
    first = prefer(endpoint())[1]
    asked = len(server.requests)
    again = prefer(endpoint())[1]
    assert (asked, len(server.requests)) == (12, 12)
    assert (first.num_cached, again.num_cached) == (0, 12)
    assert first.verdicts == again.verdicts
    prefer(endpoint(model="another"))
    assert len(server.requests) == 24


def test_a_judge_without_logprobs_is_read_by_its_word(bench):
    server, endpoint = bench
    server.has_logprobs = False
    assert [preference.mean for preference in prefer(endpoint())[0]] == [0, 0, 0, 0.5, 1, 1]


def test_prose_is_counted_and_never_a_tie(bench):
    server, endpoint = bench
    server.prose = lambda text: "I like both." if "instruction 4" in text else None
    preferences, result = prefer(endpoint(max_failed_share=0.5))
    assert preferences[4] is None
    assert sum(preference is None for preference in preferences) == 1
    assert (result.num_unparsable, result.failures.total()) == (2, 0)
    with pytest.raises(
        JudgeError, match=r"2 of 12 judgements of local are missing: no verdict in 'I like both\.'"
    ):
        prefer(endpoint())


def test_logprobs_without_either_answer_are_no_verdict():
    assert alpaca_eval.read_preference(Reply("m", {"The": -0.1, "I": -3.0})) is None
    assert alpaca_eval.read_preference(Reply("M", {"M": -0.1, "I": -3.0})) == 1.0
    assert alpaca_eval.read_preference(Reply(" 'm'.")) == 0.0
    assert alpaca_eval.read_preference(Reply("mm")) is None


@pytest.mark.parametrize(
    "fault",
    [
        (429, "slow down", {"retry-after": "0"}),
        (500, "oops", {}),
        (200, "not json", {}),
        (200, "{}", {}),
        (200, "[]", {}),
    ],
    ids=["429", "500", "no json", "empty object", "a list"],
)
def test_a_busy_or_broken_endpoint_is_asked_again(bench, fault):
    server, endpoint = bench
    server.faults = lambda number, text: fault if number % 2 == 0 else None
    preferences, result = prefer(endpoint(concurrency=1))
    assert None not in preferences
    assert result.failures.total() == 0
    assert len(server.requests) == 24


def test_an_endpoint_that_stays_broken_is_one_line_and_replies_are_kept(bench):
    server, endpoint = bench
    server.faults = lambda number, text: (500, "out of memory", {}) if "instruction 5" in text else None
    with pytest.raises(
        JudgeError, match="2 of 12 judgements of local are missing: HTTP 500: out of memory, 3 times"
    ):
        prefer(endpoint(concurrency=1, max_attempts=3))
    server.faults = lambda number, text: None
    assert prefer(endpoint())[1].num_cached == 10


def test_a_refused_question_is_not_asked_again(bench):
    server, endpoint = bench
    server.faults = lambda number, text: (400, "context too long", {}) if "instruction 5" in text else None
    result = prefer(endpoint(max_failed_share=0.5))[1]
    assert result.failures == {"HTTP 400: context too long": 2}
    assert len(server.requests) == 12


def test_a_wrong_key_stops_at_once(bench, monkeypatch):
    server, endpoint = bench
    monkeypatch.setenv("MY_KEY", "sk-something-secret")
    server.faults = lambda number, text: (401, "invalid key sk-something-secret", {})
    with pytest.raises(JudgeError, match=r"refuses the key \(HTTP 401.*a valid key in MY_KEY") as error:
        prefer(endpoint(key_variable="MY_KEY", concurrency=1))
    assert "something-secret" not in str(error.value)
    assert len(server.requests) == 1
    assert server.keys == {"Bearer sk-something-secret"}


def test_an_unknown_model_is_named(bench):
    server, endpoint = bench
    server.faults = lambda number, text: (404, "model 'local' not found", {})
    with pytest.raises(JudgeError, match="knows no model local"):
        prefer(endpoint())


def test_no_key_names_the_variable(bench, monkeypatch):
    _, endpoint = bench
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="SOME_KEY is not set"):
        prefer(endpoint(key_variable="SOME_KEY"))


def test_nobody_there_is_one_line(bench):
    _, endpoint = bench
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JudgeError, match=r"can't be reached.*Connection refused.*2 times"):
        prefer(endpoint(base_url=f"http://127.0.0.1:{port}/v1", max_attempts=2))
    with pytest.raises(JudgeError, match=r"is no address|can't be reached"):
        prefer(endpoint(base_url="nonsense", max_attempts=1))


def test_a_stalled_endpoint_times_out(bench):
    server, endpoint = bench
    server.delay_seconds = 0.5
    with pytest.raises(JudgeError, match=r"can't be reached.*ReadTimeout"):
        prefer(endpoint(timeout_seconds=0.05, max_attempts=1))


def test_at_most_so_many_at_once_and_a_minute(bench):
    server, endpoint = bench
    server.delay_seconds = 0.01
    prefer(endpoint(concurrency=3))
    assert 1 < server.most_at_once <= 3
    before = len(server.starts)
    started = time.monotonic()
    prefer(endpoint(model="slow", concurrency=8, requests_per_minute=60 / 0.02))
    assert (
        server.starts[-1] - started >= 11 * 0.02
    )  # a rate is a lower bound on time, whatever the machine does
    assert len(server.starts) - before == 12


def test_the_cost_is_estimated_capped_and_counted(bench):
    server, endpoint = bench
    prices = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 2e6}
    priced = endpoint(**prices)
    asked = alpaca_eval.questions(PAIRS)
    before = estimate(priced, asked)
    assert before.num_questions == 12
    assert before.cost == pytest.approx(sum(q.num_characters / 4 + 2 for q in asked))
    with pytest.raises(ConfigError, match=r"above eval\.judge\.max_cost=1"):
        prefer(endpoint(**prices, max_cost=1.0))
    with pytest.raises(ConfigError, match="without prices"):
        prefer(endpoint(max_cost=1.0))
    assert server.requests == []
    spent = prefer(priced)[1].cost
    assert spent == pytest.approx(sum(len(q["messages"][-1]["content"]) // 4 + 2 for q in server.requests))
    assert estimate(priced, asked).cost == 0
    assert prefer(priced)[1].cost == 0


def dialogues():
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["Write {answer_2}.", "Rewrite."]},
        {"question_id": 111, "category": "math", "turns": ["2+2?", "Times 3?"]},
    ]
    return mt_bench.make_dialogues(rows, [{"question_id": 111, "choices": [{"turns": ["4", "12"]}]}])


def test_mt_bench_grades_both_turns_with_references_where_there_are_some(bench, shared_data):
    _, endpoint = bench
    lines = (shared_data / "mt_bench" / "judge_prompts.jsonl").read_text().splitlines()
    prompts = mt_bench.make_prompts([json.loads(line) for line in lines])
    asked = mt_bench.questions(dialogues(), [("a poem", "better"), ("5", "15")], prompts, 2048)
    assert len(asked) == 4
    assert "Write {answer_2}." in asked[0].messages[1][1]  # a brace in a question is no placeholder
    assert "better" not in asked[0].messages[1][1]
    assert "better" in asked[1].messages[1][1]
    assert "### Reference answer:\n12" in asked[3].messages[1][1]
    grades = judge(endpoint(), asked, mt_bench.read_grade).verdicts
    assert all(grade is not None and 1 <= grade <= 10 for grade in grades)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Rating: [[5]]", 5.0),
        ("[[7.5]] of [[10]]", 7.5),
        ("Rating: [8]", 8.0),
        ("8 of 10", None),
        ("[[11]]", None),
        ("[[0]]", None),
    ],
)
def test_ratings(text, grade):
    assert mt_bench.read_grade(Reply(text)) == grade


def test_mt_bench_files_of_the_wrong_shape_are_refused(shared_data):
    row = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
    with pytest.raises(DataError, match="question 1 has no question_id or not 2 turns"):
        mt_bench.make_dialogues([row | {"turns": ["a"]}], [])
    with pytest.raises(DataError, match="question 1 stands twice"):
        mt_bench.make_dialogues([row, row], [])
    with pytest.raises(DataError, match=r"1 \(math\) has no reference answer"):
        mt_bench.make_dialogues([row | {"category": "math"}], [])
    with pytest.raises(DataError, match="lacks single-v1, "):
        mt_bench.make_prompts([])
    folder = shared_data / "mt_bench"
    questions = [json.loads(line) for line in (folder / "question.jsonl").read_text().splitlines()]
    references = [
        json.loads(line) for line in (folder / "reference_answer" / "gpt-4.jsonl").read_text().splitlines()
    ]
    real = mt_bench.make_dialogues(questions, references)
    assert (len(real), sum(bool(each.references) for each in real)) == (80, 30)
    assert {each.category for each in real} == set(mt_bench.TEMPERATURES)


def test_a_question_kept_half_written_is_asked_again(bench, tmp_path):
    server, endpoint = bench
    question = Question((("user", "[[hello]]"),), 5)
    endpoint().ask(question)
    (kept,) = (tmp_path / "judgements").glob("*/*.json")
    kept.write_text('{"text"')
    assert not endpoint().ask(question).is_cached
    assert len(server.requests) == 2
