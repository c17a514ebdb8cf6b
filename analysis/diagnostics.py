"""Reasons to distrust a plane's answer: each a printed number, a threshold, and what to do beyond it. Pure.

Letters: N runs, Y rays, S seeds, Q places.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.invariance import ALWAYS, EVIDENCE, MAX_CARTESIAN, NEVER, Invariance
from analysis.kernels import Floats, Priors
from analysis.landscape import Landscape
from analysis.noise import Noise, best_set, dunnett_least_p
from analysis.optimum import difference
from analysis.plane import Plane, mean_over_seeds
from analysis.screen import SURPRISING
from analysis.surface import ENOUGH, QUICK, fit_surface

PRIOR_ONLY_NATS = 0.05


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One number. `alarm`: it is beyond its threshold, and `action` is what to do."""

    name: str
    value: str
    threshold: str
    alarm: bool
    action: str


def diagnose(
    plane: Plane, landscape: Landscape, noise: Noise, invariance: Invariance, conventional: int | None
) -> tuple[Diagnostic, ...]:
    """Every diagnostic of the surface, then opinions that don't need it."""
    posterior, weights = landscape.posterior, landscape.posterior.model_weights
    found = [_suspects(plane, landscape), _calibration(posterior.surprise_N), _replicates(noise, landscape)]
    found += _scale(invariance, plane.metric.unit)
    detectable = f"{noise.detected(len(plane.seeds_S)):.3g} {plane.metric.unit}"
    found += [
        Diagnostic(
            "P(flat surface)",
            f"{weights['flat']:.2f}",
            "at most 0.5",
            weights["flat"] > 0.5,
            f"No effect is detectable; a difference of {detectable} would have been found four times in five.",
        ),
        Diagnostic(
            "effective sample size of the hyper-parameters",
            f"{posterior.effective_sample_size:.0f}",
            f"at least {ENOUGH}",
            posterior.effective_sample_size < ENOUGH,
            "Probabilities are rough: read them to one digit.",
        ),
        _prior_only(posterior.learned),
    ]
    if conventional is not None and landscape.place_Y[conventional] >= 0:
        found.append(_sensitivity(landscape, conventional))
    return (*found, *opinions(plane, landscape, noise, conventional))


def _suspects(plane: Plane, landscape: Landscape) -> Diagnostic:
    named = [
        f"({run.weights[0]:.4g}, {run.weights[1]:.4g}) seed {run.seed}: {run.score:.4g}"
        for run in landscape.suspects
    ]
    return Diagnostic(
        "runs that the others make all but impossible",
        f"{len(named)}" + (f": {'; '.join(named[:4])}" if named else ""),
        f"none with leave-one-out probability below {SURPRISING:g}",
        bool(named),
        "Train those cells again with a new seed; until then they hardly count here.",
    )


def _calibration(surprise_N: Floats) -> Diagnostic:
    p = float(stats.kstest(surprise_N, "uniform").pvalue) if surprise_N.size >= 8 else math.nan
    return Diagnostic(
        "leave-one-out probabilities uniform (Kolmogorov-Smirnov p)",
        f"{p:.3f}" if math.isfinite(p) else "too few runs",
        "at least 0.01",
        p < 0.01,
        "The noise model is wrong: look for heavy tails, or settings noisier than others.",
    )


def _replicates(noise: Noise, landscape: Landscape) -> Diagnostic:
    name = "run-to-run s.d.: surface / replicates"
    if not noise.seed_freedom or not noise.seed > 0:
        return Diagnostic(name, "no replicates", "0.5 to 2", False, "")
    ratio = noise.run / noise.seed
    return Diagnostic(
        name,
        f"{ratio:.2f}",
        "0.5 to 2",
        not 0.5 <= ratio <= 2,
        "The surface and the seeds disagree on the noise: a rougher surface than the grid shows, or runs that "
        "aren't replicates.",
    )


def _scale(found: Invariance, unit: str) -> list[Diagnostic]:
    stop = "Only the ratio does not tell it: rays are not pooled below; grid.collapse=none trains every cell."
    result = [
        Diagnostic(
            "both weights matter, not only their ratio: P, and Bayes factor",
            f"{found.cartesian:.2f}, {found.bayes_factor:.2g}",
            f"factor at most {EVIDENCE:g}; P below {MAX_CARTESIAN:g} before a full grid may be merged",
            found.bayes_factor > EVIDENCE,
            stop,
        )
    ]
    if math.isfinite(found.slope):
        result.append(
            Diagnostic(
                "slope within rays, per factor 5 of the weights' scale",
                f"{found.slope:+.3g} ± {found.slope_error:.2g} {unit}",
                "within 2.6 standard errors of 0",
                abs(found.slope) > 2.576 * found.slope_error,
                stop,
            )
        )
    if found.clipped is not None:
        result.append(
            Diagnostic(
                "steps whose gradient was clipped",
                f"{found.clipped[0]:.1%} to {found.clipped[1]:.1%} of a run's",
                f"at most {NEVER:.0%} of every run's, or at least {ALWAYS:.0%}",
                found.is_partly_clipped,
                "The clip makes the weights' common scale a step size: a surface of the ratio alone is left out, "
                "and no rays are merged. train.clip_norm=null gives the invariance back.",
            )
        )
    if found.num_checks:
        result.append(
            Diagnostic(
                f"largest of {found.num_checks} scale checks' differences, same seed",
                f"{found.largest_check:.3g} {unit}",
                f"at most {found.check_limit:.3g}",
                found.largest_check > found.check_limit,
                stop,
            )
        )
    return result


def _prior_only(learned: Mapping[str, float]) -> Diagnostic:
    values = {name: value for name, value in learned.items() if name in ("signal", "angle")}
    least = min(values.values(), default=0.0)
    return Diagnostic(
        "learned of the surface's size and length scale",
        ", ".join(f"{name} {value:.2f} nats" for name, value in values.items()),
        f"at least {PRIOR_ONLY_NATS:g} nats each",
        least < PRIOR_ONLY_NATS,
        "These runs say little about the surface: its shape between settings is the prior's.",
    )


def _sensitivity(landscape: Landscape, conventional: int) -> Diagnostic:
    """P(gain > 0) of the best ray under other priors, refitted quickly."""
    base = landscape.scale.priors
    others = {
        "P(flat) 0.05": _flat(base, 0.05),
        "P(flat) 0.25": _flat(base, 0.25),
        "signal x 2": dataclasses.replace(base, signal=(2 * base.signal[0], base.signal[1])),
        "as it is": base,
    }
    rows = [int(landscape.place_Y[ray]) for ray in (landscape.best, conventional)]
    if rows[0] == rows[1]:
        rows[0] = int(np.argsort(landscape.optimum.mean_Q)[-2])  # the runner-up
    found = {}
    for name, priors in others.items():
        quick = fit_surface(
            landscape.posterior.points,
            priors,
            landscape.posterior.seed,
            models=tuple(landscape.posterior.model_weights),
            effort=QUICK,
        )
        draws = quick.draws(landscape.prompt_Q[rows], landscape.response_Q[rows], 1024)
        found[name] = difference(draws, 0, 1, landscape.scale.epsilon_points).positive
    reference = found.pop("as it is")
    largest = max(abs(value - reference) for value in found.values())
    return Diagnostic(
        "P(gain over (0, 1) > 0) under other priors",
        f"{reference:.2f}; " + ", ".join(f"{name}: {value:.2f}" for name, value in found.items()),
        "changes by at most 0.1",
        largest > 0.1,
        "The answer leans on the prior; quote the range.",
    )


def _flat(priors: Priors, share: float) -> Priors:
    weights = dict(priors.model_weights)
    rest = 1 - weights["flat"]
    return dataclasses.replace(
        priors,
        model_weights={
            name: share if name == "flat" else w / rest * (1 - share) for name, w in weights.items()
        },
    )


def opinions(
    plane: Plane, landscape: Landscape, noise: Noise, conventional: int | None
) -> tuple[Diagnostic, ...]:
    """Second opinions: cheap, poor in assumptions, never alarms."""
    scores_YS = landscape.scale.points(plane.scores_YS)
    counts_Y = np.isfinite(scores_YS).sum(axis=1)
    replicated = noise.seed_freedom >= 2
    deviation = abs(landscape.scale.factor) * (noise.seed if replicated else noise.run)
    kept_Y = best_set(
        mean_over_seeds(scores_YS), counts_Y, deviation, noise.seed_freedom if replicated else 0
    )
    named = [
        f"({ray.prompt_weight:g}, {ray.response_weight:g})"
        for ray, kept in zip(plane.rays, kept_Y, strict=True)
        if kept
    ]
    best_kept = bool(kept_Y[landscape.best])
    found = [
        Diagnostic(
            "second opinion, no surface: settings that may be best (Hsu, 95 %)",
            f"{len(named)} of {int((counts_Y > 0).sum())}: {', '.join(named[:8])}{' ...' * (len(named) > 8)}",
            "holds the surface's best" if best_kept else "does not hold the surface's best",
            not best_kept,
            "Seed means alone would rule out what the surface prefers: look at its neighbours.",
        )
    ]
    p = math.nan if conventional is None else dunnett_least_p(scores_YS, conventional)
    if math.isfinite(p):
        found.append(
            Diagnostic(
                "second opinion: any setting differs from (0, 1) (Dunnett, least p)",
                f"{p:.3f}",
                "describes",
                False,
                "",
            )
        )
    ratio = _quadratic_best(landscape)
    if ratio:
        found.append(
            Diagnostic("second opinion: optimum of a quadratic surface", ratio, "describes", False, "")
        )
    return tuple(found)


def _quadratic_best(landscape: Landscape) -> str:
    """Weights of the best place of a least-squares quadratic, in the angle on the edge, else in both weights."""

    def features(prompt: Floats, response: Floats) -> Floats:
        angle = np.arctan2(prompt, response)
        if landscape.on_edge:
            return np.stack([np.ones_like(angle), angle, angle**2], axis=1)
        return np.stack(
            [np.ones_like(angle), prompt, response, prompt**2, response**2, prompt * response], axis=1
        )

    points = landscape.posterior.points
    keep = points.response_weights > 0  # prompt-only is another regime, and a quadratic can't bend that fast
    design = features(points.prompt_weights[keep], points.response_weights[keep])
    if np.linalg.matrix_rank(design) < design.shape[1] or len(design) <= design.shape[1]:
        return ""
    solution, *_ = np.linalg.lstsq(design, points.scores[keep], rcond=None)
    rows = np.flatnonzero(landscape.response_Q > 0)
    values = features(landscape.prompt_Q[rows], landscape.response_Q[rows]) @ solution
    best = rows[int(values.argmax())]
    return f"({landscape.prompt_Q[best]:.3g}, {landscape.response_Q[best]:.3g})"
