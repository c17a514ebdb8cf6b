"""Robustness to held-out wordings: questions nobody trained on, and one number however it is measured."""

import dataclasses
import hashlib
import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from test_decoding import PROMPTS, an_end, known
from test_reading import model_of

from train.benchmarks.config import evaluation_fingerprint
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.identity import asked_protocols
from train.benchmarks.prompts import PromptEncoder
from train.benchmarks.run import evaluate_run
from train.benchmarks.wordings import make_benchmark
from train.compose import compose_run
from train.config import config_to_dict
from train.embedded.intents import make_intents
from train.embedded.tasks import FAMILIES, split_of_prompt
from train.embedded.wordings import WORDINGS
from train.errors import ModelError
from train.files import write_json_atomic
from train.items import read_items, score
from train.kept import has_weights, remove_weights
from train.metrics import metric
from train.model import load_model
from train.record import record_to_dict
from train.run import Workbench, run
from train.sensitivity import sets as sets_at_once
from train.sensitivity.scoring import score_answers_one_by_one
from train.sensitivity.sets import score_answers_of_sets
from train.tokenizer import load_tokenizer

GOLDEN = "cf8a2a30"
IDENTITIES = {"model_identity": "model", "dataset_identity": "dataset"}
HALVES = ("validation", "test")
PSI = "prompt_sensitivity"


def config_of(*more):
    words = ["objective.prompt_weight=0.5", "objective.response_weight=1", "seed=0", "train.max_steps=3"]
    words += [f"dataset.num_{split}_rows=8" for split in ("train", "validation", "test", "robustness")]
    return compose_run([*words, "keep=all", *more])


def test_a_question_belongs_to_the_half_of_its_first_wording_and_never_to_training():
    intents = make_intents(0, 36)
    assert make_intents(0, 5) == intents[:5]
    for half in HALVES:
        assert {one.family for one in intents if one.half == half} == set(FAMILIES)
    for one in intents:
        assert split_of_prompt(one.prompts[0], is_held_out=False) == one.half
        assert len(one.prompts) == 1 + len(WORDINGS[one.family].held_out)
    assert len({one.prompts[0] for one in intents}) == 36
    text = json.dumps([dataclasses.astuple(one) for one in intents])
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == GOLDEN, "other questions: raise GENERATOR_VERSION"


def test_all_sets_at_once_score_as_one_by_one():
    config = config_of()
    model, tokenizer = load_model(config.model, torch.device("cpu")).eval(), load_tokenizer(config.model)
    sets = [[tokenizer(text)["input_ids"] for text in one.prompts] for one in make_intents(1, 8)]
    how = {"end_id": tokenizer.eos_token_id, "pad_id": 0, "device": torch.device("cpu"), "max_new_tokens": 6}
    together = score_answers_of_sets(model, sets, **how)
    assert len({len(answer) for each in together for answer in each.answers}) > 1
    for wordings, found in zip(sets, together, strict=True):
        alone = score_answers_one_by_one(model, wordings, **how)
        assert found.answers == alone.answers
        np.testing.assert_allclose(found.log_probability_NN, alone.log_probability_NN, atol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GPTNeoX", "Mistral", "Gemma2"])
@pytest.mark.parametrize("at_once", [256, 4])
def test_all_sets_at_once_score_as_one_by_one_whatever_is_kept_of_a_wording(name, at_once, monkeypatch):
    monkeypatch.setattr(sets_at_once, "_WORDINGS_AT_ONCE", at_once)
    monkeypatch.setattr(sets_at_once, "_PADDED_TOKENS", 50)
    model: Any = model_of(name)
    end = an_end(known(model, PROMPTS, 12))
    model.generation_config.repetition_penalty = 1.5  # of what is generated, not of what is scored
    sets = [PROMPTS[start : start + 3] for start in range(0, 12, 3)]
    how: Any = {"end_id": end, "pad_id": 0, "device": torch.device("cpu"), "max_new_tokens": 12}
    together = score_answers_of_sets(model, sets, **how)
    lengths = set()
    for wordings, found in zip(sets, together, strict=True):
        alone = score_answers_one_by_one(model, wordings, **how)
        assert found.answers == alone.answers
        np.testing.assert_allclose(found.log_probability_NN, alone.log_probability_NN, atol=5e-4)
        lengths |= {len(answer) for answer in found.answers}
    assert len(lengths) > 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_finished_run_is_measured_as_it_was_right_after_training(tmp_path, method):
    config = config_of(f"train.method={method}", "train.learning_rate=1e-2")
    workbench = Workbench(None)
    settings = {"attempt": 1, "workbench": workbench, "should_stop": lambda: False}
    settings["on_progress"] = lambda step, steps: None
    record = run(config, run_id="r", fingerprint="f", folder=tmp_path / "run", **settings, **IDENTITIES)
    write_json_atomic(tmp_path / "run" / "record.json", record_to_dict(record))
    items = read_items(tmp_path / "run" / "items", "wordings")
    for half in HALVES:
        name = f"{half}_wordings.{PSI}"
        found = score(items, PSI, half)
        assert (metric(name).unit, metric(name).better) == ("nats/token", "lower")
        assert record.metrics[name] == found.mean > 0
        about = record.measured[name]
        assert (about["num_items"], about["standard_error"]) == (18, found.standard_error)
    asked = dataclasses.replace(config.eval, benchmarks={"wordings": {"kind": "wordings"}})
    measured = evaluate_run(
        dataclasses.replace(config, eval=asked, stage="evaluate"),
        run_id="e",
        fingerprint=evaluation_fingerprint("f", asked_protocols(asked, None), {}),
        folder=tmp_path,
        model_identity="model",
        parent_folder=tmp_path / "run",
        **settings,
    )
    assert measured.metrics == {name: record.metrics[name] for name in measured.metrics}
    assert len(measured.metrics) == 9
    assert measured.measured == record.measured, "the same protocol and items: they may stand in one table"
    if method == "lora":
        assert_trained_again(tmp_path, config, asked, measured, settings)
    untouched = run(
        dataclasses.replace(config, stage="base", keep="none"),
        run_id="b",
        fingerprint="b",
        folder=tmp_path / "base",
        **settings,
        **IDENTITIES,
    )
    assert untouched.metrics[f"test_wordings.{PSI}"] != record.metrics[f"test_wordings.{PSI}"]


def assert_trained_again(tmp_path, config, asked, measured, settings):
    """Without weights it is one line; with eval.retrain the same scores, and no weights left behind."""
    run_folder = tmp_path / "run"
    remove_weights(run_folder)
    shutil.rmtree(run_folder / "evaluations")
    spec = {"run_id": "r", "fingerprint": "f", "config": config_to_dict(config), **IDENTITIES}
    write_json_atomic(run_folder / "spec.json", spec)

    def evaluated(retrain):
        eval_config = dataclasses.replace(asked, retrain=retrain)
        return evaluate_run(
            dataclasses.replace(config, eval=eval_config, stage="evaluate"),
            run_id="e",
            fingerprint=evaluation_fingerprint("f", asked_protocols(asked, None), {}),
            folder=tmp_path,
            model_identity="model",
            parent_folder=run_folder,
            **settings,
        )

    with pytest.raises(ModelError, match=r"kept no weights .*add eval\.retrain=true"):
        evaluated(False)
    assert evaluated(True).metrics == measured.metrics
    assert not has_weights(run_folder)


def test_a_model_without_position_ids_is_scored_one_by_one(capsys):
    config = config_of()
    model, tokenizer = load_model(config.model, torch.device("cpu")).eval(), load_tokenizer(config.model)

    class Plain(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return model(input_ids=input_ids, use_cache=use_cache)

    asked = dataclasses.replace(config.eval, benchmarks={"wordings": {"kind": "wordings", "limit": 2}})
    benchmark = make_benchmark_of(asked)
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    found = [
        benchmark.score({}, HFBackend(one, tokenizer, torch.device("cpu"), encoder, context_length=None))
        for one in (model, Plain())
    ]
    np.testing.assert_allclose(found[0].values[PSI], found[1].values[PSI], atol=1e-4)
    assert "one by one" in capsys.readouterr().out


def make_benchmark_of(asked):
    from train.benchmarks.config import benchmark_configs
    from train.benchmarks.interface import Context

    config = benchmark_configs(asked.benchmarks)["wordings"]
    return make_benchmark("wordings", config, Context(eval=asked, protocol="p", cache_folder=None))
