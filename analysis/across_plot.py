"""Figures about several planes: maps over the weights, gains side by side, the trade-off, mean ranks. Pure.

Letters: Q places of the decision grid, P planes.

Prompt weight is on the vertical axis and response weight on the horizontal one, as in every figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from analysis.across import DECISIONS, Across, Pair, convention_of
from analysis.draw import DPI, GREY, INK, PAPER, RED, SMALL
from analysis.kernels import Floats
from analysis.optimum import Difference, Mask
from analysis.ranks import Ranks
from analysis.text import pair
from analysis.tradeoff import TradeOff

BLUE, ORANGE = "#30507c", "#b5651d"
_SIZE = 11  # places a side of the decision grid


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the figure of gains."""

    name: str
    claimed: float  # the best run minus the convention's run, chosen on the same scores
    posterior: Difference
    confirmed: tuple[float, float, float] | None = None  # mean, low, high; fresh seeds


def gains_figure(rows: Sequence[Row]) -> Figure:
    """For each plane what its best run claims, what the surface leaves of it, and what fresh seeds confirm."""
    figure = Figure(figsize=(7.0, 0.32 * len(rows) + 1.5), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))[::-1]
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.plot(
        [row.claimed for row in rows],
        places,
        linestyle="none",
        marker="x",
        color=RED,
        label="best run minus (0, 1): chosen and reported on the same scores",
    )
    means = np.array([row.posterior.mean for row in rows])
    errors = np.array(
        [[row.posterior.mean - row.posterior.low, row.posterior.high - row.posterior.mean] for row in rows]
    )
    axes.errorbar(
        means,
        places,
        xerr=np.maximum(errors.T, 0),
        linestyle="none",
        marker="o",
        markersize=4.5,
        color=BLUE,
        capsize=2.5,
        linewidth=1.3,
        label="surface at the recommended pair, 95 % interval (exploratory)",
    )
    for place, row in zip(places, rows, strict=True):
        if row.confirmed is not None:
            mean, low, high = row.confirmed
            axes.errorbar(
                mean,
                place - 0.22,
                xerr=[[mean - low], [high - mean]],
                marker="s",
                markersize=4.5,
                color=ORANGE,
                capsize=2.5,
            )
    if any(row.confirmed is not None for row in rows):
        axes.plot(
            [], [], marker="s", linestyle="none", color=ORANGE, label="fresh seeds, 95 % interval (confirmed)"
        )
    axes.set_yticks(places, [row.name for row in rows], fontsize=8)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("gain over (0, 1), points", color=INK, fontsize=9)
    axes.legend(frameon=False, fontsize=SMALL, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=1)
    _tidy(axes)
    return figure


def agreement_figure(across: Across) -> Figure:
    """How many planes are better than (0, 1) at each pair of weights, and how many are worse."""
    figure, (left, right) = _two_maps()
    number = max(len([plane for plane in across.planes if plane.has_convention]), 1)
    for axes, values_Q, colours, name in (
        (left, across.better_Q, colormaps["Greens"], "better"),
        (right, across.worse_Q, colormaps["Reds"], "worse"),
    ):
        scale = Normalize(0, number)
        _map(figure, axes, across.places_Q2, values_Q, colours, scale, whole=True)
        axes.set_title(f"planes that are {name} than (0, 1)\nP above 0.95; of {number}", **_TITLE)
    return figure


def pooled_figure(across: Across) -> Figure | None:
    """The mean gain of these planes with its region, and where a new plane would be near its best."""
    if across.common is None or across.new is None:
        return None
    figure, (left, right) = _two_maps()
    places_Q2 = across.places_Q2
    gain_Q = across.common.mean_Q - across.common.mean_Q[convention_of(places_Q2)]
    reach = max(
        1.5 * float(gain_Q.max()), 2 * across.epsilon
    )  # what goes badly wrong would leave all else one colour
    scale = TwoSlopeNorm(0.0, -reach, reach)
    _map(figure, left, places_Q2, np.clip(gain_Q, -reach, reach), colormaps["RdBu"], scale)
    _outline(left, places_Q2, across.common.median_Q)
    if across.recommended is not None:
        _star(left, np.array(across.recommended))
    left.set_title(
        "mean gain over (0, 1) of these planes, points\noutlined: region, star: recommended", **_TITLE
    )
    _map(figure, right, places_Q2, across.new.near_best_Q, colormaps["viridis"], Normalize(0, 1))
    _outline(right, places_Q2, across.new.median_Q)
    right.set_title(
        f"a new model on a new dataset:\nP(within {across.epsilon:g} points of its best)", **_TITLE
    )
    return figure


@dataclass(frozen=True, slots=True)
class SmallMap:
    """One plane's P(near the best) with what is marked on it."""

    name: str
    places_Q2: Floats
    near_best_Q: Floats
    region_Q: Mask
    recommended: Pair
    best_run: Pair | None = None


def many_maps_figure(maps: Sequence[SmallMap]) -> Figure:
    """P(near the best) of every plane, small; the region outlined, the recommended pair and the best run marked."""
    columns = min(len(maps), 3)
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(7.4, 2.35 * rows + 0.5), dpi=DPI, facecolor=PAPER, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = Normalize(0, 1)
    for axes in grid.flat[len(maps) :]:
        axes.set_visible(False)
    for axes, one in zip(grid.flat, maps, strict=False):
        _draw(axes, one.places_Q2, one.near_best_Q, colormaps["viridis"], scale)
        _outline(axes, one.places_Q2, one.region_Q)
        _star(axes, np.array(one.recommended))
        if one.best_run is not None:
            prompt, response = one.best_run
            axes.plot(response * 10, prompt * 10, marker="x", color=RED, markersize=6, markeredgewidth=1.6)
        axes.set_title(one.name, fontsize=8, color=INK, loc="left")
    bar = figure.colorbar(
        ScalarMappable(norm=scale, cmap=colormaps["viridis"]), ax=grid, fraction=0.02, pad=0.01, aspect=40
    )
    bar.set_label("P(near the best)", fontsize=8)
    bar.ax.tick_params(labelsize=SMALL)
    return figure


def trade_off_figure(places_Q2: Floats, found: TradeOff) -> Figure:
    """The curve of weighted optima: first family upwards, second to the right, bars one s.d."""
    figure = Figure(figsize=(6.4, 4.2), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    points = [weighted for weighted in found.distinct if places_Q2[weighted.place, 1] > 0] or list(
        found.distinct
    )
    axes.axhline(0, color=GREY, linewidth=0.7)
    axes.axvline(0, color=GREY, linewidth=0.7)
    axes.errorbar(
        [weighted.means[1] for weighted in points],
        [weighted.means[0] for weighted in points],
        xerr=[weighted.deviations[1] for weighted in points],
        yerr=[weighted.deviations[0] for weighted in points],
        color=BLUE,
        ecolor="#9db3d1",
        marker="o",
        markersize=5,
        linewidth=1.2,
        elinewidth=1,
    )
    last = (math.inf, math.inf)
    for weighted in points:
        here = (weighted.means[1], weighted.means[0])
        if abs(here[0] - last[0]) + abs(here[1] - last[1]) > 0.5:
            label = pair((float(places_Q2[weighted.place, 0]), float(places_Q2[weighted.place, 1])))
            axes.annotate(label, here, xytext=(6, 5), textcoords="offset points", fontsize=SMALL, color=INK)
            last = here
    axes.plot(0, 0, marker="^", color=INK, markersize=7)
    axes.annotate("(0, 1)", (0, 0), xytext=(6, -11), textcoords="offset points", fontsize=SMALL, color=INK)
    axes.set_ylabel(f"{found.families[0]}: gain, points", color=INK)
    axes.set_xlabel(f"{found.families[1]}: gain, points", color=INK)
    axes.set_title("weighted optima; bars: one standard deviation", **_TITLE)
    _tidy(axes)
    return figure


def ranks_figure(ranks: Ranks) -> Figure:
    """Mean ranks on one axis; a bar joins settings that can't be told apart."""
    number = len(ranks.names)
    order = np.argsort(ranks.mean_ranks, kind="stable")
    figure = Figure(figsize=(6.8, 0.27 * number + 0.22 * len(ranks.cliques) + 1.2), dpi=DPI, facecolor=PAPER)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    for line, k in enumerate(order):
        rank = ranks.mean_ranks[k]
        axes.plot([rank, rank], [0, -line - 1], color=GREY, linewidth=0.7)
        axes.plot(rank, 0, marker="o", color=BLUE, markersize=5)
        axes.text(
            rank + 0.05, -line - 1, f"{ranks.names[k]}   {rank:.2f}", fontsize=8, color=INK, va="center"
        )
    by_name = dict(zip(ranks.names, ranks.mean_ranks, strict=True))
    for line, clique in enumerate(ranks.cliques):
        ends = [by_name[name] for name in clique]
        axes.plot([min(ends) - 0.03, max(ends) + 0.03], [0.55 + 0.5 * line] * 2, color=RED, linewidth=3)
    axes.set_xlim(0.8, number + 0.9)
    axes.set_ylim(-number - 0.8, 0.9 + 0.5 * len(ranks.cliques))
    axes.set_yticks([])
    axes.set_xlabel("mean rank, 1 is best", color=INK)
    axes.set_title(
        f"{ranks.num_planes} planes; critical difference {ranks.critical_difference:.2f} ranks (5 %)",
        **_TITLE,
    )
    _tidy(axes)
    axes.spines["left"].set_visible(False)
    return figure


_TITLE = {"fontsize": 8.5, "color": INK, "loc": "left"}


def _two_maps() -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(7.4, 3.5), dpi=DPI, facecolor=PAPER, layout="constrained")
    return figure, figure.subplots(1, 2)


def _map(
    figure: Figure,
    axes: Axes,
    places_Q2: Floats,
    values_Q: Floats,
    colours: Colormap,
    scale: Normalize,
    *,
    whole: bool = False,
) -> None:
    _draw(axes, places_Q2, values_Q, colours, scale)
    axes.set_xlabel("response weight", fontsize=8, color=INK)
    axes.set_ylabel("prompt weight", fontsize=8, color=INK)
    bar = figure.colorbar(ScalarMappable(norm=scale, cmap=colours), ax=axes, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    if whole and scale.vmax is not None:
        bar.set_ticks(sorted({0, *np.linspace(0, scale.vmax, 6).round().astype(int).tolist()}))


def _draw(axes: Axes, places_Q2: Floats, values_Q: Floats, colours: Colormap, scale: Normalize) -> None:
    axes.imshow(
        _square(places_Q2, values_Q), origin="lower", cmap=colours, norm=scale, interpolation="nearest"
    )
    axes.set_xticks([0, 5, 10], ["0", "0.5", "1"])
    axes.set_yticks([0, 5, 10], ["0", "0.5", "1"])
    axes.tick_params(length=0, labelsize=SMALL, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _square(places_Q2: Floats, values_Q: Floats) -> Floats:
    """On the lattice, prompt weight down the rows, response weight along them; NaN where nothing is known.

    Decisions on the edge of the square stand for their ratio: a cell of the lattice takes the nearest angle's value.
    """
    grid = np.full((_SIZE, _SIZE), np.nan)
    on_edge = bool((places_Q2.max(axis=1) == 1.0).all())
    angles_Q = np.arctan2(places_Q2[:, 0], places_Q2[:, 1])
    for prompt, response in DECISIONS:
        distance_Q = (
            np.abs(angles_Q - math.atan2(prompt, response))
            if on_edge
            else np.abs(places_Q2 - (prompt, response)).max(axis=1)
        )
        same_Q = ((places_Q2 == 0) == (prompt == 0, response == 0)).all(axis=1)
        nearest = int(np.argmin(np.where(same_Q, distance_Q, np.inf)))
        if same_Q[nearest] and distance_Q[nearest] < 0.051:
            grid[round(prompt * 10), round(response * 10)] = values_Q[nearest]
    return grid


def _outline(axes: Axes, places_Q2: Floats, inside_Q: Mask) -> None:
    """A stroke around the places, on white so that it shows on any colour."""
    padded = np.pad(np.nan_to_num(_square(places_Q2, inside_Q.astype(float))) > 0.5, 1)
    for colour, width in ((PAPER, 3.6), (RED, 1.8)):
        line = {"color": colour, "linewidth": width, "solid_capstyle": "round"}
        for row, column in np.argwhere(padded[1:, :] != padded[:-1, :]):
            axes.plot([column - 1.5, column - 0.5], [row - 0.5] * 2, **line)
        for row, column in np.argwhere(padded[:, 1:] != padded[:, :-1]):
            axes.plot([column - 0.5] * 2, [row - 1.5, row - 0.5], **line)


def _star(axes: Axes, weights: Floats) -> None:
    axes.plot(
        weights[1] * 10,
        weights[0] * 10,
        marker="*",
        color=RED,
        markeredgecolor=PAPER,
        markersize=11,
        zorder=5,
    )


def _tidy(axes: Axes) -> None:
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
