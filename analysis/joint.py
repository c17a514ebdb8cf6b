"""A sweep's planes beside each other: studies in, everything that is said across planes out. Pure.

Letters: N runs, Q places, K draws, P planes.

Validation chooses and test judges, here as everywhere: pooled surfaces and weighted optima come from validation, the
gains of choices from the test scores of the same runs (validation's where no test score is on record, and it is said).
Planes measured under different protocols are not compared at all.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.across import DECISIONS, Across, Pair, PlaneScores, across_planes, convention_of, runs_on_ray
from analysis.factors import Association, associate, best_angles
from analysis.gaussian import Points
from analysis.kernels import Floats
from analysis.landscape import Landscape
from analysis.plane import Plane
from analysis.ranks import MAX_SETTINGS, Ranks, rank_settings
from analysis.study import Study
from analysis.surface import QUICK, fit_surface
from analysis.table import Group, Table
from analysis.text import group_name, pair
from analysis.tradeoff import TradeOff, family_of, residual_correlation, trade_off
from analysis.units import Scale, scale_of
from sweep.spec import RunSpec
from train.config import config_to_dict
from train.metrics import Metric, is_selectable

SETTINGS: tuple[Pair, ...] = (
    (0.0, 1.0),
    (0.1, 1.0),
    (0.2, 1.0),
    (0.25, 1.0),
    (0.5, 1.0),
    (1.0, 1.0),
    (1.0, 0.5),
    (1.0, 0.0),
)
NATURAL = ("share", "rating", "point")  # units with a size of their own: only these are averaged
PREFERRED = ("length_controlled_win_rate", "rating", "prompt_strict", "exact_match", "accuracy")


@dataclass(frozen=True, slots=True)
class Joint:
    """What several planes of one metric say together. Points are those of `scale`, higher better."""

    metric: Metric
    scale: Scale
    across: Across | None  # None where planes may not be compared, for the reason in `refusals`
    refusals: tuple[str, ...]
    is_judged_on_test: bool
    ranks: Ranks | None
    trade_off: TradeOff | None
    families: Mapping[str, tuple[str, ...]]  # the metrics that a family is the mean of
    correlation: float  # of what single runs deviate by, between families
    factors: tuple[Association, ...]
    unknown: tuple[str, ...]  # properties that no record holds

    @property
    def is_in_points(self) -> bool:
        """Whether a point is a hundredth of a share or a tenth of a rating; else it is an artificial unit."""
        return self.metric.unit.startswith(NATURAL)


def make_joint(table: Table, studies: Sequence[Study], seed: int = 0) -> Joint | None:
    """None for fewer than two planes with a surface."""
    told = [study for study in studies if study.region.landscape is not None]
    if len(told) < 2:
        return None
    metric = told[0].chosen.metric
    scores = np.concatenate([study.chosen.scores_YS.ravel() for study in told])
    scale = scale_of(metric, scores, _landscape(told[0]).scale.epsilon)
    on_test = all(study.test is not None for study in told)
    refusals = (*_different_protocols(table, told), *_different_directions(told))
    if refusals:
        return Joint(metric, scale, None, refusals, on_test, None, None, {}, math.nan, (), ())
    planes = [_plane_scores(study, scale, on_test) for study in told]
    places_Q2 = _places([_landscape(study) for study in told])
    across = across_planes(planes, scale.epsilon_points, places_Q2=places_Q2, priors=scale.priors, seed=seed)
    silent = [
        f"{group_name(study.group)} has no surface ({study.region.why_none}), so it is left out"
        for study in studies
        if study.region.landscape is None
    ]
    if not on_test:
        silent.append(
            "no test score is on record for every plane: choices are judged on validation's own scores"
        )
    across = replace(across, silences=(*silent, *across.silences))
    traded, families, correlation = _traded(told, places_Q2, scale.epsilon_points, seed)
    factors, unknown = _factors(table, told, places_Q2, seed)
    return Joint(
        metric, scale, across, (), on_test, _ranks(planes), traded, families, correlation, factors, unknown
    )


def _landscape(study: Study) -> Landscape:
    found = study.region.landscape
    if found is None:
        raise ValueError(f"{group_name(study.group)} has no surface")
    return found


def _different_protocols(table: Table, studies: Sequence[Study]) -> list[str]:
    """One line naming the planes of each protocol; nothing if all were measured alike."""
    by_protocol: dict[str, list[str]] = {}
    for study in studies:
        trained = [spec for spec in table.specs(study.group) if spec.config.stage != "base"]
        protocol = json.dumps(config_to_dict(trained[0].config.eval), sort_keys=True)
        by_protocol.setdefault(protocol, []).append(group_name(study.group))
    if len(by_protocol) < 2:
        return []
    differing = _differing_keys([json.loads(text) for text in by_protocol])
    named = "; ".join(
        f"{', '.join(names)}: {', '.join(f'{key}={json.loads(text).get(key)}' for key in differing)}"
        for text, names in by_protocol.items()
    )
    return [f"planes were measured under {len(by_protocol)} protocols and can't be compared: {named}"]


def _differing_keys(trees: Sequence[Mapping[str, object]]) -> list[str]:
    keys = sorted({key for tree in trees for key in tree})
    return [key for key in keys if len({repr(tree.get(key)) for tree in trees}) > 1]


def _different_directions(studies: Sequence[Study]) -> list[str]:
    kinds = {(study.chosen.metric.unit, study.chosen.metric.better) for study in studies}
    if len(kinds) < 2:
        return []
    said = ", ".join(f"{unit} ({better} is better)" for unit, better in sorted(kinds))
    return [f"planes have scores of different units or directions, which are never averaged: {said}"]


def _plane_scores(study: Study, scale: Scale, on_test: bool) -> PlaneScores:
    landscape = _landscape(study)
    stretch = scale.factor / landscape.scale.factor
    own = landscape.posterior.points
    judged = replace(own, scores=stretch * own.scores, variances=stretch**2 * own.variances)
    if on_test and study.test is not None:
        values = [_test_score(study.test, run.ray, run.seed) for run in landscape.runs]
        there = np.isfinite(values) & ~np.array([run.is_check for run in landscape.runs])
        if there.any():
            judged = Points(
                own.prompt_weights[there],
                own.response_weights[there],
                scale.points(np.array(values)[there]),
                stretch**2 * own.variances[there],
                own.seeds[there],
            )
    model, dataset, settings = study.group
    data = ", ".join([dataset, *(f"{key}={value}" for key, value in settings)])
    return PlaneScores(group_name(study.group), model, data, landscape.posterior, judged, stretch)


def _test_score(plane: Plane, ray: int, seed: int) -> float:
    return float(plane.scores_YS[ray, plane.seeds_S.index(seed)]) if seed in plane.seeds_S else math.nan


def _places(landscapes: Sequence[Landscape]) -> Floats:
    """The edge of the square where every plane merged its rays, else the lattice; prompt-only where all ran it."""
    has_prompt_only = all((one.response_Q == 0).any() for one in landscapes)
    if all(one.on_edge for one in landscapes):
        sides = [(step / 20, 1.0) for step in range(21)] + [(1.0, step / 20) for step in reversed(range(20))]
        return np.array(sides if has_prompt_only else sides[:-1])
    return DECISIONS if has_prompt_only else DECISIONS[DECISIONS[:, 1] > 0]


def _ranks(planes: Sequence[PlaneScores]) -> Ranks | None:
    """Settings named beforehand that every plane has runs of, on the scores that judge."""
    shown = [one for one in SETTINGS if all(runs_on_ray(plane.judged, one) for plane in planes)][
        :MAX_SETTINGS
    ]
    if len(shown) < 2:
        return None
    scores_PC = np.array(
        [
            [float(plane.judged.scores[runs_on_ray(plane.judged, one)].mean()) for one in shown]
            for plane in planes
        ]
    )
    return rank_settings(scores_PC, [pair(one) for one in shown])


def _traded(
    studies: Sequence[Study], places_Q2: Floats, epsilon: float, seed: int
) -> tuple[TradeOff | None, Mapping[str, tuple[str, ...]], float]:
    """Families of validation metrics that every plane has, each the mean of its benchmarks over all planes."""
    families = _families(studies)
    if len(families) < 2:
        return None, families, math.nan
    chosen: dict[str, Floats] = {}
    reported: dict[str, Floats] = {}
    residuals: list[Floats] = []
    for family, names in families.items():
        for split, found in (("validation_", chosen), ("test_", reported)):
            fits = [
                _gains(study.planes[metric], places_Q2, seed)
                for study in studies
                for name in names
                if (metric := name.replace("validation_", split)) in study.planes
            ]
            if len(fits) == len(studies) * len(names):
                found[family] = np.mean([gains for gains, _ in fits], axis=0)
            if split == "validation_":
                residuals.append(np.concatenate([residual for _, residual in fits]))
    same = len({residual.size for residual in residuals}) == 1
    correlation = residual_correlation(residuals) if same else math.nan
    return (
        trade_off(chosen, epsilon, reported if len(reported) == len(chosen) else None),
        families,
        correlation,
    )


def _families(studies: Sequence[Study]) -> dict[str, tuple[str, ...]]:
    """One metric of each benchmark, those with a natural unit only: unlike units are never averaged."""
    shared = set.intersection(*(set(study.planes) for study in studies))
    by_benchmark: dict[tuple[str, str], str] = {}
    for name in sorted(shared, key=_preference):
        rest = name.removeprefix("validation_")
        benchmark = rest.partition(".")[0]
        family = family_of(benchmark)
        unit = studies[0].planes[name].metric.unit
        if family and rest != name and is_selectable(name) and unit.startswith(NATURAL):
            by_benchmark.setdefault((family, benchmark), name)
    found: dict[str, tuple[str, ...]] = {}
    for (family, _), name in by_benchmark.items():
        found[family] = (*found.get(family, ()), name)
    return found


def _preference(name: str) -> tuple[int, str]:
    measure = name.partition(".")[2]
    return (PREFERRED.index(measure) if measure in PREFERRED else len(PREFERRED)), name


def _gains(plane: Plane, places_Q2: Floats, seed: int) -> tuple[Floats, Floats]:
    """Draws of the gain over (0, 1) in points, and what each run deviates from the surface's mean by."""
    scores_YS = plane.scores_YS
    scale = scale_of(plane.metric, scores_YS)
    rays, seeds = np.nonzero(np.isfinite(scores_YS))
    weights = np.array([plane.rays[ray].trained_at for ray in rays])
    points = Points.of(
        weights[:, 0],
        weights[:, 1],
        scale.points(scores_YS[rays, seeds]),
        0.0,
        [plane.seeds_S[s] for s in seeds],
    )
    posterior = fit_surface(points, scale.priors, seed, effort=QUICK)
    draws_KQ = posterior.draws(places_Q2[:, 0], places_Q2[:, 1], 640)[:600]
    order = np.random.default_rng(seed + 9).permutation(len(draws_KQ))  # settings in no order across planes
    gains_KQ = draws_KQ[order] - draws_KQ[order][:, [convention_of(places_Q2)]]
    mean_N, _ = posterior.moments(points.prompt_weights, points.response_weights)
    return gains_KQ, points.scores - mean_N


def _factors(
    table: Table, studies: Sequence[Study], places_Q2: Floats, seed: int
) -> tuple[tuple[Association, ...], tuple[str, ...]]:
    angles_KP = np.stack(
        [
            best_angles(
                _landscape(study).posterior.draws(places_Q2[:, 0], places_Q2[:, 1], 640)[:600],
                places_Q2[:, 0],
                places_Q2[:, 1],
            )
            for study in studies
        ],
        axis=1,
    )
    found, unknown = [], []
    for name, count in (
        (
            "prompt tokens / response tokens",
            lambda one: _ratio(one, "train_prompt_tokens", "train_response_tokens"),
        ),
        ("number of training examples", lambda one: one.get("train_rows", math.nan)),
        ("model size", lambda one: one.get("model_parameters", math.nan)),
    ):
        values = [count(_counts(table, study.group)) for study in studies]
        association = associate(name, angles_KP, values, seed)
        if association is None:
            unknown.append(name)
        else:
            found.append(association)
    return tuple(found), tuple(unknown)


def _counts(table: Table, group: Group) -> Mapping[str, float]:
    """What the first finished run of a plane counted."""
    specs: list[RunSpec] = [spec for spec in table.specs(group) if spec.config.stage != "base"]
    for spec in specs:
        if spec.fingerprint in table.record_by_fingerprint:
            return table.record_by_fingerprint[spec.fingerprint].counts
    return {}


def _ratio(counts: Mapping[str, float], above: str, below: str) -> float:
    return counts[above] / counts[below] if counts.get(below) and above in counts else math.nan
