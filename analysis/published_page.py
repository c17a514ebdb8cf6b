"""The page about the published grid, its region.json and its Markdown summary, as bytes. Same input, "
"same bytes.

    <root>/published/report/    report.html, region.json, summary.md, figures/
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.across import DECISIONS, Across
from analysis.across_plot import (
    Row,
    agreement_figure,
    gains_figure,
    many_maps_figure,
    pooled_figure,
    ranks_figure,
    trade_off_figure,
)
from analysis.across_sections import (
    across_finding,
    agreement_section,
    factors_section,
    interval_text,
    points_text,
    ranks_section,
    tight,
    trade_off_section,
)
from analysis.draw import png_bytes
from analysis.optimum import Difference
from analysis.page import Markup, bullets, image, join, page, table, tag
from analysis.published import TITLES
from analysis.published_study import EPSILON, PublishedStudy
from analysis.text import pair
from train.files import to_json

SCHEMA = "weight-sweep published 1"
COMMAND = "python -m analysis from=published"
SOURCE = "arXiv 2507.07817v2, heat maps; one run per cell, seed 23, test scores only"
NOT_PUBLISHED = ("prompt tokens / response tokens",)


def published_files(study: PublishedStudy) -> dict[str, bytes]:
    """Every file of the report by its name."""
    figures = _figures(study)
    return {
        "report.html": _page(study, figures).encode("utf-8"),
        "region.json": to_json(published_summary(study)).encode("utf-8"),
        "summary.md": markdown(study).encode("utf-8"),
        **{f"figures/{name}.png": png for name, png in figures.items()},
    }


def finding(study: PublishedStudy) -> str:
    """The answer, in a few sentences."""
    return " ".join(_sentences(study))


def _sentences(study: PublishedStudy) -> tuple[str, str]:
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
                "posterior_gain_of_best_cell": _difference(answer.cell_gain),
                "recommended": dict(
                    zip(("prompt_weight", "response_weight"), answer.recommended, strict=True)
                ),
                "gain": _difference(answer.gain),
                "suspects": [list(one) for one in answer.suspects],
                "model_weights": dict(answer.screened.posterior.model_weights),
            }
            for answer in study.planes
        ],
        "across": across_summary(study.across),
        "gain_of_common_pair_without_ifeval": _difference(study.without_ifeval),
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


def across_summary(across: Across) -> dict[str, Any]:
    """The part of region.json about several planes; what doesn't exist is an absent key."""
    found: dict[str, Any] = {"finding": across_finding(across), "not_said": list(across.silences)}
    if across.recommended is not None:
        found["recommended"] = dict(
            zip(("prompt_weight", "response_weight"), across.recommended, strict=True)
        )
    if across.common_gain is not None and across.new_gain is not None:
        found["gain_on_these_planes"] = _difference(across.common_gain)
        found["gain_on_a_new_plane"] = _difference(across.new_gain)
    if across.common is not None:
        members = across.places_Q2[across.common.median_Q]
        found["region"] = [[float(weight) for weight in place] for place in members]
    if across.pooled is not None:
        found["shares"] = dict(across.pooled.shares)
        found["share_intervals"] = {name: list(ends) for name, ends in across.pooled.share_intervals.items()}
        found["effective_sample_size"] = across.pooled.effective_sample_size
    found["left_out"] = [
        {
            "factor": one.factor,
            "level": one.level,
            "choice": list(one.choice),
            "gain": one.gain.mean,
            "standard_error": one.gain.standard_error,
            "num_planes": one.num_planes,
            "num_positive": one.num_positive,
        }
        for one in across.left_out
    ]
    return found


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


def _figures(study: PublishedStudy) -> dict[str, bytes]:
    answers = study.planes
    made = {
        "gains": gains_figure([Row(answer.name, answer.naive, answer.gain) for answer in answers]),
        "maps": many_maps_figure(
            DECISIONS,
            [answer.name for answer in answers],
            [answer.optimum.near_best_Q for answer in answers],
            [answer.optimum.median_Q for answer in answers],
            [(answer.recommended, answer.best_cell) for answer in answers],
        ),
        "pooled": pooled_figure(study.across),
        "agreement": agreement_figure(study.across),
        "trade_off": trade_off_figure(DECISIONS, study.trade_off) if study.trade_off else None,
        "ranks": ranks_figure(study.ranks) if study.ranks else None,
    }
    return {name: png_bytes(figure) for name, figure in made.items() if figure is not None}


def _page(study: PublishedStudy, figures: Mapping[str, bytes]) -> str:
    return page(
        "The published grid of Weighted Instruction Tuning",
        tag("h1", "The published grid, analysed again"),
        tag("p", f"{SOURCE}. All scores in points of 0 to 100, higher is better.", class_="note"),
        tag("p", _sentences(study)[0], class_="finding"),
        tag("p", _sentences(study)[1]),
        tag(
            "div",
            tag("strong", "Read with care"),
            bullets(
                [
                    "Exploratory throughout: no fresh seeds exist, so no gain on this page is confirmed.",
                    "One seed: the spread of equivalent runs is a lower bound of the spread between seeds.",
                    "No item-level scores were published, so intervals cover runs, not the choice of items.",
                    "On Alpaca and, with the Llamas, on Tulu the (0, 1) baseline is below the untouched "
                    "model on IFEval. "
                    "A gain there may be a repaired evaluation.",
                ]
            ),
            class_="warn",
        ),
        tag("h2", "What the printed numbers say by themselves"),
        bullets([join([tag("strong", name), ": ", value]) for name, value in fact_rows(study)]),
        tag("h2", "How much better, plane by plane"),
        image(
            figures["gains"],
            "Gains by plane: claim and posterior interval",
            "A cross right of its interval is the winner's curse: the best of 35 noisy runs looks better "
            "than it is.",
            wide=True,
        ),
        _planes(study),
        tag("h2", "Where the best may be, plane by plane"),
        image(
            figures["maps"],
            "Maps of the probability of being near the best",
            f"P(within {EPSILON:g} points of the plane's best). Red outline: the region, P above one "
            f"half. Star: "
            "recommended. Cross: the best run. Prompt weight upwards, response weight to the right. "
            "Wedges: only the "
            "ratio matters.",
            wide=True,
        ),
        agreement_section(study.across, figures),
        _benchmarks(study),
        trade_off_section(DECISIONS, study.trade_off, float("nan"), figures),
        ranks_section(study.ranks, figures),
        factors_section(study.factors, NOT_PUBLISHED),
        tag("h2", "Again"),
        tag("pre", COMMAND),
    )


def _planes(study: PublishedStudy) -> Markup:
    rows = [
        [
            answer.name,
            tight(f"{points_text(answer.naive)} at {pair(answer.best_cell)}"),
            tight(interval_text(answer.cell_gain)),
            tight(pair(answer.recommended)),
            "no change" if answer.recommended[0] == 0 else tight(interval_text(answer.gain)),
            f"{answer.screened.posterior.run_deviation:.2f}",
            ", ".join(tight(pair(one)) for one in answer.suspects),
        ]
        for answer in study.planes
    ]
    headers = [
        "plane",
        "best run claims",
        "its surface says",
        "recommended",
        "gain there, 95 %",
        "run s.d.",
        "suspect runs",
    ]
    classes = ["best" if answer.is_told else "" for answer in study.planes]
    return join(
        [
            table(headers, rows, numeric=(5,), classes=classes),
            tag("p", "Points. Bold: the interval lies above 0. All exploratory.", class_="note"),
        ]
    )


def _benchmarks(study: PublishedStudy) -> Markup:
    weights = study.across.recommended or (0.0, 1.0)
    rows = [
        [
            TITLES[one.name],
            tight(f"{points_text(one.mean)} [{points_text(one.low)}, {points_text(one.high)}]"),
            one.num_better,
            one.num_worse,
        ]
        for one in study.benchmarks
    ]
    return join(
        [
            tag("h2", "Benchmark by benchmark"),
            table(
                [
                    f"benchmark, at {pair(weights)}",
                    "mean gain, points, 95 %",
                    "planes better",
                    "planes worse",
                ],
                rows,
                numeric=(2, 3),
            ),
            tag(
                "p",
                f"One surface for each plane and benchmark. Better or worse: P above 0.975, of "
                f"{len(study.planes)} planes. "
                "An average of raw percentages follows the benchmark that moves most.",
                class_="note",
            ),
        ]
    )


def _difference(found: Difference) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "probability_positive": found.positive}


def _range(values: tuple[int, ...]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"
