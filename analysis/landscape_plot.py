"""Figures of a plane's surface: where the best may be, what each ratio gains, how noisy a run is. Pure.

Letters: Q places of the decision grid, Y rays.
"""

import itertools
import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.curve import draw_ratio_axis, draw_region_angles
from analysis.draw import DPI, GREY, INK, PAPER, RED, SMALL, draw_colour_bar
from analysis.landscape import Landscape
from analysis.study import CONVENTIONAL, INSTRUCTION_MODELLING, Study
from analysis.text import direction, number

BLUE, PALE = "#30507c", "#c9d6e8"
_NEAR = "viridis"


def near_best_figure(study: Study) -> Figure | None:
    """P(within epsilon of the best) over the plane: wedges where only the ratio was trained, else patches."""
    landscape = study.region.landscape
    if landscape is None:
        return None
    figure = Figure(figsize=(5.2, 4.3), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    colours, scale = colormaps[_NEAR], Normalize(0, 1)
    near_best_Q = landscape.optimum.near_best_Q
    patches = _wedges(landscape) if landscape.on_edge else _patches(landscape)
    axes.add_collection(
        PolyCollection(patches, facecolors=colours(near_best_Q), edgecolors="face", linewidths=0.3)
    )
    _outline(axes, landscape, patches)
    _draw_trained(axes, study, landscape)
    widest = max(float(landscape.prompt_Q.max()), float(landscape.response_Q.max()))
    axes.set(xlim=(-0.05 * widest, 1.08 * widest), ylim=(-0.05 * widest, 1.08 * widest), aspect="equal")
    axes.set_xlabel("response weight", color=INK)
    axes.set_ylabel("prompt weight", color=INK)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, colors=INK)
    epsilon = f"{number(landscape.scale.epsilon, study.chosen.metric)} {study.chosen.metric.unit}"
    axes.set_title(f"P(within {epsilon} of the best)", fontsize=9, color=INK, loc="left")
    draw_colour_bar(figure, axes, scale, colours)
    return figure


def _wedges(landscape: Landscape) -> list[np.ndarray]:
    """One triangle or quadrilateral from the origin for each place, bounded half-way to its neighbours."""
    angles = np.arctan2(landscape.prompt_Q, landscape.response_Q)
    bounds = np.concatenate([[angles[0]], (angles[1:] + angles[:-1]) / 2, [angles[-1]]])
    thin = math.radians(1.0)
    bounds[0], bounds[-1] = max(bounds[0] - thin, 0.0), min(bounds[-1] + thin, math.pi / 2)

    def edge(angle: float) -> tuple[float, float]:
        p, r = math.sin(angle), math.cos(angle)
        return r / max(p, r), p / max(p, r)

    found = []
    for low, high in itertools.pairwise(bounds.tolist()):
        corner = [(1.0, 1.0)] if low < math.pi / 4 < high else []
        found.append(np.array([(0.0, 0.0), edge(low), *corner, edge(high)]))
    return found


def _patches(landscape: Landscape) -> list[np.ndarray]:
    """One square for each place, as wide as the finest step between places."""
    steps = np.concatenate([np.diff(np.unique(side)) for side in (landscape.prompt_Q, landscape.response_Q)])
    half = float(np.median(steps[steps > 1e-9])) / 2 if steps.size else 0.05
    return [
        np.array([(r - half, p - half), (r + half, p - half), (r + half, p + half), (r - half, p + half)])
        for p, r in zip(landscape.prompt_Q.tolist(), landscape.response_Q.tolist(), strict=True)
    ]


def _outline(axes: Axes, landscape: Landscape, patches: list[np.ndarray]) -> None:
    """Red along the border of the region; dashed white along what can't be ruled out."""
    for chosen_Q, colour, style, width in (
        (landscape.optimum.outer_Q, PAPER, (0, (4, 2)), 1.2),
        (landscape.optimum.median_Q, RED, "-", 2.0),
    ):
        counts: dict[tuple, int] = {}
        for patch, is_in in zip(patches, chosen_Q, strict=True):
            if is_in:
                for first, second in itertools.pairwise(
                    [*patch.round(9).tolist(), patch[0].round(9).tolist()]
                ):
                    key = tuple(sorted((tuple(first), tuple(second))))
                    counts[key] = counts.get(key, 0) + 1
        for (first, second), count in counts.items():
            if count == 1:
                axes.plot(
                    *zip(first, second, strict=True), color=colour, linestyle=style, linewidth=width, zorder=3
                )


def _draw_trained(axes: Axes, study: Study, landscape: Landscape) -> None:
    trained = {run.weights for run in landscape.runs}
    axes.plot(
        [r for _, r in trained],
        [p for p, _ in trained],
        linestyle="none",
        marker="o",
        markersize=4,
        color=PAPER,
        markeredgecolor=INK,
        markeredgewidth=0.8,
        zorder=4,
        clip_on=False,
    )
    best = landscape.place_Y[landscape.best]
    axes.plot(
        landscape.response_Q[best],
        landscape.prompt_Q[best],
        marker="*",
        color=RED,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        markersize=15,
        zorder=5,
        clip_on=False,
    )
    for label, (p, r) in (("IT", CONVENTIONAL), ("IM", INSTRUCTION_MODELLING)):
        if (p, r) in trained:
            axes.annotate(
                label,
                (r, p),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                fontweight="bold",
                color=INK,
                zorder=6,
            )


def gain_figure(study: Study) -> Figure | None:
    """Posterior gain over (0, 1) against the ratio, with its 95 % interval, beside the raw difference of means."""
    landscape, conventional = study.region.landscape, study.conventional
    if landscape is None or conventional is None or landscape.place_Y[conventional] < 0:
        return None
    metric, value = study.chosen.metric, landscape.scale.value
    figure = Figure(figsize=(7.2, 3.9), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    gain_KQ = landscape.draws_KQ - landscape.draws_KQ[:, [int(landscape.place_Y[conventional])]]
    middle_Q = value(1.0) * gain_KQ.mean(axis=0)
    low_Q, high_Q = np.sort(value(1.0) * np.quantile(gain_KQ, (0.025, 0.975), axis=0), axis=0)
    epsilon = landscape.scale.epsilon
    axes.axhspan(-epsilon, epsilon, color="#dde1e6", linewidth=0, zorder=0.4)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    has_response_Q = landscape.response_Q > 0
    if landscape.on_edge:
        draw_region_angles(axes, landscape)
        for chosen_Q in (has_response_Q, ~has_response_Q):
            angle = landscape.angle_Q[chosen_Q]
            if angle.size > 1:
                axes.fill_between(
                    angle, low_Q[chosen_Q], high_Q[chosen_Q], color=PALE, linewidth=0, zorder=1.5
                )
                axes.plot(angle, middle_Q[chosen_Q], color=BLUE, linewidth=1.4, zorder=2)
    rows = [place for place in landscape.place_Y.tolist() if place >= 0]
    shown = rows if not landscape.on_edge else [row for row in rows if not has_response_Q[row]]
    if shown:
        axes.errorbar(
            landscape.angle_Q[shown],
            middle_Q[shown],
            yerr=[middle_Q[shown] - low_Q[shown], high_Q[shown] - middle_Q[shown]],
            linestyle="none",
            color=BLUE,
            elinewidth=1.2,
            marker="_",
            markersize=7,
        )
    _draw_raw(axes, study, landscape, conventional)
    others = [row for row in rows if has_response_Q[row]]
    _limit(axes, low_Q[others], high_Q[others], epsilon)
    draw_ratio_axis(axes, study)
    axes.set_title(
        f"{metric.title.split(' (')[0]}: difference to instruction tuning (0, 1)\n{metric.unit}, {direction(metric)}; "
        "line and band: posterior mean and 95 %",
        fontsize=10,
        loc="left",
        color=INK,
    )
    return figure


def _draw_raw(axes: Axes, study: Study, landscape: Landscape, conventional: int) -> None:
    origin = study.region.estimates[conventional].mean
    suspects = {run.ray for run in landscape.suspects}
    for index, estimate in enumerate(study.region.estimates):
        if estimate.num_seeds:
            axes.plot(
                study.chosen.rays[index].angle,
                estimate.mean - origin,
                marker="x" if index in suspects else "o",
                markersize=4.5,
                color=RED if index in suspects else INK,
                markerfacecolor="none",
                linestyle="none",
                zorder=3,
                label="mean of seeds" if index == conventional else None,
            )
    axes.legend(frameon=False, fontsize=8, loc="best")


def _limit(axes: Axes, low: np.ndarray, high: np.ndarray, epsilon: float) -> None:
    """Prompt-only training may be far off: the axis follows the others."""
    if low.size:
        bottom, top = min(float(low.min()), -epsilon), max(float(high.max()), epsilon)
        margin = 0.08 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)


def noise_figure(study: Study) -> Figure | None:
    """Every estimate of one run's noise, and how large a difference of two settings must be, by seeds."""
    noise, metric, landscape = study.region.noise, study.chosen.metric, study.region.landscape
    if landscape is None or not math.isfinite(noise.run) or not noise.run > 0:
        return None
    figure = Figure(figsize=(7.2, 2.9), dpi=DPI, facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2)
    bars = [
        ("items, known", noise.evaluation, None),
        (f"scale checks ({noise.num_checks})", noise.check, None),
        (f"seeds ({noise.seed_freedom} d.f.)", noise.seed, None),
        ("surface, beyond items", noise.inferred, (noise.inferred_low, noise.inferred_high)),
        ("one run in a difference", noise.run, None),
    ]
    shown = [bar for bar in bars if math.isfinite(bar[1])]
    for row, (_, size, ends) in enumerate(shown):
        last = row == len(shown) - 1
        left.barh(row, size, color=BLUE if last else PALE, height=0.62)
        if ends is not None:
            left.plot(ends, (row, row), color=INK, linewidth=1.0)
        edge = max(size, ends[1] if ends else 0.0)
        left.text(edge, row, f" {number(size, metric)}", va="center", fontsize=SMALL, color=INK)
    left.set_yticks(range(len(shown)), [name for name, *_ in shown], fontsize=8)
    left.margins(x=0.22)
    left.locator_params(axis="x", nbins=4)
    left.set_title(f"Standard deviation of one run\n{metric.unit}", fontsize=9, loc="left", color=INK)
    seeds = range(1, 13)
    right.plot(seeds, [noise.detected(n) for n in seeds], color=BLUE, label="a true gain, found 4 times in 5")
    right.plot(
        seeds, [noise.resolved(n) for n in seeds], color=BLUE, linestyle=":", label="beyond chance (95 %)"
    )
    have = max((estimate.num_seeds for estimate in study.region.estimates), default=1)
    right.axvline(have, color=RED, linewidth=1.0)
    right.text(have + 0.15, right.get_ylim()[1], "this sweep", color=RED, fontsize=SMALL, va="top")
    right.set_ylim(0)
    right.set_xticks([1, 3, 6, 9, 12])
    right.set_xlabel("seeds of each of two settings", fontsize=8, color=INK)
    right.set_title(f"How large a difference must be\n{metric.unit}", fontsize=9, loc="left", color=INK)
    right.legend(frameon=False, fontsize=SMALL)
    for axes in (left, right):
        axes.tick_params(labelsize=8, length=2, colors=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def seeds_table(study: Study) -> list[list[str]]:
    """Gains and the seeds that each of two settings needs to find them four times in five."""
    noise, metric, landscape = study.region.noise, study.chosen.metric, study.region.landscape
    if landscape is None or not noise.run > 0:
        return []
    epsilon = landscape.scale.epsilon
    return [
        [number(times * epsilon, metric), f"{noise.seeds_needed(times * epsilon):,}"]
        for times in (0.5, 1, 2, 4)
    ]
