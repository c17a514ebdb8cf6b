"""The report's part about all planes together: figures, sections, Markdown. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.across_plot import agreement_figure, pooled_figure, ranks_figure, trade_off_figure
from analysis.across_sections import (
    Figures,
    across_finding,
    agreement_section,
    factors_section,
    interval_text,
    points_text,
    ranks_section,
    trade_off_section,
)
from analysis.across_summary import across_summary
from analysis.draw import png_bytes
from analysis.joint import Joint
from analysis.page import Markup, bullets, join, tag
from analysis.text import pair

PREFIX = "across_"  # of the figures' names


def joint_figures(joint: Joint | None) -> dict[str, bytes]:
    """Figures by file name; none where planes may not be compared."""
    if joint is None or joint.across is None:
        return {}
    made = {
        "pooled": pooled_figure(joint.across),
        "agreement": agreement_figure(joint.across),
        "trade_off": trade_off_figure(joint.across.places_Q2, joint.trade_off) if joint.trade_off else None,
        "ranks": ranks_figure(joint.ranks) if joint.ranks else None,
    }
    return {PREFIX + name: png_bytes(figure) for name, figure in made.items() if figure is not None}


def joint_sections(joint: Joint | None, figures: Mapping[str, bytes]) -> Markup:
    """Everything that is said across planes; nothing for one plane."""
    if joint is None:
        return Markup("")
    if joint.across is None:
        return join(
            [
                tag("h2", "Does it hold across planes?", id="across"),
                tag("div", tag("strong", "Not compared"), bullets(joint.refusals), class_="warn"),
            ]
        )
    mine: Figures = {
        name.removeprefix(PREFIX): png for name, png in figures.items() if name.startswith(PREFIX)
    }
    return join(
        [
            agreement_section(joint.across, mine),
            tag("p", unit_note(joint), class_="note"),
            trade_off_section(joint.across.places_Q2, joint.trade_off, joint.correlation, mine),
            _families(joint),
            ranks_section(joint.ranks, mine),
            factors_section(joint.factors, joint.unknown),
        ]
    )


def joint_finding(joint: Joint | None) -> str:
    """One sentence for a terminal; empty for one plane."""
    if joint is None:
        return ""
    return across_finding(joint.across) if joint.across is not None else f"{'; '.join(joint.refusals)}."


def joint_summary(joint: Joint | None) -> dict[str, Any]:
    """The key `across` of region.json, or nothing."""
    if joint is None:
        return {}
    if joint.across is None:
        return {"across": {"not_said": list(joint.refusals)}}
    return {"across": {**across_summary(joint.across), "unit": unit_note(joint)}}


def joint_markdown(joint: Joint | None) -> list[str]:
    """Lines for an appendix; none for one plane."""
    if joint is None:
        return []
    lines = ["", "## Across planes", "", joint_finding(joint), ""]
    if joint.across is None:
        return lines
    found = joint.across
    lines += [f"- not said: {silence}" for silence in found.silences]
    if found.common_gain is not None and found.new_gain is not None and found.recommended is not None:
        lines += [
            "",
            "| population | gain of " + pair(found.recommended) + " over (0, 1), points, 95 % |",
            "|---|---|",
            f"| these planes | {interval_text(found.common_gain)} |",
            f"| a new model on a new dataset | {interval_text(found.new_gain)} |",
        ]
    if found.left_out:
        lines += ["", "| left out | choice of the others | gain there, points \u00b1 s.e. |", "|---|---|---|"]
        lines += [
            f"| {one.factor} {one.level} | {pair(one.choice)} | {points_text(one.gain.mean)} \u00b1 "
            f"{one.gain.standard_error:.2f} |"
            for one in found.left_out
        ]
    return [*lines, "", unit_note(joint)]


def unit_note(joint: Joint) -> str:
    """What a point is."""
    return (
        f"A point is {1 / abs(joint.scale.factor):.3g} {joint.metric.unit} of {joint.metric.title}; "
        f"positive is better. "
        "Choices come from validation"
        + (", gains of choices from test." if joint.is_judged_on_test else " alone.")
    )


def _families(joint: Joint) -> Markup:
    if joint.trade_off is None or not joint.families:
        return Markup("")
    said: Sequence[str] = [
        f"{family}: mean of {', '.join(names)}" for family, names in joint.families.items()
    ]
    return tag(
        "p", "; ".join(said) + ". Metrics of unlike units or directions are never averaged.", class_="note"
    )
