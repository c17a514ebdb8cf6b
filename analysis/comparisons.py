"""The report's sections that set the settings of one plane beside each other. Pure."""

from collections.abc import Mapping

from analysis.page import Markup, image, join, table, tag
from analysis.study import EXPLORATORY, Study
from analysis.text import ABSENT, cells_of, direction, mark, pair, ratio, with_error

Figures = Mapping[str, bytes]  # by role: plane, plane_test, difference, difference_test, ratio, metrics


def differences_section(study: Study, figures: Figures) -> Markup:
    """What every setting gains over instruction tuning, as figures and as the two named gains."""
    if study.conventional is None:
        return tag(
            "p", "Instruction tuning (0, 1) was not asked, so nothing is compared with it.", class_="note"
        )
    shown = [
        image(
            figures[role],
            f"Heat map of differences to instruction tuning, {split}",
            "Mean paired difference and its standard error. Brackets and grey: within "
            f"{study.region.standard_errors:g} standard errors of zero.",
        )
        for role, split in (("difference", "validation"), ("difference_test", "test"))
        if role in figures
    ]
    rows = []
    for gain in study.gains:
        plane = study.test if gain.split == "test" else study.chosen
        if plane is not None:
            rows.append(
                [
                    f"{gain.name.replace('_', ' ')} {pair(gain.of)} minus {pair(gain.over)}",
                    gain.split,
                    "0, the same run"
                    if gain.is_same_ray
                    else with_error(gain.difference, plane.metric, sign=True),
                    gain.difference.num_seeds or ABSENT,
                ]
            )
    return join(
        [
            tag("h3", "Difference to instruction tuning (0, 1)"),
            tag("div", *shown, class_="figures"),
            table(
                [
                    "difference",
                    "split",
                    f"{study.chosen.metric.unit} ({direction(study.chosen.metric)})",
                    "shared seeds",
                ],
                rows,
                numeric=(2, 3),
            )
            if rows
            else "",
            tag(
                "p",
                f"{EXPLORATORY.capitalize()}. On validation, being chosen flatters the best.",
                class_="note",
            ),
        ]
    )


def ratio_section(study: Study, figures: Figures) -> Markup:
    """The measure along the ratio of the weights."""
    if "ratio" not in figures:
        return Markup("")
    caption = "One point for each distinct run, one dot for each seed."
    if study.region.members_Y is not None and not study.all_equal:
        caption += " Red bands: the provisional region."
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
        rows.append(
            [
                pair((ray.prompt_weight, ray.response_weight)),
                mark(study, index),
                ratio(ray),
                with_error(estimate, plane.metric),
                test,
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
    headers = ["weights", "", "ratio", f"{plane.metric.title}", "test", "seeds", "in region", "also answers"]
    return join(
        [
            tag("h3", "Every distinct setting"),
            table(headers, rows, numeric=(2, 3, 4, 5), classes=classes),
            tag(
                "p",
                f"Mean ± standard error over seeds (pooled), {plane.metric.unit}. Weights are "
                "(prompt, response).",
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
