"""The report's sections about one plane, as HTML values. Pure."""

import math
from collections.abc import Mapping, Sequence

from analysis.page import Markup, bullets, image, join, table, tag
from analysis.study import EXPLORATORY, Study
from analysis.table import Table
from analysis.text import (
    ABSENT,
    cells_of,
    direction,
    finding_sentences,
    group_name,
    mark,
    number,
    pair,
    plural,
    ratio,
    with_error,
)
from sweep.spec import Status

Figures = Mapping[str, bytes]  # by role: plane, plane_test, difference, difference_test, ratio, metrics
MAX_LISTED = 12


def study_section(
    table_: Table,
    study: Study,
    cautions: Sequence[str],
    figures: Figures,
    left_out: Sequence[str],
    command: str,
    anchor: str,
) -> Markup:
    """One plane, from its finding to the line that repeats its best run."""
    return join(
        [
            tag("h2", group_name(study.group), id=anchor),
            tag("p", finding_sentences(study)[0], class_="finding"),
            tag("p", " ".join(finding_sentences(study)[1:])) if len(finding_sentences(study)) > 1 else "",
            _cautions(cautions),
            _plane(study, figures),
            _asked(table_, study),
            _differences(study, figures),
            _ratio(study, figures),
            _rays(study),
            _all_metrics(figures),
            tag(
                "p",
                f"Left out to keep this page small, and in figures/: {', '.join(left_out)}.",
                class_="note",
            )
            if left_out
            else "",
            join([tag("h3", "The best run again, by hand"), tag("pre", command)]) if command else "",
        ]
    )


def overview(studies: Sequence[Study]) -> Markup:
    """All planes in one table; nothing for a single one."""
    if len(studies) < 2:
        return Markup("")
    rows = []
    for index, study in enumerate(studies):
        region, plane, gain = study.region, study.chosen, study.gain("best", "test")
        best = (
            "nothing finished"
            if region.best is None
            else (
                f"{pair((plane.rays[region.best].prompt_weight, plane.rays[region.best].response_weight))}: "
                f"{with_error(region.estimates[region.best], plane.metric)}"
            )
        )
        members = (
            "none: " + region.why_none.split(",")[0]
            if region.members_Y is None
            else (f"{int(region.members_Y.sum())} of {len(plane.rays)} settings")
        )
        test = (
            ""
            if gain is None or study.test is None
            else (
                "the best is (0, 1)"
                if gain.is_same_ray
                else with_error(gain.difference, study.test.metric, sign=True)
            )
        )
        rows.append(
            [
                tag("a", group_name(study.group), href=f"#plane-{index + 1}"),
                best,
                members,
                test,
                len(plane.seeds_S),
                f"{study.num_finished} of {study.num_runs}",
            ]
        )
    metric = studies[0].chosen.metric
    return join(
        [
            tag("h2", "All planes"),
            table(
                [
                    "plane",
                    f"best {metric.title}",
                    "region",
                    "best minus (0, 1), test",
                    "seeds",
                    "runs finished",
                ],
                rows,
                numeric=(4, 5),
            ),
            tag(
                "p",
                f"Weights are (prompt, response). Gains are {EXPLORATORY}. Each plane has its own best: the same "
                "weights need not hold elsewhere.",
                class_="note",
            ),
        ]
    )


def _cautions(lines: Sequence[str]) -> Markup:
    if not lines:
        return Markup("")
    return tag("div", tag("strong", "Read with care"), bullets(lines), class_="warn")


def _plane(study: Study, figures: Figures) -> Markup:
    region, metric = study.region, study.chosen.metric
    shown = (
        [image(figures["plane"], f"Heat map of {metric.title}", _plane_caption(study))]
        if "plane" in figures
        else []
    )
    if "plane_test" in figures and study.test is not None:
        shown.append(
            image(
                figures["plane_test"],
                f"Heat map of {study.test.metric.title}",
                "The same runs on test rows, which chose nothing. Star and outline are the ones that "
                "validation chose.",
            )
        )
    spread = region.spread
    words = [region.method] if region.method else [f"No region: {region.why_none}."]
    if math.isfinite(spread.seed):
        words.append(
            f"Seed standard deviation of one run, pooled over settings: {number(spread.seed, metric)} "
            f"({spread.seed_freedom} degrees of freedom)."
        )
        words.append(
            "Pooled, because the standard deviation of a single setting rests on "
            f"{plural(len(study.chosen.seeds_S), 'seed')}; this assumes equal noise everywhere."
        )
    words.append("All cells are scored on the same rows: errors cover seeds, not the choice of rows.")
    words = [f"{word.rstrip('.')}." for word in words]
    return join(
        [
            tag("h3", "The plane"),
            tag("div", *shown, class_="figures"),
            tag("p", " ".join(words), class_="note"),
        ]
    )


def _plane_caption(study: Study) -> str:
    parts = ["Prompt weight upwards, response weight to the right."]
    if any(len(ray.cells) > 1 for ray in study.chosen.rays):
        parts.append(
            "Cells joined by a line from the origin are one run: only the ratio of the weights matters to "
            "this optimiser."
        )
    parts.append("IT: instruction tuning (0, 1). IM: Instruction Modelling (1, 1). Star: best.")
    if study.region.members_Y is not None and not study.all_equal:
        parts.append("Red outline: provisional region.")
    parts.append("Hatched: asked, absent. Blank: never asked.")
    if math.isfinite(study.chosen.base_score):
        parts.append("Dashed: the untouched base model, never a candidate.")
    return " ".join(parts)


def _asked(table_: Table, study: Study) -> Markup:
    num_seeds = len(study.chosen.seeds_S)
    num_cells, num_rays = int(study.chosen.asked_PR.sum()), len(study.chosen.rays)
    rows: list[Sequence[object]] = [
        ["asked", f"{plural(num_cells, 'cell')} × {plural(num_seeds, 'seed')} = {study.num_cells:,}"],
        [
            "distinct",
            f"{plural(num_rays, 'setting')} × {plural(num_seeds, 'seed')} = {plural(study.num_runs, 'run')}",
        ],
        ["aliases", f"{study.num_cells - study.num_runs:,} cells are answered by another cell's run"],
        ["finished", f"{study.num_finished:,} of {plural(study.num_runs, 'run')}"],
    ]
    rows += [[str(status), _names(names)] for status, names in study.absent.items()]
    failures = [
        [spec.run_id, failure.kind, failure.message]
        for spec in table_.specs(study.group)
        if (failure := table_.failure_by_fingerprint.get(spec.fingerprint)) is not None
    ]
    parts = [tag("h3", "Asked, trained, absent"), table(["", ""], rows)]
    if Status.FAILED in study.absent and failures:
        parts.append(table(["failed run", "kind", "message"], failures[:MAX_LISTED]))
    return join(parts)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{len(names)}: {', '.join(names[:MAX_LISTED])}{more}"


def _differences(study: Study, figures: Figures) -> Markup:
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
                f"{EXPLORATORY.capitalize()}. On validation the best is flattered by having been chosen there.",
                class_="note",
            ),
        ]
    )


def _ratio(study: Study, figures: Figures) -> Markup:
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


def _rays(study: Study) -> Markup:
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


def _all_metrics(figures: Figures) -> Markup:
    if "metrics" not in figures:
        return Markup("")
    return join(
        [
            tag("h3", "All metrics"),
            image(
                figures["metrics"],
                "Small heat maps of every metric on record",
                "Each with its own colours, for the shape; numbers are in cells.csv. The outline is the region of "
                "the metric that chose, for comparison.",
                wide=True,
            ),
        ]
    )
