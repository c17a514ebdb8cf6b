"""The figures: heat maps of scores, of differences to instruction tuning, of all metrics. Pure.

Letters: P prompt weights, R response weights, S seeds, Y rays.
"""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from analysis.draw import (
    LIGHT,
    MAX_LABELLED,
    colour_limits,
    colours_for,
    draw_base,
    draw_cells,
    draw_colour_bar,
    draw_marks,
    draw_outline,
    draw_rays,
    name_axes,
    new_figure,
    title,
    write_cell,
)
from analysis.plane import Plane
from analysis.region import Estimate, difference_between, estimate_rays, seed_spread
from analysis.small_planes import small_planes
from analysis.study import CONVENTIONAL, Study
from analysis.text import number, pair, signed


def plane_figure(study: Study, plane: Plane) -> Figure:
    """Heat map of seed means, with the region and the best that validation chose."""
    figure, axes = new_figure(plane)
    means_PR = plane.mean_PR
    low, high, cut = colour_limits(means_PR[plane.asked_PR].tolist(), plane.metric.better)
    colours, scale = colours_for(plane.metric.better), Normalize(low, high, clip=True)
    draw_cells(axes, plane, means_PR, colours, scale)
    name_axes(axes, plane)
    draw_rays(axes, plane)
    draw_base(axes, plane)
    estimates = estimate_rays(plane.scores_YS, seed_spread(plane.scores_YS))
    common = _common_error(estimates, len(plane.seeds_S))
    for ray, estimate in zip(plane.rays, estimates, strict=True):
        if not estimate.num_seeds or max(plane.asked_PR.shape) > MAX_LABELLED:
            continue
        text = number(estimate.mean, plane.metric)
        if common is None and math.isfinite(estimate.standard_error):
            text += f"\n±{_short(estimate.standard_error, plane)}"
        if estimate.num_seeds < len(plane.seeds_S):
            text += f"\nn={estimate.num_seeds}"
        for cell in ray.cells:
            write_cell(axes, cell, text, colours(scale(estimate.mean)), bold=cell == ray.cells[-1])
    _finish(study, axes)
    error = (
        f"; ±{number(common, plane.metric)} (s.e., {len(plane.seeds_S)} seeds)" if common is not None else ""
    )
    title(axes, plane, suffix=error)
    draw_colour_bar(figure, axes, scale, colours, cut)
    return figure


def difference_figure(study: Study, plane: Plane) -> Figure | None:
    """Heat map of paired differences to (0, 1); None if (0, 1) wasn't asked or has no score.

    Differences within two standard errors of zero are in brackets and grey: they say nothing either way.
    """
    conventional = plane.ray_at(*CONVENTIONAL)
    scores_YS = plane.scores_YS
    if conventional is None or not np.isfinite(scores_YS[conventional]).any():
        return None
    spread = seed_spread(scores_YS)
    differences = [difference_between(scores_S, scores_YS[conventional], spread) for scores_S in scores_YS]
    figure, axes = new_figure(plane)
    values_PR = np.full(plane.asked_PR.shape, np.nan)
    for ray, difference in zip(plane.rays, differences, strict=True):
        for cell in ray.cells:
            values_PR[cell] = difference.mean
    limit = _symmetric_limit([difference.mean for difference in differences], plane.metric.better)
    scale = TwoSlopeNorm(0.0, -limit, limit)
    colours = colormaps["PuOr_r" if plane.metric.better == "lower" else "PuOr"]
    draw_cells(axes, plane, np.clip(values_PR, -limit, limit), colours, scale, plain=conventional)
    name_axes(axes, plane)
    draw_rays(axes, plane)
    draw_base(
        axes, plane, signed(plane.base_score - float(np.nanmean(scores_YS[conventional])), plane.metric)
    )
    for index, (ray, difference) in enumerate(zip(plane.rays, differences, strict=True)):
        if not math.isfinite(difference.mean) or max(plane.asked_PR.shape) > MAX_LABELLED:
            continue
        text, faint = _difference_text(difference, plane, index == conventional)
        colour = colours(scale(float(np.clip(difference.mean, -limit, limit))))
        for cell in ray.cells:
            write_cell(axes, cell, text, LIGHT if index == conventional else colour, faint=faint)
    _finish(study, axes)
    title(
        axes,
        plane,
        line=f"{plane.metric.title} minus instruction tuning {pair(CONVENTIONAL)}",
        suffix="; purple is better" if plane.metric.better != "none" else "",
    )
    cut = "both" if np.nanmax(np.abs(values_PR)) > limit else "neither"
    draw_colour_bar(figure, axes, scale, colours, cut)
    return figure


def metrics_figure(study: Study) -> Figure | None:
    """Every metric on record as a small plane of its own colours; None for a single metric."""
    planes = [plane for plane in study.planes.values() if np.isfinite(plane.scores_PRS).any()]
    if len(planes) < 2:
        return None
    planes.sort(
        key=lambda plane: plane.metric.name.partition("_")[2] != study.chosen.metric.name.partition("_")[2]
    )
    measures = list(dict.fromkeys(plane.metric.name.partition("_")[2] for plane in planes))
    planes.sort(key=lambda plane: measures.index(plane.metric.name.partition("_")[2]))  # splits side by side
    columns = 3 if any(plane.metric.name.startswith("robustness_") for plane in planes) else 4
    members_Y = None if study.all_equal or study.region.members_Y is None else study.region.members_Y.tolist()
    return small_planes(planes, columns, members_Y)


def _finish(study: Study, axes: Axes) -> None:
    if study.region.members_Y is not None and not study.all_equal:
        draw_outline(axes, study.chosen, study.region.members_Y.tolist())
    draw_marks(axes, study)


def _common_error(estimates: tuple[Estimate, ...], num_seeds: int) -> float | None:
    """The standard error, if it is every ray's: then the title says it once instead of every cell."""
    errors = {estimate.standard_error for estimate in estimates if estimate.num_seeds}
    complete = all(estimate.num_seeds in (0, num_seeds) for estimate in estimates)
    return errors.pop() if complete and len(errors) == 1 and all(map(math.isfinite, errors)) else None


def _short(value: float, plane: Plane) -> str:
    return number(value, plane.metric).removeprefix("0")


def _difference_text(difference: Estimate, plane: Plane, is_itself: bool) -> tuple[str, bool]:
    if is_itself:
        return "0\nby definition", True
    text = signed(difference.mean, plane.metric)
    if not math.isfinite(difference.standard_error):
        return text, False
    faint = abs(difference.mean) <= 2 * difference.standard_error
    text = f"({text})" if faint else text
    return f"{text}\n±{_short(difference.standard_error, plane)}", faint


def _symmetric_limit(values: list[float], better: str) -> float:
    """The largest good difference, twice over, or the largest difference if that is smaller."""
    finite = [value for value in values if math.isfinite(value)]
    largest = max(map(abs, finite), default=0.0)
    good = [abs(value) for value in finite if (value > 0) == (better == "higher")]
    middle = float(np.median(np.abs(finite))) if finite else 0.0
    return min(largest, max(2 * max(good, default=0.0), 2 * middle)) or 1e-6
