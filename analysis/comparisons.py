"""The report's sections that set the settings of one plane beside each other. Pure."""

import math
from collections.abc import Mapping

from analysis.landscape_plot import seeds_table
from analysis.page import Markup, image, join, table, tag
from analysis.study import EXPLORATORY, Study
from analysis.text import (
    ABSENT,
    cells_of,
    direction,
    mark,
    number,
    pair,
    probability,
    ratio,
    signed,
    with_error,
)

Figures = Mapping[str, bytes]  # by role, see `analysis.report`


def differences_section(study: Study, figures: Figures) -> Markup:
    """What settings gain over instruction tuning: the surface, then raw means, then the named gains."""
    if study.conventional is None:
        return tag(
            "p", "Instruction tuning (0, 1) was not asked, so nothing is compared with it.", class_="note"
        )
    shown = []
    if "gain" in figures:
        caption = (
            "The surface's difference to (0, 1): mean and 95 % interval. Grey: of no interest (epsilon). Circles: "
            "means of seeds; red crosses: rays with a suspect run. Pale red: the region."
        )
        shown.append(
            image(figures["gain"], "Gain over instruction tuning along the ratio", caption, wide=True)
        )
    raw = [
        image(
            figures[role],
            f"Heat map of differences to instruction tuning, {split}",
            "Mean paired difference and its standard error, no surface assumed. Brackets and grey: within 2 "
            "standard errors of zero.",
        )
        for role, split in (("difference", "validation"), ("difference_test", "test"))
        if role in figures
    ]
    metric = study.chosen.metric
    return join(
        [
            tag("h3", "Difference to instruction tuning (0, 1)"),
            *shown,
            table(
                [
                    "difference",
                    "what",
                    f"{metric.unit} ({direction(metric)})",
                    "P(better)",
                    "seeds",
                    "status",
                ],
                gain_rows(study),
                numeric=(3, 4),
            ),
            tag("p", _population_note(study), class_="note"),
            tag("div", *raw, class_="figures") if raw else "",
        ]
    )


def gain_rows(study: Study) -> list[list[object]]:
    """Confirmed gains, then those of the surface, then raw means of pairs."""
    metric, rows = study.chosen.metric, []
    for one in study.confirmed:
        low, high = sorted((one.low, one.high))
        said = f"{signed(one.mean, metric)} [{signed(low, metric)}, {signed(high, metric)}]"
        rows.append(
            [
                f"{pair(one.of)} minus {pair(one.over)}",
                "fresh seeds",
                said,
                "",
                one.contrast.num_of,
                "confirmed",
            ]
        )
    landscape = study.region.landscape
    for ray in dict.fromkeys((study.region.best, study.instruction_modelling)):
        gain = study.region.gain(ray)
        if ray is None or gain is None or landscape is None or ray == study.conventional:
            continue
        of = study.chosen.rays[ray]
        mean, *ends = (landscape.scale.value(points) for points in (gain.mean, gain.low, gain.high))
        low, high = sorted(ends)
        said = f"{signed(mean, metric)} [{signed(low, metric)}, {signed(high, metric)}]"
        name = f"{pair((of.prompt_weight, of.response_weight))} minus (0, 1)"
        rows.append([name, "surface", said, probability(gain.positive), "", "exploratory"])
    for gain in study.gains:
        plane = study.test if gain.split == "test" else study.chosen
        if plane is not None:
            said = (
                "0, the same run"
                if gain.is_same_ray
                else with_error(gain.difference, plane.metric, sign=True)
            )
            name = f"{pair(gain.of)} minus {pair(gain.over)}"
            seeds = gain.difference.num_seeds or ABSENT
            rows.append([name, f"means of seeds, {gain.split}", said, "", seeds, "exploratory"])
    return rows


def _population_note(study: Study) -> str:
    """What the intervals cover, and what another set of items would add."""
    said = (
        f"{EXPLORATORY.capitalize()} unless marked so: the best was chosen among many, which flatters its own runs; "
        "the surface shrinks it, fresh seeds (action=confirm) settle it. Brackets: 95 %; ±: one standard error."
    )
    best, conventional = study.region.best, study.conventional
    if best is None or conventional is None or not study.items.num_items:
        return (
            f"{said} All settings are scored on the same items: errors cover runs, not the choice of items."
        )
    added = math.sqrt(study.items.setting_variance(best, conventional)) if best != conventional else math.nan
    if not math.isfinite(added):
        return said
    return (
        f"{said} They cover runs on these {study.items.num_items:,} items; for other items like these "
        f"({study.items.num_clusters:,} clusters) add a standard error of {number(added, study.chosen.metric)} to the "
        "best's difference."
    )


def noise_section(study: Study, figures: Figures) -> Markup:
    """How large a difference must be to mean anything, and the seeds that smaller ones need."""
    if "noise" not in figures:
        return Markup("")
    noise, metric = study.region.noise, study.chosen.metric
    words = [
        "One run: seeds say what trainings of one setting differ by, what a seed shares with all settings taken out; "
        "scale checks are trainings of one ratio and seed at two scales, a lower bound; the surface infers the rest."
    ]
    if not math.isfinite(noise.evaluation):
        words.append("No items were read, so the evaluation's part is not told from the run's.")
    if not noise.seed_freedom:
        words.append("No setting has two seeds, so no replicate stands behind it.")
    return join(
        [
            tag("h3", "Noise first"),
            image(
                figures["noise"],
                "Noise of one run, and differences that mean something",
                " ".join(words),
                wide=True,
            ),
            table(
                [f"gain, {metric.unit}", "seeds of each setting"],
                seeds_table(study),
                numeric=(0, 1),
            ),
        ]
    )


def diagnostics_section(study: Study) -> Markup:
    """Reasons to distrust the answer: each a number, its threshold, and what to do."""
    if not study.diagnostics:
        return Markup("")
    rows = [
        [
            diagnostic.name,
            diagnostic.value,
            diagnostic.threshold,
            tag("strong", diagnostic.action)
            if diagnostic.alarm
            else "fine"
            if diagnostic.threshold != "describes"
            else "",
        ]
        for diagnostic in study.diagnostics
    ]
    return join([tag("h3", "Diagnostics"), table(["diagnostic", "value", "threshold", "verdict"], rows)])


def ratio_section(study: Study, figures: Figures) -> Markup:
    """The measure along the ratio of the weights."""
    if "ratio" not in figures:
        return Markup("")
    caption = (
        "One point for each setting, one dot for each seed. Band: the surface, 95 %. Pale red: the region."
    )
    return join(
        [
            tag("h3", "Along the ratio"),
            image(figures["ratio"], "Curve over the ratio of the weights", caption, wide=True),
        ]
    )


def rays_section(study: Study) -> Markup:
    """A table with one row for each distinct setting."""
    region, plane = study.region, study.chosen
    rows, classes = [], []
    for index, ray in enumerate(plane.rays):
        estimate = region.estimates[index]
        others = [pair(cell) for cell in cells_of(plane, ray)[:-1]]
        test = (
            ""
            if study.test_estimates is None or study.test is None
            else with_error(study.test_estimates[index], study.test.metric)
        )
        is_member = region.members_Y is not None and bool(region.members_Y[index])
        place = -1 if region.landscape is None else int(region.landscape.place_Y[index])
        near = "" if place < 0 or region.landscape is None else region.landscape.optimum.near_best_Q[place]
        rows.append(
            [
                pair((ray.prompt_weight, ray.response_weight)),
                mark(study, index),
                ratio(ray),
                with_error(estimate, plane.metric),
                test,
                "" if isinstance(near, str) else probability(float(near)),
                estimate.num_seeds,
                ("yes" if is_member else "undecided" if region.undecided_Y[index] else "no")
                if region.members_Y is not None
                else "",
                " ".join(others),
            ]
        )
        classes.append(
            " ".join(name for name, said in (("best", index == region.best), ("member", is_member)) if said)
        )
    headers = [
        "weights",
        "",
        "ratio",
        f"{plane.metric.title}",
        "test",
        "P(near best)",
        "seeds",
        "in region",
        "also answers",
    ]
    return join(
        [
            tag("h3", "Every distinct setting"),
            table(headers, rows, numeric=(2, 3, 4, 5, 6), classes=classes),
            tag(
                "p",
                f"Mean ± standard error over seeds (pooled), {plane.metric.unit}. P(near best): within epsilon of the "
                "best. Weights are (prompt, response).",
                class_="note",
            ),
        ]
    )


def all_metrics_section(figures: Figures) -> Markup:
    """Small planes of every metric on record."""
    if "metrics" not in figures:
        return Markup("")
    return join(
        [
            tag("h3", "All metrics"),
            image(
                figures["metrics"],
                "Small heat maps of every metric on record",
                "Axes as above. Each with its own colours, for the shape; numbers are in cells.csv. "
                "Outlined: the region of the metric that chose, for comparison.",
                wide=True,
            ),
        ]
    )
