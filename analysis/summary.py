"""region.json: the answer for programs. Strict JSON; a number that doesn't exist is an absent key. Pure.

    {schema, sweep, evidence, planes: [plane], across}
    evidence                          digest of the finished runs it rests on (`sweep.confirm.evidence`)
    across                            see `analysis.across_summary`; absent for one plane
    plane
      model, dataset, settings        what its cells share
      metric, unit, better            the validation metric that chose
      finding, cautions               sentences
      num_cells, num_rays, num_runs, num_finished, absent {status: count}
      num_seeds                       asked
      epsilon                         what nobody would care about
      best                            ray of the best posterior mean, or absent if no run has finished
      recommended                     ray: best, or (0, 1) unless P(gain over it > 0) >= 0.975
      members                         rays of the region R50, best included; absent without one
      why_no_region                   only without a region
      method                          how members were found
      region                          {median, inner, outer, optimum: {low, high}: prompt / response weight, absent
                                      where empty or prompt-only; expected_regret, regret_within_epsilon: probability}
      map                             [{prompt_weight, response_weight, near_best, is_best, gain, low, high}] of the
                                      decision grid; near_best: P(within epsilon of the best), is_best: P(the best)
      surface                         {models {name: probability}, effective_sample_size, suspects: [...]}
      noise                           {evaluation, seed, seed_degrees_of_freedom, check, num_checks, inferred,
                                      inferred_low, inferred_high, run}: standard deviations of one run
      scale_invariance                {is_broken, cartesian, bayes_factor, slope, slope_error, largest_check,
                                      check_limit, num_checks, clipped: [least, largest] share of steps}
      diagnostics                     [{name, value, threshold, alarm, action}]
      pooled_seed_standard_deviation, pooled_difference_standard_deviation, *_degrees_of_freedom
      base, conventional, instruction_modelling    their scores; `base` has a score only
      gains                           [{name, split, of, over, mean, standard_error, num_seeds, status}], of raw means
      posterior_gains                 [{of, over, mean, low, high, better, relevant, negligible, status}]
      confirmed_gains                 [{of, over, mean, low, high, num_seeds, is_better}], of fresh seeds only
    ray
      prompt_weight, response_weight  the cell farthest from the origin; aliases: every cell of the same run
      trained_at                      [prompt weight, response weight] given to the run
      ratio                           prompt / response; absent for prompt-only. angle: degrees
      mean, standard_error, num_seeds, test {mean, standard_error, num_seeds}
      near_best                       P(within epsilon of the best)
Units are those of `metric`, differences in its direction; low and high are 95 % intervals; weights are dimensionless.
A new key doesn't change `schema`; a changed one does.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.optimum import difference
from analysis.region import CONVENTIONAL, Estimate
from analysis.study import EXPLORATORY, Gain, Study
from analysis.text import cells_of, finding

SCHEMA = "weight-sweep region 2"


def region_summary(
    sweep: str, studies: Sequence[Study], cautions: Sequence[Sequence[str]], evidence: str
) -> dict[str, Any]:
    """The whole document; see the head of this file."""
    return {
        "schema": SCHEMA,
        "sweep": sweep,
        "evidence": evidence,
        "planes": [plane_summary(study, lines) for study, lines in zip(studies, cautions, strict=True)],
    }


def plane_summary(study: Study, cautions: Sequence[str]) -> dict[str, Any]:
    """One plane; see the head of this file."""
    region, plane = study.region, study.chosen
    members = region.members_Y
    return _without_absent(
        {
            "model": plane.model,
            "dataset": plane.dataset,
            "settings": {
                key: list(value) if isinstance(value, tuple) else value for key, value in plane.settings
            },
            "metric": plane.metric.name,
            "unit": plane.metric.unit,
            "better": plane.metric.better,
            "finding": finding(study),
            "cautions": list(cautions),
            "num_cells": study.num_cells,
            "num_rays": len(plane.rays),
            "num_runs": study.num_runs,
            "num_finished": study.num_finished,
            "num_seeds": len(plane.seeds_S),
            "absent": {str(status): len(names) for status, names in study.absent.items()},
            "best": None if region.best is None else _ray(study, region.best),
            "recommended": None if region.landscape is None else _ray(study, region.recommended),
            "members": None
            if members is None
            else [_ray(study, index) for index in range(len(plane.rays)) if members[index]],
            "why_no_region": region.why_none or None,
            "method": region.method or None,
            **_surface(study),
            "pooled_seed_standard_deviation": region.spread.seed,
            "pooled_seed_degrees_of_freedom": region.spread.seed_freedom or None,
            "pooled_difference_standard_deviation": region.spread.difference,
            "pooled_difference_degrees_of_freedom": region.spread.difference_freedom or None,
            "base": {"mean": plane.base_score} if math.isfinite(plane.base_score) else None,
            "conventional": None if study.conventional is None else _ray(study, study.conventional),
            "instruction_modelling": None
            if study.instruction_modelling is None
            else _ray(study, study.instruction_modelling),
            "gains": [_gain(gain) for gain in study.gains],
            "posterior_gains": _posterior_gains(study),
            "confirmed_gains": [
                {
                    "of": list(gain.of),
                    "over": list(gain.over),
                    "mean": gain.mean,
                    "low": min(gain.low, gain.high),
                    "high": max(gain.low, gain.high),
                    "num_seeds": gain.contrast.num_of,
                    "is_better": gain.is_better,
                }
                for gain in study.confirmed
            ],
        }
    )


def _surface(study: Study) -> dict[str, Any]:
    """Everything that comes from the surface; nothing without one."""
    region, landscape = study.region, study.region.landscape
    noise = _without_absent(dataclasses.asdict(region.noise))
    noise["seed_degrees_of_freedom"] = noise.pop("seed_freedom")
    if landscape is None or region.invariance is None:
        return {"noise": noise}
    found = landscape.optimum
    sets = {
        "median": found.median_Q,
        "inner": found.inner_Q,
        "outer": found.outer_Q,
        "optimum": found.optimum_Q,
    }
    spans = {name: landscape.ratios(chosen) for name, chosen in sets.items()}
    invariance = study.broken or region.invariance
    return {
        "epsilon": landscape.scale.epsilon,
        "region": {
            **{name: {"low": span[0], "high": span[1]} for name, span in spans.items() if span is not None},
            "expected_regret": landscape.scale.size(found.regret),
            "regret_within_epsilon": found.sure,
        },
        "map": _map(study),
        "surface": {
            "models": dict(landscape.posterior.model_weights),
            "effective_sample_size": landscape.posterior.effective_sample_size,
            "suspects": [
                {"weights": list(run.weights), "seed": run.seed, "score": run.score}
                for run in landscape.suspects
            ],
        },
        "noise": noise,
        "scale_invariance": _without_absent(
            {**dataclasses.asdict(invariance), "is_broken": invariance.is_broken}
        ),
        "diagnostics": [dataclasses.asdict(diagnostic) for diagnostic in study.diagnostics],
    }


def _map(study: Study) -> list[dict[str, Any]]:
    landscape = study.region.landscape
    if landscape is None:
        return []
    found, value = landscape.optimum, landscape.scale.value
    origin = None if study.conventional is None else int(landscape.place_Y[study.conventional])
    rows = []
    for place in range(landscape.prompt_Q.size):
        row = {
            "prompt_weight": float(landscape.prompt_Q[place]),
            "response_weight": float(landscape.response_Q[place]),
            "near_best": float(found.near_best_Q[place]),
            "is_best": float(found.is_best_Q[place]),
        }
        if origin is not None and origin >= 0:
            gain = difference(landscape.draws_KQ, place, origin, landscape.scale.epsilon_points)
            ends = sorted((value(gain.low), value(gain.high)))
            row |= {"gain": value(gain.mean), "low": ends[0], "high": ends[1]}
        rows.append(row)
    return rows


def _posterior_gains(study: Study) -> list[dict[str, Any]]:
    """Of the best ray and of Instruction Modelling over (0, 1)."""
    landscape, plane = study.region.landscape, study.chosen
    if landscape is None:
        return []
    value, found = landscape.scale.value, []
    for ray in dict.fromkeys((study.region.best, study.instruction_modelling)):
        gain = study.region.gain(ray)
        if ray is None or gain is None or ray == study.conventional:
            continue
        ends = sorted((value(gain.low), value(gain.high)))
        found.append(
            {
                "of": [plane.rays[ray].prompt_weight, plane.rays[ray].response_weight],
                "over": list(CONVENTIONAL),
                "mean": value(gain.mean),
                "low": ends[0],
                "high": ends[1],
                "better": gain.positive,
                "relevant": gain.relevant,
                "negligible": gain.negligible,
                "status": EXPLORATORY,
            }
        )
    return found


def _ray(study: Study, index: int | None) -> dict[str, Any] | None:
    if index is None:
        return None
    ray, landscape = study.chosen.rays[index], study.region.landscape
    place = -1 if landscape is None else int(landscape.place_Y[index])
    test = None if study.test_estimates is None else _estimate(study.test_estimates[index])
    return _without_absent(
        {
            "prompt_weight": ray.prompt_weight,
            "response_weight": ray.response_weight,
            "ratio": ray.ratio,
            "angle": round(ray.angle, 9),
            "trained_at": list(ray.trained_at),
            "aliases": [list(weights) for weights in cells_of(study.chosen, ray)],
            **_estimate(study.region.estimates[index]),
            "test": test,
            "near_best": None
            if landscape is None or place < 0
            else float(landscape.optimum.near_best_Q[place]),
        }
    )


def _gain(gain: Gain) -> dict[str, Any]:
    return {
        "name": gain.name,
        "split": gain.split,
        "of": list(gain.of),
        "over": list(gain.over),
        **_estimate(gain.difference),
        "is_same_run": gain.is_same_ray,
        "status": EXPLORATORY,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return _without_absent(
        {"mean": estimate.mean, "standard_error": estimate.standard_error, "num_seeds": estimate.num_seeds}
    )


def _without_absent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop None, NaN and infinities: JSON has no word for them, and null invites arithmetic."""
    return {
        key: value
        for key, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
