"""The page about the published grid, its region.json and its Markdown summary, as bytes. Same input, "
"same bytes.

    <root>/published/report/    report.html, region.json, summary.md, figures/
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.across import DECISIONS
from analysis.across_plot import (
    Row,
    SmallMap,
    agreement_figure,
    gains_figure,
    many_maps_figure,
    pooled_figure,
    ranks_figure,
    trade_off_figure,
)
from analysis.across_sections import (
    agreement_section,
    factors_section,
    interval_text,
    points_text,
    ranks_section,
    tight,
    trade_off_section,
)
from analysis.draw import png_bytes
from analysis.page import Markup, bullets, image, join, page, table, tag
from analysis.published import TITLES
from analysis.published_study import EPSILON, PublishedStudy
from analysis.published_text import COMMAND, SOURCE, fact_rows, markdown, published_summary, sentences
from analysis.text import pair
from train.files import to_json

NOT_PUBLISHED = ("prompt tokens / response tokens",)


def published_files(study: PublishedStudy, beside: Sequence[SmallMap] = ()) -> dict[str, bytes]:
    """Every file of the report by its name. beside: planes of a sweep, drawn before the published ones."""
    figures = _figures(study, beside)
    return {
        "report.html": _page(study, figures).encode("utf-8"),
        "region.json": to_json(published_summary(study)).encode("utf-8"),
        "summary.md": markdown(study).encode("utf-8"),
        **{f"figures/{name}.png": png for name, png in figures.items()},
    }


def maps_of(report: Mapping[str, Any]) -> list[SmallMap]:
    """The planes of a sweep's region.json that have a surface."""
    found = []
    for plane in report.get("planes", ()):
        places = plane.get("map", ())
        if not places or "recommended" not in plane:
            continue
        near_best_Q = np.array([place["near_best"] for place in places])
        pair_of = plane["recommended"]
        found.append(
            SmallMap(
                f"{report['sweep']}: {plane['model']}\non {plane['dataset']}",
                np.array([[place["prompt_weight"], place["response_weight"]] for place in places]),
                near_best_Q,
                near_best_Q >= 0.5,
                (pair_of["prompt_weight"], pair_of["response_weight"]),
            )
        )
    return found


def _figures(study: PublishedStudy, beside: Sequence[SmallMap]) -> dict[str, bytes]:
    answers = study.planes
    made = {
        "gains": gains_figure([Row(answer.name, answer.naive, answer.gain) for answer in answers]),
        "maps": many_maps_figure(
            [
                *beside,
                *(
                    SmallMap(
                        answer.name,
                        DECISIONS,
                        answer.optimum.near_best_Q,
                        answer.optimum.median_Q,
                        answer.recommended,
                        answer.best_cell,
                    )
                    for answer in answers
                ),
            ]
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
        tag("p", sentences(study)[0], class_="finding"),
        tag("p", sentences(study)[1]),
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
