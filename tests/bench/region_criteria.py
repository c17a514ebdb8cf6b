"""The criteria of a single plane, from the rows that bench_region.py wrote. Each: what must hold, what was measured.

A bound is widened by two Monte Carlo standard errors of what it bounds, and says how many planes stand behind it.
"""

import json
import math
from collections import defaultdict

import numpy as np
from scipy import stats

OUTLYING = "collapse"
RAY_LIKE = ("ray", "step", "conv", "published")
PEAKS = ("peak", "peak4", "cliff")


def read_rows(folder):
    """scenario -> rows of all pieces."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*_*.json")):
        found[path.stem.rsplit("_", 1)[0]] += json.loads(path.read_text(encoding="utf-8"))
    return dict(found)


def column(rows, name):
    return np.array([row[name] for row in rows], dtype=float)


def share(values):
    """A mean of 0 / 1 values and its standard error, at least that of one success more."""
    p, n = float(np.mean(values)), len(values)
    smoothed = (values.sum() + 1) / (n + 2)
    return p, math.sqrt(smoothed * (1 - smoothed) / n), n


def below(value, bound, error=0.0, n=None):
    return {
        "must": f"<= {bound:g}",
        "value": round(value, 4),
        "se": round(error, 4),
        "planes": n,
        "holds": bool(value <= bound + 2 * error),
    }


def above(value, bound, error=0.0, n=None):
    return {
        "must": f">= {bound:g}",
        "value": round(value, 4),
        "se": round(error, 4),
        "planes": n,
        "holds": bool(value >= bound - 2 * error),
    }


def within(value, low, high, error=0.0, n=None):
    holds = low - 2 * error <= value <= high + 2 * error
    return {
        "must": f"{low:g} to {high:g}",
        "value": round(value, 4),
        "se": round(error, 4),
        "planes": n,
        "holds": bool(holds),
    }


def summarise(folder):
    """Criteria 1 to 7, 9, 12 and 13 of the study, a table of every scenario, and what was not measured."""
    from bench_region import scenarios

    rows = read_rows(folder)
    missing = sorted({*scenarios(), "prior"} - set(rows))
    prior = rows.pop("prior", [])
    clean = {name: found for name, found in rows.items() if OUTLYING not in name}
    criteria = {}
    if prior:
        criteria |= _calibration(prior)
    criteria |= _false_claims(clean)
    criteria |= _coverage(clean)
    criteria |= _confirmed(clean)
    criteria |= _map(clean)
    criteria |= _regret(clean)
    criteria |= _screening(rows)
    criteria |= _invariance(rows)
    seconds = np.concatenate([column(found, "cpu_s") for found in rows.values()])
    criteria["13 CPU-s for a plane, median"] = below(float(np.median(seconds)), 0.2)
    return {
        "what": "simulated planes of 35 cells with one seed each; truths and noises in tests/bench/region_truths.py",
        "planes": sum(map(len, rows.values())) + len(prior),
        "not_measured": missing,
        "bounds": "widened by two standard errors (se) of what was measured",
        "criteria": criteria,
        "scenarios": {name: _one(found) for name, found in sorted(rows.items())},
    }


def _one(rows):
    names = (
        "regret",
        "regret_argmax",
        "covers",
        "covers_optimum",
        "claims",
        "claims_falsely",
        "fresh_covers",
        "brier",
        "brier_quadratic",
        "flags_good",
    )
    return {"planes": len(rows), **{name: round(float(column(rows, name).mean()), 3) for name in names}}


def _calibration(rows):
    told = np.array([row["rank"] for row in rows if not row["is_flat"]])
    counts = np.histogram(told, 10, (0, 1))[0]
    return {
        "1 prior truths: 95 % interval of the gain covers": within(
            share(column(rows, "covers"))[0], 0.93, 0.97, *share(column(rows, "covers"))[1:]
        ),
        "1 prior truths: optimum in its 95 % set": above(
            share(column(rows, "covers_optimum"))[0], 0.93, *share(column(rows, "covers_optimum"))[1:]
        ),
        "1 prior truths: ranks uniform, p": above(float(stats.chisquare(counts).pvalue), 0.01, n=len(told)),
    }


def _false_claims(clean):
    nulls = {
        name: column(found, "claims_falsely")
        for name, found in clean.items()
        if name.split("-")[0] in ("flat", "conv")
    }
    if not nulls:
        return {}
    value, error, n = share(np.concatenate(list(nulls.values())))
    worst = max(nulls, key=lambda name: nulls[name].mean())
    return {
        "2 false improvement, both nulls": below(value, 0.025, error, n),
        f"2 false improvement, worst null ({worst})": below(*_first(share(nulls[worst]), 0.05)),
    }


def _first(found, bound):
    value, error, n = found
    return value, bound, error, n


def _coverage(clean):
    optimum = {name: column(found, "covers_optimum") for name, found in clean.items()}
    gains = {name: column(found, "covers") for name, found in clean.items()}
    worst = min(optimum, key=lambda name: optimum[name].mean())
    mean, error, n = share(np.concatenate(list(optimum.values())))
    result = {
        f"3 optimum in its 95 % set, worst scenario ({worst})": above(*_first(share(optimum[worst]), 0.88)),
        "3 optimum in its 95 % set, mean": above(mean, 0.95, error, n),
    }
    for title, shapes, bound in (
        ("ray, step, conv, published", RAY_LIKE, 0.90),
        ("Cartesian peaks", PEAKS, 0.80),
    ):
        chosen = {name: values for name, values in gains.items() if name.split("-")[0] in shapes}
        if chosen:
            least = min(chosen, key=lambda name: chosen[name].mean())
            result[f"4 interval of the gain covers, worst of {title} ({least})"] = above(
                *_first(share(chosen[least]), bound)
            )
    mean, error, n = share(np.concatenate(list(gains.values())))
    return result | {"4 interval of the gain covers, mean": above(mean, 0.93, error, n)}


def _confirmed(clean):
    rows = [row for found in clean.values() for row in found if row["fresh_moved"]]
    errors = column(rows, "fresh_error")
    value, error, n = share(column(rows, "fresh_covers"))
    return {
        "5 bias of the confirmed gain, points": within(
            float(errors.mean()), -0.05, 0.05, float(errors.std() / math.sqrt(len(errors))), len(errors)
        ),
        "5 its 95 % interval covers": within(value, 0.93, 0.97, error, n),
    }


def _map(clean):
    from bench_region import calibration_error

    near = np.concatenate([np.array(row["near_best"]) for found in clean.values() for row in found])
    true = np.concatenate([np.array(row["is_near"]) for found in clean.values() for row in found])
    rows = [row for found in clean.values() for row in found]
    return {
        "6 calibration error of P(within epsilon of the best)": below(
            calibration_error(near, true), 0.06, n=len(rows)
        ),
        "6 Brier score / that of a bootstrapped quadratic": below(
            float(column(rows, "brier").mean() / column(rows, "brier_quadratic").mean()), 1.0, n=len(rows)
        ),
    }


def _regret(clean):
    def ratio(rows):
        """Ratio of mean regrets and its standard error by the delta method."""
        ours, theirs = column(rows, "regret"), column(rows, "regret_argmax")
        value = ours.mean() / theirs.mean()
        error = float(np.std(ours - value * theirs) / (theirs.mean() * math.sqrt(len(rows))))
        return float(value), error, len(rows)

    # scenarios count alike, and none whose regret is 0 by definition (a flat truth)
    rows = [row for name, found in clean.items() if not name.startswith("flat") for row in found]
    value, error, n = ratio(rows)
    result = {"7 regret / regret of the best cell, mean": below(value, 0.85, error, n)}
    if "ray-mid" in clean:
        value, error, n = ratio(clean["ray-mid"])
        result["7 regret / regret of the best cell, ray-mid"] = below(value, 0.5, error, n)
    excess = {name: column(found, "regret") - column(found, "regret_argmax") for name, found in clean.items()}
    worst = max(excess, key=lambda name: excess[name].mean())
    error = float(excess[worst].std() / math.sqrt(len(excess[worst])))
    result[f"7 regret above the best cell's, worst scenario ({worst}), points"] = below(
        float(excess[worst].mean()), 0.15, error, len(excess[worst])
    )
    return result


def _screening(rows):
    bad = [row for name, found in rows.items() if OUTLYING in name for row in found]
    good = [row for name, found in rows.items() if OUTLYING not in name for row in found]
    if not bad:
        return {}
    lost, found = column(bad, "collapsed").sum(), column(bad, "collapsed_found").sum()
    recall = float(found / lost)
    flags = column(good, "flags_good")
    return {
        "9 collapses over 3 points that are found": above(
            recall, 0.8, math.sqrt(recall * (1 - recall) / lost), int(lost)
        ),
        "9 good runs suspected for each plane": below(
            float(flags.mean()), 0.1, float(flags.std() / math.sqrt(len(flags))), len(flags)
        ),
    }


def _invariance(rows):
    result = {}
    for name, bound, compare in (("peak-low", 0.8, above), ("ray-low", 0.05, below)):
        if name in rows:
            values = column(rows[name], "cartesian")
            result[f"12 P(both weights matter), {name}"] = compare(
                float(values.mean()), bound, float(values.std() / math.sqrt(len(values))), len(values)
            )
    return result
