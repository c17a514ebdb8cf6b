"""AlpacaEval, MT-Bench and POSIX on a real small checkpoint, judged by a real server on loopback."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from judge_server import Judge, judge_server

from train.benchmarks.evaluation import evaluate_benchmarks
from train.benchmarks.identity import asked_protocols, check_benchmarks
from train.config import EvalConfig
from train.errors import ConfigError, DataError
from train.items import read_items
from train.judges.config import JudgeConfig
from train.judges.endpoint import JudgeError


@pytest.fixture(scope="module")
def checkpoint(shared_data):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "stories260k" / "hf"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr("train.judges.endpoint._LONGEST_WAIT_SECONDS", 0.01)
    server = Judge()
    with judge_server(server) as url:
        server.url = url
        yield server


def protocol(shared_data, judge, **changes):
    benchmarks = {
        "alpaca_eval": {
            "kind": "alpaca_eval",
            "path": str(shared_data / "alpaca_eval"),
            "limit": 6,
            "max_new_tokens": 12,
        },
        "mt_bench": {
            "kind": "mt_bench",
            "path": str(shared_data / "mt_bench"),
            "limit": 4,
            "max_new_tokens": 12,
        },
        "posix": {
            "kind": "posix",
            "path": str(shared_data / "prosa_prompt_variants"),
            "prompts": "alpaca_eval_v1.json",
            "paraphrases": ["alpaca_eval_v2.json", "alpaca_eval_v3.json"],
            "num_variants": 6,
            "max_new_tokens": 6,
            "limit": 4,
        },
    }
    config = EvalConfig(
        benchmarks=benchmarks,
        aggregates={"chat": ("alpaca_eval.win_rate", "mt_bench.rating/10")},
        judge=JudgeConfig(model="local", base_url=judge.url, key_variable=None),
    )
    return dataclasses.replace(config, **changes)


def evaluate(config, folder, checkpoint):
    from train.benchmarks.hf_backend import HFBackend
    from train.benchmarks.prompts import PromptEncoder

    model, tokenizer = checkpoint
    backends = []

    def make_backend():
        encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=config.add_bos)
        backends.append(HFBackend(model, tokenizer, torch.device("cpu"), encoder, context_length=512))
        return backends[-1]

    measured = evaluate_benchmarks(
        config,
        asked_protocols(config, None),
        make_backend,
        run_folder=folder / "run",
        parameters_sha256="0" * 64,
        cache_folder=folder / "cache",
    )
    return measured, len(backends)


def test_three_benchmarks_in_one_evaluation_and_nothing_twice(tmp_path, shared_data, checkpoint, judge):
    config = protocol(shared_data, judge)
    measured, num_backends = evaluate(config, tmp_path, checkpoint)
    metrics = measured.metrics
    assert 0 <= metrics["all_alpaca_eval.win_rate"] <= 1
    assert 0 <= metrics["all_alpaca_eval.length_controlled_win_rate"] <= 1
    assert metrics["all_alpaca_eval.position_consistency"] == 1  # this judge has no liking for a position
    assert 1 <= metrics["all_mt_bench.rating"] <= 10
    assert metrics["all_mt_bench.unjudged_rate"] == 0
    assert metrics["all_posix.prompt_sensitivity"] > 0
    mean = (metrics["all_alpaca_eval.win_rate"] + metrics["all_mt_bench.rating"] / 10) / 2
    assert metrics["all_chat.mean"] == pytest.approx(mean)
    details = measured.details
    assert details["all_mt_bench.rating"]["num_items"] == 8
    assert details["all_mt_bench.rating"]["num_clusters"] == 4
    protocols = asked_protocols(config, None)
    items = read_items(tmp_path / "run" / "evaluations" / protocols["mt_bench"], "mt_bench")
    assert {items.splits[n] == items.splits[n + 1] for n in range(0, 8, 2)} == {True}
    first, second = items.values["first_turn_rating"], items.values["second_turn_rating"]
    assert np.isfinite(first).tolist() == [True, False] * 4 == (~np.isfinite(second)).tolist()
    asked = len(judge.requests)
    assert asked == 6 * 2 + 4 * 2
    again, more_backends = evaluate(config, tmp_path, checkpoint)
    assert again.metrics == metrics
    assert (len(judge.requests), num_backends, more_backends) == (asked, 1, 0)


def test_the_second_turn_is_asked_with_the_models_own_first_answer(tmp_path, shared_data, checkpoint, judge):
    evaluate(protocol(shared_data, judge), tmp_path, checkpoint)
    asked = [body["messages"][-1]["content"] for body in judge.requests]
    both = [text for text in asked if "### User:" in text and "Assistant A:" in text]
    lines = (tmp_path / "run" / "evaluations" / "outputs.jsonl").read_text().splitlines()[1:]
    written = [json.loads(line)["text"] for line in lines]
    assert len(both) == 4
    assert all(sum(text in each for text in written if text) >= 2 for each in both)


def test_another_judge_generates_nothing_again(tmp_path, shared_data, checkpoint, judge):
    config = protocol(shared_data, judge)
    evaluate(config, tmp_path, checkpoint)
    lines = (tmp_path / "run" / "evaluations" / "outputs.jsonl").read_text()
    other = dataclasses.replace(config, judge=dataclasses.replace(config.judge, model="another"))
    before, after = asked_protocols(config, None), asked_protocols(other, None)
    assert {name for name in before if before[name] != after[name]} == {"alpaca_eval", "mt_bench"}
    elsewhere = dataclasses.replace(config.judge, concurrency=1, timeout_seconds=9.0)
    assert asked_protocols(dataclasses.replace(config, judge=elsewhere), None) == before
    evaluate(other, tmp_path, checkpoint)
    assert (tmp_path / "run" / "evaluations" / "outputs.jsonl").read_text() == lines
    assert len(judge.requests) == 40


def test_a_judge_that_breaks_loses_no_answer_and_no_verdict(tmp_path, shared_data, checkpoint, judge):
    judge.faults = lambda number, text: (500, "overloaded", {}) if number >= 12 else None
    config = protocol(shared_data, judge)
    config = dataclasses.replace(config, judge=dataclasses.replace(config.judge, max_attempts=2))
    with pytest.raises(JudgeError, match="overloaded"):
        evaluate(config, tmp_path, checkpoint)
    lines = (tmp_path / "run" / "evaluations" / "outputs.jsonl").read_text()
    judge.faults = lambda number, text: None
    judge.requests.clear()
    measured, _ = evaluate(config, tmp_path, checkpoint)
    assert (tmp_path / "run" / "evaluations" / "outputs.jsonl").read_text() == lines
    assert len(judge.requests) == 8  # AlpacaEval's twelve were kept
    assert measured.num_reused == 1


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path, shared_data, judge, monkeypatch):
    config = protocol(shared_data, judge)
    check_benchmarks(config)
    with pytest.raises(ConfigError, match=r"needs a judge.*eval\.judge\.model=NAME"):
        check_benchmarks(dataclasses.replace(config, judge=JudgeConfig()))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        check_benchmarks(dataclasses.replace(config, judge=JudgeConfig(model="gpt-4o-mini")))

    def asked(name, **changes):
        changed = {name: {**config.benchmarks[name], **changes}}
        return asked_protocols(dataclasses.replace(config, benchmarks=changed, aggregates={}), None)

    with pytest.raises(DataError, match=r"AlpacaEval: .*nowhere has no eval_set\.json or alpaca_eval\.json"):
        asked("alpaca_eval", path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="version=3"):
        asked("alpaca_eval", version=3)
    before = asked("alpaca_eval")
    copy = shutil.copytree(shared_data / "alpaca_eval", tmp_path / "copy", copy_function=shutil.copyfile)
    assert asked("alpaca_eval", path=str(copy)) == before  # content, not place
    rows = json.loads((copy / "eval_set.json").read_text())
    (copy / "eval_set.json").write_text(json.dumps(rows[:10] + rows[:1]))
    assert asked("alpaca_eval", path=str(copy)) != before


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        ("eval_set.json", lambda rows: rows[:3] + rows[:1], "instruction .* stands twice"),
        ("eval_set.json", lambda rows: [{"prompt": "x"}], r"row 1 has no text instruction \(it has prompt\)"),
        ("reference_gpt4_1106_preview.json", lambda rows: rows[1:], "has no answer to 'What are the names"),
    ],
)
def test_files_of_the_wrong_shape_are_one_line(
    tmp_path, shared_data, checkpoint, judge, name, break_it, message
):
    copy = shutil.copytree(shared_data / "alpaca_eval", tmp_path / "copy", copy_function=shutil.copyfile)
    (copy / name).write_text(json.dumps(break_it(json.loads((copy / name).read_text()))))
    config = protocol(shared_data, judge)
    changed = {"alpaca_eval": {**config.benchmarks["alpaca_eval"], "path": str(copy)}}
    with pytest.raises(DataError, match=message):
        evaluate(dataclasses.replace(config, benchmarks=changed, aggregates={}), tmp_path, checkpoint)
    assert judge.requests == []
