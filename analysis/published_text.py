"""The published grid in words, as JSON and as Markdown. Pure."""

from typing import Any

import numpy as np

from analysis.across_sections import across_finding, interval_text, points_text
from analysis.across_summary import across_summary, difference_values
from analysis.published import TITLES
from analysis.published_study import EPSILON, PublishedStudy
from analysis.text import pair

SCHEMA = "weight-sweep published 1"
COMMAND = "python -m analysis from=published"
SOURCE = "arXiv 2507.07817v2, heat maps; one run per cell, seed 23, test scores only"


def finding(study: PublishedStudy) -> str:
    """The answer, in a few sentences."""
    return " ".join(sentences(study))


def sentences(study: PublishedStudy) -> tuple[str, str]:
    """The first one, and what qualifies it."""
    facts = study.facts
    first = (
        f"The best of 35 runs claims {study.mean_naive_percent:+.2f} % over (0, 1); the surfaces leave "
        f"{study.mean_cell_percent:+.2f} % of it, and a gain above zero on {study.num_told} of "
        f"{len(study.planes)} planes."
    )
    rest = (
        f"{facts.num_best_on_convention} of the {len(facts.best_cells)} best runs are the convention itself, at "
        f"another scale. {across_finding(study.across)} Without IFEval the same pair's mean gain is "
        f"{interval_text(study.without_ifeval)} points."
    )
    return first, rest


def text(study: PublishedStudy) -> str:
    """What a terminal shows."""
    return "\n".join([finding(study), "", *(f"  {name}: {value}" for name, value in fact_rows(study))])


def fact_rows(study: PublishedStudy) -> list[tuple[str, str]]:
    """The facts, each a name and its number."""
    facts = study.facts
    percent = facts.naive_gains_percent
    flagged = [f"{answer.name} {pair(one)}" for answer in study.planes for one in answer.suspects]
    within = facts.within_ray_sd_by_benchmark
    return [
        (
            "runs, and distinct experiments",
            f"{facts.num_runs}; {_range(facts.num_distinct)} of 35 cells on each plane",
        ),
        (
            "noise floor: s.d. of runs of one experiment, points",
            f"median {np.median(facts.within_ray_sd):.2f} ({min(facts.within_ray_sd):.2f} to "
            f"{max(facts.within_ray_sd):.2f}) for the average of five; "
            + ", ".join(f"{TITLES[name]} {value:.2f}" for name, value in within.items()),
        ),
        (
            "printed averages",
            f"{facts.num_printed_over_4} of {facts.num_printed} are the sum of five divided by 4, "
            f"{facts.num_printed_over_5} by 5: here every average is the mean of five, 0.8 of what was printed",
        ),
        (
            "best run over (0, 1), chosen and reported on the same scores",
            f"{np.mean(facts.naive_gains):+.2f} points, {np.mean(percent):+.2f} % (mean of the planes); "
            f"on the other "
            f"four benchmarks without IFEval {np.mean(facts.naive_without_ifeval_percent):+.2f} %",
        ),
        (
            "the same cells on their surface",
            f"{np.mean([answer.cell_gain.mean for answer in study.planes]):+.2f} points, "
            f"{study.mean_cell_percent:+.2f} %",
        ),
        ("planes whose gain has a 95 % interval above 0", f"{study.num_told} of {len(study.planes)}"),
        ("best runs on the (0, 1) ray", f"{facts.num_best_on_convention} of {len(facts.best_cells)}"),
        ("runs that the others find very unlikely", "; ".join(flagged) or "none"),
    ]


def published_summary(study: PublishedStudy) -> dict[str, Any]:
    """region.json: the same numbers for programs. Points unless a name says percent."""
    facts = study.facts
    return {
        "schema": SCHEMA,
        "source": SOURCE,
        "epsilon": EPSILON,
        "status": "exploratory: no run can be added, so no gain here is confirmed",
        "finding": finding(study),
        "num_runs": facts.num_runs,
        "num_distinct_by_plane": list(facts.num_distinct),
        "within_ray_standard_deviation_by_plane": list(facts.within_ray_sd),
        "within_ray_standard_deviation_by_benchmark": dict(facts.within_ray_sd_by_benchmark),
        "num_printed_averages_over_4": facts.num_printed_over_4,
        "num_printed_averages_over_5": facts.num_printed_over_5,
        "num_best_cells_on_convention": facts.num_best_on_convention,
        "mean_naive_gain_percent": study.mean_naive_percent,
        "mean_naive_gain_without_ifeval_percent": float(np.mean(facts.naive_without_ifeval_percent)),
        "mean_posterior_gain_of_same_cells_percent": study.mean_cell_percent,
        "num_planes_with_interval_above_0": study.num_told,
        "planes": [
            {
                "model": answer.plane.model,
                "dataset": answer.plane.dataset,
                "best_cell": list(answer.best_cell),
                "naive_gain": answer.naive,
                "posterior_gain_of_best_cell": difference_values(answer.cell_gain),
                "recommended": dict(
                    zip(("prompt_weight", "response_weight"), answer.recommended, strict=True)
                ),
                "gain": difference_values(answer.gain),
                "suspects": [list(one) for one in answer.suspects],
                "model_weights": dict(answer.screened.posterior.model_weights),
            }
            for answer in study.planes
        ],
        "across": across_summary(study.across),
        "gain_of_common_pair_without_ifeval": difference_values(study.without_ifeval),
        "benchmarks": [
            {
                "name": one.name,
                "gain_of_common_pair": {"mean": one.mean, "low": one.low, "high": one.high},
                "num_planes_better": one.num_better,
                "num_planes_worse": one.num_worse,
            }
            for one in study.benchmarks
        ],
    }


def markdown(study: PublishedStudy) -> str:
    """A summary for an appendix."""
    lines = ["# The published grid, analysed again", "", finding(study), "", "| fact | number |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in fact_rows(study)]
    lines += [
        "",
        "| plane | best run claims | surface, recommended pair | gain, points, 95 % |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {answer.name} | {points_text(answer.naive)} at {pair(answer.best_cell)} | "
        f"{pair(answer.recommended)} "
        f"| {interval_text(answer.gain)} |"
        for answer in study.planes
    ]
    lines += ["", f"Source: {SOURCE}. Every gain is exploratory. Made by `{COMMAND}`.", ""]
    return "\n".join(lines)


def _range(values: tuple[int, ...]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
