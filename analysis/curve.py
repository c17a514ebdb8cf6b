"""The figure along the ratio of the weights: one point for each distinct run. Pure.

Letters: S seeds, Y rays.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.draw import (
    DPI,
    GREY,
    INK,
    PAPER,
    RED,
    SMALL,
)
from analysis.landscape import Landscape
from analysis.plane import Plane, mean_over_seeds
from analysis.region import Spread, estimate_rays
from analysis.study import Study
from analysis.text import direction, number, ratio


def ratio_figure(study: Study) -> Figure:
    """The chosen measure against the ratio of the weights: one point for each distinct run, seeds as dots."""
    figure = Figure(figsize=(7.2, 3.9), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    shown = [(study.chosen, study.region.spread, "#30507c", "o", -0.45)]
    if study.test is not None and study.test_spread is not None:
        shown.append((study.test, study.test_spread, "#b5651d", "s", 0.45))
    landscape = study.region.landscape
    if landscape is not None and landscape.on_edge:
        _draw_band(axes, landscape)
    for plane, spread, colour, marker, shift in shown:
        _draw_curve(axes, plane, spread, colour, marker, shift)
    draw_ratio_axis(axes, study)
    plane = study.chosen
    _cut_outliers(axes, study, [plane for plane, *_ in shown])
    lowest, highest = axes.get_ylim()
    if math.isfinite(plane.base_score) and lowest <= plane.base_score <= highest:
        axes.axhline(plane.base_score, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        end = min(
            90.5, axes.get_xlim()[1]
        )  # words far outside of a few rays' angles leave no room to draw in
        axes.text(end, plane.base_score, "base model", fontsize=SMALL, color=GREY, va="bottom", ha="right")
    axes.set_title(
        f"{plane.metric.title.split(' (')[0]} against the ratio of the weights\n{plane.metric.unit}, "
        f"{direction(plane.metric)}; bars: one standard error, band: 95 % of the surface",
        fontsize=10,
        loc="left",
        color=INK,
    )
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def draw_region_angles(axes: Axes, landscape: Landscape) -> None:
    """The angles of the region in pale red."""
    angles = landscape.angle_Q
    bounds = np.concatenate([[angles[0]], (angles[1:] + angles[:-1]) / 2, [angles[-1]]])
    for place in np.flatnonzero(landscape.optimum.median_Q):
        low, high = float(bounds[place]), float(bounds[place + 1])
        axes.axvspan(low, max(high, low + 0.5), color=RED, alpha=0.10, linewidth=0, zorder=0.5)


def _draw_band(axes: Axes, landscape: Landscape) -> None:
    """The posterior of the score itself, mean and 95 %; prompt-only training left out."""
    draw_region_angles(axes, landscape)
    angles, there = landscape.angle_Q, landscape.response_Q > 0
    if there.sum() < 2:
        return
    scores_KQ = landscape.draws_KQ[:, there] / landscape.scale.factor
    low_Q, high_Q = np.quantile(scores_KQ, (0.025, 0.975), axis=0)
    axes.fill_between(angles[there], low_Q, high_Q, color="#c9d6e8", linewidth=0, zorder=1)
    axes.plot(angles[there], scores_KQ.mean(axis=0), color="#7d97bd", linewidth=1.2, zorder=1.5)


def _draw_curve(axes: Axes, plane: Plane, spread: Spread, colour: str, marker: str, shift: float) -> None:
    scores_YS = plane.scores_YS
    estimates = estimate_rays(scores_YS, spread)
    angles_Y = [ray.angle + shift for ray in plane.rays]
    split = plane.metric.name.split("_")[0]
    for angle, scores_S in zip(angles_Y, scores_YS, strict=True):
        if scores_S.size > 1:
            axes.plot(
                [angle] * scores_S.size,
                scores_S,
                linestyle="none",
                marker=".",
                markersize=4,
                color=colour,
                alpha=0.4,
                markeredgewidth=0,
            )
    there = [index for index, estimate in enumerate(estimates) if estimate.num_seeds]
    errors = [estimates[index].standard_error for index in there]
    axes.errorbar(
        [angles_Y[index] for index in there],
        [estimates[index].mean for index in there],
        yerr=None if any(map(math.isnan, errors)) else errors,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=0.0,
        elinewidth=1.4,
        capsize=2.5,
        label=split,
    )


def _cut_outliers(axes: Axes, study: Study, planes: list[Plane]) -> None:
    """Where prompt-only went so wrong that it would flatten the curve, an arrow with its number instead."""
    others = [index for index, ray in enumerate(study.chosen.rays) if math.isfinite(ray.ratio)]
    values = np.concatenate([plane.scores_YS[others].ravel() for plane in planes])
    values = values[np.isfinite(values)]
    if not values.size or len(others) == len(study.chosen.rays):
        return
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low)
    lowest, highest = axes.get_ylim()
    if not margin or highest - lowest < 2.5 * (high - low):
        return
    axes.set_ylim(low - margin, high + margin)
    means_Y = mean_over_seeds(study.chosen.scores_YS)
    for index, ray in enumerate(study.chosen.rays):
        mean = float(means_Y[index])
        if math.isfinite(ray.ratio) or not math.isfinite(mean) or low - margin <= mean <= high + margin:
            continue
        edge, arrow, side = (high, "↑", "top") if mean > high else (low, "↓", "bottom")
        text = f"{arrow} {number(mean, study.chosen.metric)}"
        axes.text(ray.angle - 1.0, edge, text, fontsize=SMALL, color=INK, ha="right", va=side)


def draw_ratio_axis(axes: Axes, study: Study) -> None:
    """Angles as ticks, named by the ratio of the weights."""
    labelled: list[tuple[float, str]] = []
    rays = sorted(study.chosen.rays, key=lambda ray: (ray.angle not in (0.0, 45.0, 90.0), ray.angle))
    for ray in rays:
        if all(abs(ray.angle - angle) > 4.5 for angle, _ in labelled):
            name = {0.0: "0\nIT", 45.0: "1\nIM", 90.0: "∞\nprompt only"}.get(ray.angle, ratio(ray))
            labelled.append((ray.angle, name))
    labelled.sort()
    axes.set_xticks([angle for angle, _ in labelled], [name for _, name in labelled], fontsize=8)
    axes.set_xlabel("prompt weight / response weight (spaced by angle)", color=INK)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
