"""Synthetic planes with a known truth, in points. Letters: Q places.

flat, conv, peak, peak4, ray, step, cliff are those of the reference study; ridges, fade and plateau are our own:
two equal ridges, an optimum that fades with the common scale, and a rise that ends in a plateau.
"""

import csv
import math
from pathlib import Path

import numpy as np

LEVELS = [round(0.1 * step, 1) for step in range(11)]
DECISIONS = np.array([(p, r) for p in LEVELS for r in LEVELS if p + r > 0])  # 120 places
CELLS = np.array([(p / 5, r / 5) for p in range(6) for r in range(6) if p + r > 0])  # the paper's 35
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "wit_published" / "wit_grid.csv"

# s.d. of the evaluation (binomial), correlation of items between cells, s.d. between seeds; points
NOISES = {"low": (0.7, 0.9, 0.1), "mid": (0.7, 0.5, 0.6), "high": (0.7, 0.5, 1.5)}
SHAPES = ("flat", "conv", "peak", "ray", "step", "cliff")
OWN = ("ridges", "fade", "plateau")


def index_of(places, prompt_weight, response_weight):
    """The row of a pair of weights."""
    return int(np.flatnonzero((np.abs(places - (prompt_weight, response_weight)) < 1e-9).all(axis=1))[0])


CONVENTION = index_of(DECISIONS, 0, 1)
CELL_ROWS = np.array([index_of(DECISIONS, *cell) for cell in CELLS])


def truth(name, places=DECISIONS):
    """The noise-free score at places, points."""
    p, r = places.T
    angle = np.arctan2(p, r)
    hill = np.exp(-((p - 0.3) ** 2 + (r - 0.7) ** 2) / (2 * 0.25**2))

    def ridge(degrees, width):
        return np.exp(-((angle - math.radians(degrees)) ** 2) / (2 * math.radians(width) ** 2))

    return {
        "flat": lambda: np.zeros(len(places)),
        "conv": lambda: -3 * angle / (math.pi / 2),
        "peak": lambda: 2 * hill,
        "peak4": lambda: 4 * hill,
        "ray": lambda: 2 * np.exp(-((angle - math.atan2(0.3, 0.7)) ** 2) / (2 * math.radians(12) ** 2)),
        "step": lambda: np.where(p > 0, 2 - angle / (math.pi / 2), 0.0),
        "cliff": lambda: 2 * hill - 12 * (r < 1e-9),
        "ridges": lambda: 2 * ridge(14, 7) + 1.9 * ridge(63, 7),
        "fade": lambda: 2.5 * ridge(27, 13) * np.maximum(p, r) ** 0.5,
        "plateau": lambda: 2 * (1 - np.exp(-angle / math.radians(9))) - 6 * (r < 1e-9),
    }[name]()


def published_planes():
    """(dataset, model) -> the paper's 35 true averages (of five benchmarks, MT-Bench times 10), points."""
    found = {}
    with open(PUBLISHED, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] != "avg_it":
                continue
            scores = found.setdefault((row["dataset"], row["model"]), np.full(len(CELLS), np.nan))
            weights = float(row["lambda_p"]), float(row["lambda_r"])
            if any(weights):
                scores[index_of(CELLS, *weights)] = float(row["value"])
    return found


def observe(surface, noise, generator, outliers=0.0):
    """One run at each of CELLS: shared and own evaluation noise, seeds, and a share of collapsed runs.

    Returns scores and the points that each collapsed run lost (0 for the others).
    """
    evaluation, correlation, between_seeds = noise
    scores = surface + math.sqrt(correlation) * evaluation * generator.standard_normal()
    scores = scores + math.sqrt(1 - correlation) * evaluation * generator.standard_normal(len(surface))
    scores = scores + between_seeds * generator.standard_normal(len(surface))
    lost = np.zeros(len(surface))
    if outliers:
        lost = (generator.random(len(surface)) < outliers) * generator.exponential(5.0, len(surface))
    return scores - lost, lost


def contrast_variance(noise):
    """(known paired evaluation variance, s.d. of one run in a contrast)."""
    evaluation, correlation, between_seeds = noise
    known = (1 - correlation) * evaluation**2
    return known, math.sqrt(known + between_seeds**2)
