"""The report's sections about one plane, as HTML values. Pure."""

import math
from collections.abc import Sequence

from analysis.comparisons import (
    Figures,
    all_metrics_section,
    diagnostics_section,
    differences_section,
    noise_section,
    ratio_section,
    rays_section,
)
from analysis.page import Markup, bullets, image, join, table, tag
from analysis.study import EXPLORATORY, Study
from analysis.table import Table
from analysis.text import (
    finding_sentences,
    group_name,
    number,
    pair,
    plural,
    posterior_gain,
    probability,
    with_error,
)
from sweep.spec import Status

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
            noise_section(study, figures),
            _plane(study, figures),
            differences_section(study, figures),
            ratio_section(study, figures),
            rays_section(study),
            diagnostics_section(study),
            all_metrics_section(figures),
            _asked(table_, study),
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
        surface = (
            ""
            if region.best is None or region.best == study.conventional
            else posterior_gain(study, region.best)
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
                surface,
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
                    "its gain, surface",
                    "region",
                    "best minus (0, 1), test",
                    "seeds",
                    "runs finished",
                ],
                rows,
                numeric=(5, 6),
            ),
            tag(
                "p",
                f"Weights are (prompt, response). Gains: {EXPLORATORY}. Each plane has its own best: the "
                "same weights need not hold elsewhere.",
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
    if "near_best" in figures:
        shown.append(
            image(
                figures["near_best"],
                "Probability of being within epsilon of the best",
                "Red: the region, probability 1/2 or more. Dashed: outside it can be ruled out (90 %). Circles: what "
                "was trained; star: the best of them. Between circles the surface speaks.",
            )
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
    if region.landscape is not None:
        shares = region.landscape.posterior.model_weights
        named = ", ".join(f"{name} {probability(share)}" for name, share in shares.items())
        words.append(f"Probability of each surface: {named}.")
        found = region.landscape.optimum
        regret = number(region.landscape.scale.size(found.regret), metric)
        words.append(f"Expected loss of choosing the surface's best place: {regret} {metric.unit}.")
    if math.isfinite(spread.seed):
        words.append(
            f"Seed standard deviation of one run, pooled over settings: {number(spread.seed, metric)} "
            f"({spread.seed_freedom} degrees of freedom)."
        )
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
        parts.append("Red outline: the region.")
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
        ["aliases", f"{plural(study.num_cells - study.num_runs, 'cell')} answered by another cell's run"],
        ["finished", f"{study.num_finished:,} of {plural(study.num_runs, 'run')}"],
    ]
    rows = [row for row in rows if row[0] != "aliases" or study.num_cells > study.num_runs]
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
