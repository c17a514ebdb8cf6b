"""The length-controlled win rate, on the published leaderboard's own annotations and on made ones."""

import csv
import gzip
import io
from collections import defaultdict

import numpy as np
import pytest

from train.judges.length_control import GamedBaselines, length_controlled_win_rate


def _gamed(count=400):
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=count)
    length = np.tanh(generator.normal(size=count))
    return GamedBaselines(length, difficulty, 1 / (1 + np.exp(0.8 * length)))


def _rows(path):
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_the_published_leaderboard(shared_data):
    folder = shared_data / "alpaca_eval"
    difficulty = np.array(
        [float(row["instruction_difficulty"]) for row in _rows(folder / "lc_instruction_difficulty.csv")]
    )
    soft = _rows(folder / "lc_gamed_soft.csv")
    gamed = GamedBaselines(
        np.array([float(row["tanh_std_delta_len"]) for row in soft]),
        difficulty[[int(row["index"]) for row in soft]],
        np.array([float(row["preference"]) for row in soft]),
    )
    published = {row[""]: row for row in _rows(folder / "leaderboard_AlpacaEval2.csv")}
    by_model = defaultdict(list)
    for row in _rows(folder / "published_annotations_compact.csv.gz"):
        by_model[row["model"]].append(row)
    errors, our_errors, their_errors = [], [], []
    for model, rows in by_model.items():
        if model not in published or not published[model]["length_controlled_winrate"]:
            continue
        preference = np.array([float(row["preference"]) for row in rows])
        preference = np.where(preference == 0, 1.5, preference) - 1
        kept = np.isfinite(preference)
        lengths = np.array([[float(row["len_1"]), float(row["len_2"])] for row in rows])[kept]
        place = np.array([int(row["pos"]) for row in rows])[kept]
        ours = length_controlled_win_rate(
            preference[kept], lengths[:, 0], lengths[:, 1], difficulty[place], gamed
        )
        errors.append(abs(100 * ours.win_rate - float(published[model]["length_controlled_winrate"])))
        our_errors.append(100 * ours.standard_error)
        their_errors.append(float(published[model]["lc_standard_error"] or "nan"))
    assert len(errors) >= 29
    assert np.mean(errors) <= 0.1
    assert max(errors) <= 0.2
    # The leaderboard's error is that of the predictions only; ours adds what the fit doesn't know.
    known = np.isfinite(their_errors)
    assert known.sum() >= 4
    assert np.all(np.array(our_errors)[known] > np.array(their_errors)[known])


def test_length_alone_is_worth_nothing():
    generator = np.random.default_rng(1)
    difficulty = generator.normal(size=600)
    reference = generator.integers(500, 1500, size=600).astype(float)
    length = reference + generator.normal(300, 500, size=600)
    standardised = (reference - length) / np.std(reference - length, ddof=1)
    preference = 1 / (1 + np.exp(1.5 * np.tanh(standardised)))
    result = length_controlled_win_rate(preference, reference, length, difficulty, _gamed())
    assert preference.mean() > 0.6
    assert result.win_rate == pytest.approx(0.5, abs=0.02)


def test_the_error_is_what_other_instructions_would_change():
    generator = np.random.default_rng(2)
    difficulty = generator.normal(size=2000)
    reference = generator.integers(500, 1500, size=2000).astype(float)
    length = reference + generator.normal(200, 400, size=2000)
    odds = 0.3 - 0.7 * np.tanh((reference - length) / 400) + 0.5 * difficulty + generator.normal(size=2000)
    preference = 1 / (1 + np.exp(-odds))
    results = []
    for _ in range(200):
        drawn = generator.choice(2000, size=400)
        results.append(
            length_controlled_win_rate(
                preference[drawn], reference[drawn], length[drawn], difficulty[drawn], _gamed()
            )
        )
    spread = np.std([result.win_rate for result in results], ddof=1)
    assert np.mean([result.standard_error for result in results]) == pytest.approx(spread, rel=0.15)


def test_a_model_that_never_wins_and_one_as_long_as_the_reference():
    same = np.full(50, 100.0)
    result = length_controlled_win_rate(np.zeros(50), same, same, np.zeros(50), _gamed())
    assert 0 <= result.win_rate < 1e-3
    assert np.isfinite(result.coefficients_F).all()
