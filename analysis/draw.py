"""Strokes that every figure of a plane is made of, and the way it becomes bytes.

Letters: P prompt weights, R response weights, Y rays.

Prompt weight is on the vertical axis and response weight on the horizontal one, so that the angle of a ray is
atan2(prompt weight, response weight) in every figure and a lighter prompt lies lower. Cells are drawn at
equal distances whatever the weights. Only matplotlib's Figure objects are used: no window, no global state,
and the same study gives the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Colormap, Normalize, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Transform
from PIL import Image

from analysis.plane import Floats, Plane
from analysis.study import Study
from analysis.text import direction, number, weight

DPI = 120
INK, GREY, PAPER, RED = "#1b1f24", "#737b85", "#ffffff", "#d1242f"
LIGHT = "#eceef1"
MAX_LABELLED = 12  # cells a side up to which numbers are printed
SMALL = 7.5


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG with a palette: a third of the size, and without a date or a version in it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    stream = io.BytesIO()
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette.save(stream, "PNG")
    return stream.getvalue()


def new_figure(plane: Plane, *, extra_height: float = 0.0) -> tuple[Figure, Axes]:
    """A figure whose cells are wide enough for `0.123`, within what fits a page."""
    columns, rows = plane.response_weights_R.size, plane.prompt_weights_P.size
    width = min(max(0.78 * columns + 1.9, 4.6), 9.5)
    height = min(max(0.62 * rows + 1.55, 2.6), 8.5) + extra_height
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout="constrained")
    return figure, figure.add_subplot()


def colour_limits(values: Iterable[float], better: str) -> tuple[float, float, str]:
    """Lower and upper end of the colours, and which end is cut (matplotlib's word for a colour bar's arrow).

    A few cells that went badly wrong would leave all others one colour, so the bad end stops at three times
    the distance between the best and the middle. Numbers in cells are always exact.
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return 0.0, 1.0, "neither"
    low, high, middle = finite[0], finite[-1], finite[len(finite) // 2]
    if high <= low:
        margin = abs(low) * 0.05 or 0.05
        return low - margin, high + margin, "neither"
    if better == "higher" and middle < high and high - low > 3 * (high - middle):
        return high - 3 * (high - middle), high, "min"
    if better == "lower" and middle > low and high - low > 3 * (middle - low):
        return low, low + 3 * (middle - low), "max"
    return low, high, "neither"


def colours_for(metric_better: str) -> Colormap:
    """Cividis, which keeps its order for colour-blind readers and in grey; bright is the better end."""
    return colormaps["cividis_r" if metric_better == "lower" else "cividis"]


def draw_cells(
    axes: Axes, plane: Plane, values_PR: Floats, colours: Colormap, scale: Normalize, plain: int | None = None
) -> None:
    """Colour what is there, hatch what is absent, leave blank what was never asked; ray `plain` is grey."""
    axes.set_xlim(-0.5, plane.response_weights_R.size - 0.5)
    axes.set_ylim(-0.5, plane.prompt_weights_P.size - 0.5)
    draw_squares(axes, plane, values_PR, colours, scale, axes.transData, plain)


def draw_squares(
    axes: Axes,
    plane: Plane,
    values_PR: Floats,
    colours: Colormap,
    scale: Normalize,
    place: Transform,
    plain: int | None = None,
) -> None:
    """The cells alone; `place` maps column and row to the figure."""
    squares, faces, absent = [], [], []
    colours_PR4 = colours(scale(values_PR))
    for (p, r), value in np.ndenumerate(values_PR):
        if not plane.asked_PR[p, r]:
            continue
        if math.isfinite(value):
            squares.append(_square(p, r, 0.5))
            faces.append(to_rgba(LIGHT) if plane.ray_PR[p, r] == plain else colours_PR4[p, r])
        else:
            absent.append(_square(p, r, 0.46))
    drawn = PolyCollection(squares, facecolors=faces, edgecolors=PAPER, linewidths=1.2, transform=place)
    axes.add_collection(drawn, autolim=False)
    hatched = PolyCollection(
        absent, facecolors="#f3f4f6", edgecolors=GREY, linewidths=0.6, hatch="////", transform=place
    )
    axes.add_collection(hatched, autolim=False)


def _square(p: int, r: int, half: float) -> list[tuple[float, float]]:
    return [(r - half, p - half), (r + half, p - half), (r + half, p + half), (r - half, p + half)]


def name_axes(axes: Axes, plane: Plane) -> None:
    """Weights as tick labels; at most a dozen each."""
    for set_ticks, weights, label in (
        (axes.set_xticks, plane.response_weights_R, axes.set_xlabel),
        (axes.set_yticks, plane.prompt_weights_P, axes.set_ylabel),
    ):
        every = max(1, math.ceil(weights.size / MAX_LABELLED))
        positions = list(range(0, weights.size, every))
        set_ticks(positions, [weight(float(weights[position])) for position in positions])
        label("response weight" if set_ticks == axes.set_xticks else "prompt weight", color=INK)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_rays(axes: Axes, plane: Plane) -> None:
    """A line from the origin through the cells that are one run."""
    corner = plane.cell_at(0.0, 0.0)
    for ray in plane.rays:
        if len(ray.cells) < 2:
            continue
        points = [*([corner] if corner is not None and not plane.asked_PR[corner] else []), *ray.cells]
        axes.plot(
            [r for _, r in points], [p for p, _ in points], color=PAPER, linewidth=3.0, alpha=0.55, zorder=2
        )
        axes.plot(
            [r for _, r in points],
            [p for p, _ in points],
            color=INK,
            linewidth=0.9,
            alpha=0.8,
            zorder=2.1,
            marker="o",
            markersize=2.4,
            markevery=slice(len(points) - len(ray.cells), None),
        )


def draw_outline(
    axes: Axes,
    plane: Plane,
    members_Y: Iterable[bool],
    *,
    thin: bool = False,
    place: Transform | None = None,
) -> None:
    """The border of the region: one stroke around its cells, on white so that it shows on any colour."""
    inside_PR = np.zeros(plane.asked_PR.shape, dtype=bool)
    for ray, is_member in zip(plane.rays, members_Y, strict=True):
        if is_member:
            for cell in ray.cells:
                inside_PR[cell] = True
    padded = np.pad(inside_PR, 1)
    horizontal, vertical = [], []
    for p, r in np.argwhere(padded[1:, :] != padded[:-1, :]):
        horizontal.append(([r - 1.5, r - 0.5], [p - 0.5, p - 0.5]))
    for p, r in np.argwhere(padded[:, 1:] != padded[:, :-1]):
        vertical.append(([r - 0.5, r - 0.5], [p - 1.5, p - 0.5]))
    strokes = ((RED, 1.4, 4.1),) if thin else ((PAPER, 4.6, 4.0), (RED, 2.4, 4.1))
    for colour, width, order in strokes:
        axes.add_collection(
            LineCollection(
                [list(zip(*line, strict=True)) for line in horizontal + vertical],
                colors=colour,
                linewidths=width,
                capstyle="round",
                zorder=order,
                clip_on=False,
                transform=place or axes.transData,
            )
        )


def write_cell(
    axes: Axes,
    cell: tuple[int, int],
    text: str,
    background: object,
    *,
    bold: bool = False,
    faint: bool = False,
) -> None:
    """Text in a cell over its own colour, so that ray lines stop short of it."""
    written = axes.text(
        cell[1],
        cell[0],
        text,
        ha="center",
        va="center",
        fontsize=SMALL + 0.5 * bold,
        zorder=3,
        color=GREY if faint else ink_on(background),
        linespacing=1.25,
        fontweight="bold" if bold else "normal",
        bbox={"facecolor": background, "edgecolor": "none", "pad": 1.2},
    )
    written.set_in_layout(
        False
    )  # it lies within the axes: the layout needn't measure it, twice for each figure


def ink_on(background: object) -> str:
    """Black or white, whichever reads on `background`."""
    red, green, blue = to_rgb(background)  # pyright: ignore[reportArgumentType]
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.45 else PAPER


def draw_marks(axes: Axes, study: Study) -> None:
    """A star for the best cell; IT and IM for the two conventions; the base model in its corner."""
    plane = study.chosen
    if study.region.best is not None and not study.all_equal:
        p, r = plane.rays[study.region.best].cells[-1]
        axes.plot(
            r + 0.33,
            p + 0.31,
            marker="*",
            color=RED,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            markersize=12,
            zorder=5,
        )
    for label, weights in (("IT", (0.0, 1.0)), ("IM", (1.0, 1.0))):
        cell = plane.cell_at(*weights)
        if cell is not None and plane.asked_PR[cell]:
            axes.text(
                cell[1] - 0.44,
                cell[0] + 0.42,
                label,
                ha="left",
                va="top",
                fontsize=7,
                fontweight="bold",
                color=INK,
                zorder=5,
                bbox={"facecolor": PAPER, "edgecolor": INK, "linewidth": 0.5, "pad": 1.0},
            )


def draw_base(axes: Axes, plane: Plane, text: str = "") -> None:
    """The base model at (0, 0), with its score or `text`: measured, never trained, never a candidate."""
    corner = plane.cell_at(0.0, 0.0)
    if corner is None or plane.asked_PR[corner] or not math.isfinite(plane.base_score):
        return
    axes.add_patch(
        Rectangle(
            (corner[1] - 0.46, corner[0] - 0.46),
            0.92,
            0.92,
            facecolor=PAPER,
            edgecolor=GREY,
            linewidth=0.8,
            linestyle=(0, (3, 2)),
            zorder=2.5,
        )
    )
    axes.text(
        corner[1],
        corner[0],
        f"base\n{text or number(plane.base_score, plane.metric)}",
        ha="center",
        va="center",
        fontsize=SMALL,
        color=INK,
        zorder=3,
    )


def title(axes: Axes, plane: Plane, *, line: str = "", suffix: str = "") -> None:
    """What it is, then its unit and its direction, wrapped to the width of the figure."""
    metric = plane.metric
    figure = axes.get_figure(root=True)
    room = int(12.5 * (figure.get_size_inches()[0] if figure is not None else 5.0))
    lines = [line or metric.title, f"{metric.unit}, {direction(metric)}{suffix}"]
    text = "\n".join(textwrap.fill(part, room) for part in lines)
    axes.set_title(text, fontsize=9, color=INK, loc="left")


def draw_colour_bar(
    figure: Figure, axes: Axes, scale: Normalize, colours: Colormap, cut: str = "neither"
) -> None:
    """The key of the colours; an arrow where an end was cut."""
    bar = figure.colorbar(
        ScalarMappable(norm=scale, cmap=colours), ax=axes, extend=cut, fraction=0.05, pad=0.02
    )
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(labelsize=SMALL, length=2)
