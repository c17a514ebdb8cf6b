"""region.json: the answer for programs. Strict JSON; a number that doesn't exist is an absent key. Pure.

    {schema, sweep, standard_errors, planes: [plane]}
    plane
      model, dataset, settings        what its cells share
      metric, unit, better            the validation metric that chose
      finding, cautions               sentences
      num_cells, num_rays, num_runs, num_finished, absent {status: count}
      num_seeds                       asked
      best                            ray, or absent if no run has finished
      members                         rays of the provisional region, best included; absent without one
      why_no_region                   only without a region
      method                          how members were found, and what it isn't corrected for
      least_coverage                  share of simulated all-equal planes whose true best is kept
      pooled_seed_standard_deviation, pooled_difference_standard_deviation, *_degrees_of_freedom
      base, conventional, instruction_modelling    their scores; `base` has a score only
      gains                           [{name, split, of, over, mean, standard_error, num_seeds, status}]
    ray
      prompt_weight, response_weight  the cell farthest from the origin; aliases: every cell of the same run
      trained_at                      [prompt weight, response weight] given to the run
      ratio                           prompt / response; absent for prompt-only. angle: degrees
      mean, standard_error, num_seeds, test {mean, standard_error, num_seeds}
Units are those of `metric`; weights are dimensionless. A new key doesn't change `schema`; a changed one does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.region import Estimate
from analysis.study import EXPLORATORY, Gain, Study
from analysis.text import cells_of, finding

SCHEMA = "weight-sweep region 1"


def region_summary(
    sweep: str, studies: Sequence[Study], cautions: Sequence[Sequence[str]], standard_errors: float
) -> dict[str, Any]:
    """The whole document; see the head of this file."""
    return {
        "schema": SCHEMA,
        "sweep": sweep,
        "standard_errors": standard_errors,
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
            "members": None
            if members is None
            else [_ray(study, index) for index in range(len(plane.rays)) if members[index]],
            "why_no_region": region.why_none or None,
            "method": region.method or None,
            "least_coverage": region.coverage,
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
        }
    )


def _ray(study: Study, index: int) -> dict[str, Any]:
    ray = study.chosen.rays[index]
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
