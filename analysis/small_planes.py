"""Many small planes in one figure, each in its own colours.

They share one pair of axes in pixels: a figure of fifty planes takes a third of the time that fifty axes take.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.transforms import Affine2D

from analysis.draw import DPI, INK, PAPER, colour_limits, colours_for, draw_outline, draw_squares
from analysis.plane import Plane
from analysis.text import number

_WIDTH, _ROW_HEIGHT, _MARGIN = 9.6, 2.15, 0.42  # inches
_ABOVE, _BELOW = 6.0, 4.0  # points between a plane and its words


def small_planes(planes: Sequence[Plane], columns: int, members_Y: Iterable[bool] | None) -> Figure:
    """The planes row by row, the region outlined in each; under each its range."""
    rows = math.ceil(len(planes) / columns)
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * rows), dpi=DPI, facecolor=PAPER)
    margin = _MARGIN / (_ROW_HEIGHT * rows)
    grid = GridSpec(
        rows, columns, left=0.05, right=0.985, bottom=margin, top=1 - margin, wspace=0.22, hspace=0.42
    )
    bottoms, tops, lefts, rights = grid.get_grid_positions(figure)
    width, height = figure.bbox.size
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    for index, plane in enumerate(planes):
        row, column = divmod(index, columns)
        _draw(
            axes,
            plane,
            (lefts[column] * width, rights[column] * width),
            (bottoms[row] * height, tops[row] * height),
            members_Y,
        )
    return figure


def _draw(
    axes: Axes,
    plane: Plane,
    x: tuple[float, float],
    y: tuple[float, float],
    members_Y: Iterable[bool] | None,
) -> None:
    """One plane between these pixels."""
    num_rows, num_columns = plane.asked_PR.shape
    place = (
        Affine2D()
        .translate(0.5, 0.5)
        .scale((x[1] - x[0]) / num_columns, (y[1] - y[0]) / num_rows)
        .translate(x[0], y[0])
    )
    means_PR = plane.mean_PR
    low, high, _ = colour_limits(means_PR[plane.asked_PR].tolist(), plane.metric.better)
    colours = colours_for(plane.metric.better)
    draw_squares(axes, plane, means_PR, colours, Normalize(low, high, clip=True), place + axes.transData)
    if members_Y is not None:
        draw_outline(axes, plane, members_Y, thin=True, place=place + axes.transData)
    point = DPI / 72
    title = plane.metric.title.replace(" (", "\n(")
    axes.text(x[0], y[1] + _ABOVE * point, title, fontsize=7.5, color=INK, ha="left", va="baseline")
    finite = means_PR[np.isfinite(means_PR)]
    ends = number(float(finite.min()), plane.metric), number(float(finite.max()), plane.metric)
    said = f"{' to '.join(ends)}{_short_unit(plane)}; {_arrow(plane)}"
    axes.text(sum(x) / 2, y[0] - _BELOW * point, said, fontsize=6.5, color=INK, ha="center", va="top")


def _arrow(plane: Plane) -> str:
    return {"higher": "bright: higher, better", "lower": "bright: lower, better"}.get(
        plane.metric.better, "bright: higher"
    )


def _short_unit(plane: Plane) -> str:
    return "" if plane.metric.unit.startswith("share") else f" {plane.metric.unit}"
