"""The parts of preference tuning that need no trainer: log-probabilities, and what is refused."""

import sys

import pytest
import torch
from planning import run_config
from tiny import VOCABULARY, tiny_model

from train.dpo import _metrics, answer_log_probs
from train.errors import ConfigError
from train.preferences import TokenPair

CPU = torch.device("cpu")


def some_pairs(number=9):
    generator = torch.Generator().manual_seed(0)

    def ids(most):
        size = int(torch.randint(1, most, (1,), generator=generator))
        return torch.randint(3, VOCABULARY, (size,), generator=generator).tolist()

    return [TokenPair(ids(12), ids(9), ids(20)) for _ in range(number)]


def test_log_probabilities_equal_a_loop_in_double_precision(monkeypatch):
    monkeypatch.setattr("train.dpo._PADDED_TOKENS", 64)  # several batches
    pairs, model = some_pairs(), tiny_model()
    found_2N = answer_log_probs(model, pairs, CPU)
    precise = tiny_model().double()
    for index, pair in enumerate(pairs):
        for side, answer in enumerate((pair.chosen_ids, pair.rejected_ids)):
            ids = torch.tensor([pair.prompt_ids + answer])
            log_probs = torch.log_softmax(precise(input_ids=ids).logits[0].detach(), dim=-1)
            wanted = sum(
                log_probs[place - 1, token]
                for place, token in enumerate(ids[0].tolist())
                if place >= len(pair.prompt_ids)
            )
            assert abs(float(found_2N[side, index]) - float(wanted)) < 1e-5 * abs(float(wanted))


def test_a_model_that_did_not_move_has_no_rewards():
    pairs, model = some_pairs(), tiny_model()
    before = answer_log_probs(model, pairs, CPU)
    metrics = _metrics(model, pairs, before, 0.1, CPU)
    assert metrics["validation_reward_margin"] == 0.0
    assert metrics["validation_preference_accuracy"] == metrics["validation_parent_preference_accuracy"]
    assert 0 < metrics["validation_preference_accuracy"] < 1
    assert _metrics(model, [], None, 0.1, CPU) == {}, "without a pair a metric is absent, never 0"


def test_a_missing_library_is_one_line(monkeypatch, tmp_path):
    from train.dpo import _make_trainer

    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match="needs a library that is missing: trl"):
        _make_trainer(
            tiny_model(), [], torch.zeros(2, 0), None, run_config(stage="dpo"), 1, CPU, str(tmp_path)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"beta": 0},
        {"learning_rate": 0},
        {"batch_size": 0},
        {"warmup_ratio": 2},
        {"max_steps": 0},
        {"weight_decay": -1},
        {"schedule": "square"},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ConfigError, match=f"dpo.{next(iter(change))}"):
        run_config(dpo=change)
