"""Is the answer right? Simulated planes with a known truth: calibration, coverage, false claims, regret, screening.

    python tests/bench/bench_region.py more FOLDER SECONDS     as many more pieces of the study as fit into the time
    python tests/bench/bench_region.py result FOLDER           writes tests/bench/results/region_<date>.json

A piece is 20 repetitions of a scenario (40 of the prior), in a file of its own: a long study is many short commands,
and goes on where it was. Simulated planes are the paper's 35 cells, one seed each. Criteria: region_criteria.py.
"""

import datetime
import functools
import json
import math
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from region_truths import (
    CELL_ROWS,
    CELLS,
    CONVENTION,
    DECISIONS,
    NOISES,
    OWN,
    SHAPES,
    contrast_variance,
    observe,
    published_planes,
    truth,
)

from analysis.confirm import confirmed_difference
from analysis.gaussian import Points, root_of
from analysis.kernels import AVERAGE, MODELS, distances, hyper_names, hyper_parameters, kernel, places
from analysis.optimum import difference, find_optimum
from analysis.screen import fit_screened
from analysis.surface import fit_surface

EPSILON = 0.5
TOLERANCE = 0.01  # points: a flat truth has a gain of exactly 0, and draws are broken up by 0.001
FRESH_SEEDS = 3
RESULTS = Path(__file__).parent / "results"


def scenarios():
    """name -> (truth, noise, share of collapsed runs)."""
    found = {f"{shape}-{noise}": (shape, noise, 0.0) for noise in NOISES for shape in SHAPES}
    found |= {"peak4-mid": ("peak4", "mid", 0.0), "published-own": ("published", "own", 0.0)}
    found |= {f"{shape}-mid": (shape, "mid", 0.0) for shape in OWN}
    return found | {f"{shape}-mid-collapse": (shape, "mid", 0.05) for shape in ("flat", "peak", "ray")}


_PUBLISHED: list = []


def _published_truth(number):
    """Smooth versions of the published planes, as realistic truths, at their own noise."""
    if not _PUBLISHED:
        for scores in published_planes().values():
            posterior = fit_surface(Points.of(*CELLS.T, scores), seed=1)
            mean, _ = posterior.moments(*DECISIONS.T)
            _PUBLISHED.append((mean - mean[CONVENTION], posterior.run_deviation))
    surface, deviation = _PUBLISHED[number % len(_PUBLISHED)]
    return surface, (0.3 * deviation, 0.5, deviation)


def simulate(name, repetition):
    """One plane of a scenario, its truth, and what the analysis says of it: a flat row of numbers."""
    shape, noise_name, outliers = scenarios()[name]
    generator = np.random.default_rng([repetition, zlib.crc32(name.encode())])
    if shape == "published":
        surface, noise = _published_truth(repetition)
    else:
        surface, noise = truth(shape), NOISES[noise_name]
    scores, lost = observe(surface[CELL_ROWS], noise, generator, outliers)
    known, deviation = contrast_variance(noise)
    started = time.process_time()
    screened = fit_screened(Points.of(*CELLS.T, scores, known), seed=repetition)
    draws = screened.posterior.draws(*DECISIONS.T)
    found = find_optimum(draws, EPSILON)
    gain = difference(draws, found.best, CONVENTION, EPSILON)
    seconds = time.process_time() - started
    is_near = surface >= surface.max() - EPSILON
    true_gain = surface[found.best] - surface[CONVENTION]
    fresh_of, fresh_over = deviation * generator.standard_normal((2, FRESH_SEEDS))
    fresh = confirmed_difference(true_gain + fresh_of, fresh_over, screened.posterior, known)
    moved = found.best != CONVENTION
    top = int(scores.argmax())
    near_quadratic = _quadratic(scores, generator)
    weights = screened.posterior.model_weights
    return {
        "regret": surface.max() - surface[found.best],
        "regret_argmax": surface.max() - surface[CELL_ROWS[top]],
        "gain": gain.mean,
        "true_gain": true_gain,
        "covers": gain.low - TOLERANCE <= true_gain <= gain.high + TOLERANCE,
        "claims": gain.low > TOLERANCE,
        "claims_falsely": gain.low > TOLERANCE and true_gain <= 1e-9,
        "covers_optimum": bool(found.optimum_Q[surface.argmax()]),
        "inner_holds": not (found.inner_Q & ~is_near).any(),
        "outer_holds": not (is_near & ~found.outer_Q).any(),
        "fresh_error": fresh.mean - true_gain if moved else 0.0,
        "fresh_covers": fresh.low <= true_gain <= fresh.high or not moved,
        "fresh_claims_falsely": moved and fresh.is_above_zero and true_gain <= 1e-9,
        "fresh_moved": moved,
        "brier": ((found.near_best_Q - is_near) ** 2).mean(),
        "brier_quadratic": ((near_quadratic - is_near) ** 2).mean(),
        "cartesian": weights["cartesian"],
        "ess": screened.posterior.effective_sample_size,
        "flags_good": int((screened.suspect_N & (lost == 0)).sum()),
        "collapsed": int((lost > 3).sum()),
        "collapsed_found": int((screened.suspect_N & (lost > 3)).sum()),
        "expected_regret": found.regret,
        "cpu_s": seconds,
        "near_best": np.round(found.near_best_Q, 4).tolist(),
        "is_near": is_near.astype(int).tolist(),
    }


def _quadratic(scores, generator, repeats=400):
    """P(near best) of the classical reference: a full quadratic with bootstrapped residuals."""

    def features(pairs):
        p, r = pairs.T
        return np.stack([np.ones(len(p)), p, r, p * p, r * r, p * r], axis=1)

    design, asked = features(CELLS), features(DECISIONS)
    inverse = np.linalg.pinv(design)
    fitted = design @ (inverse @ scores)
    leverage = np.einsum("ij,ji->i", design, inverse)
    residual = (scores - fitted) / np.sqrt(np.clip(1 - leverage, 0.05, 1))
    again = fitted + generator.choice(residual - residual.mean(), (repeats, len(scores)))
    surfaces = again @ inverse.T @ asked.T
    return (surfaces >= surfaces.max(axis=1, keepdims=True) - EPSILON).mean(axis=0)


def calibrate(repetition):
    """Simulation-based calibration: a truth drawn from the prior, so every interval must hold exactly."""
    generator = np.random.default_rng([repetition, 77])
    prior = AVERAGE.model_weights
    model = MODELS[generator.choice(len(MODELS), p=[prior[name] for name in MODELS])]
    z = generator.standard_normal((1, len(hyper_names(model, False))))
    hyper = hyper_parameters(model, z, AVERAGE, False)
    at = places(*DECISIONS.T)
    covariance = kernel(model, hyper, distances(at, at))[0]
    surface = root_of(covariance) @ generator.standard_normal(len(DECISIONS))
    known = 0.245
    deviation = math.sqrt(known + hyper["run"][0] ** 2)
    scores = surface[CELL_ROWS] + deviation * generator.standard_normal(len(CELLS))
    posterior = fit_surface(Points.of(*CELLS.T, scores, known), seed=repetition)
    draws = posterior.draws(*DECISIONS.T)
    found = find_optimum(draws, EPSILON)
    gain = difference(draws, found.best, CONVENTION, EPSILON)
    place = int(generator.integers(len(DECISIONS)))
    rank = float(((draws[:, place] - draws[:, CONVENTION]) < surface[place] - surface[CONVENTION]).mean())
    true_gain = surface[found.best] - surface[CONVENTION]
    is_near = surface >= surface.max() - EPSILON
    return {
        "covers": gain.low - TOLERANCE <= true_gain <= gain.high + TOLERANCE,
        "covers_optimum": bool(found.optimum_Q[surface.argmax()]),
        "inner_holds": not (found.inner_Q & ~is_near).any(),
        "outer_holds": not (is_near & ~found.outer_Q).any(),
        "rank": rank,
        "is_flat": model == "flat" or place == CONVENTION,  # a rank among ties says nothing
        "regret": surface.max() - surface[found.best],
        "expected_regret": found.regret,
    }


def calibration_error(near_best, is_near, edges=(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)):
    """Mean distance of stated probability and frequency over bins, weighted by their sizes."""
    number = np.digitize(near_best, edges)
    total = 0.0
    for each in range(len(edges) + 1):
        chosen = number == each
        if chosen.any():
            total += chosen.sum() * abs(near_best[chosen].mean() - is_near[chosen].mean())
    return float(total / near_best.size)


def _pieces(folder, block=20, most=200):
    """Every piece of the study: its file, what it simulates, its repetitions; the first of each scenario first."""
    for first in range(0, most, block):
        for name in scenarios():
            one = functools.partial(simulate, name)
            yield folder / f"{name}_{first:04d}.json", one, range(first, first + block)
        numbers = range(2 * first, 2 * (first + block))
        yield folder / f"prior_{first:04d}.json", calibrate, numbers


def main():
    """See the head of this file."""
    command, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if command == "more":
        end = time.monotonic() + float(sys.argv[3])
        for path, simulated, numbers in _pieces(folder):
            if time.monotonic() > end:
                break
            if not path.exists():
                rows = [simulated(number) for number in numbers]
                path.write_text(json.dumps(rows, default=lambda value: value.item()), encoding="utf-8")
                print(path.name, len(rows), flush=True)
    else:
        from region_criteria import summarise

        result = summarise(folder)
        path = RESULTS / f"region_{datetime.date.today()}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(result["criteria"], indent=1))


if __name__ == "__main__":
    main()
