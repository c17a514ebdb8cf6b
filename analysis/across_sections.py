"""The report's sections about several planes together, as HTML values. Pure."""

import math
from collections.abc import Mapping, Sequence

from analysis.across import SURE, Across, LeftOut
from analysis.factors import Association
from analysis.kernels import Floats
from analysis.optimum import Difference
from analysis.page import Markup, bullets, image, join, table, tag
from analysis.ranks import Ranks
from analysis.text import pair, plural
from analysis.tradeoff import TradeOff

Figures = Mapping[str, bytes]  # by role: gains, agreement, pooled, maps, trade_off, ranks

# of its 95 % gain intervals over simulated worlds: tests/bench/results/planes.json
POOLED_COVERAGE = "0.78 to 0.97"


def points_text(value: float, digits: int = 2) -> str:
    """A signed number of points; no minus before zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def tight(text: str) -> str:
    """Text that a narrow column doesn't break."""
    return text.replace(" ", "\u00a0")


def interval_text(found: Difference) -> str:
    """mean [low, high], points."""
    return f"{points_text(found.mean)} [{points_text(found.low)}, {points_text(found.high)}]"


def across_finding(across: Across) -> str:
    """One sentence for all planes, no stronger than the runs allow."""
    gain, new, weights = across.common_gain, across.new_gain, across.recommended
    if gain is None or new is None or weights is None:
        return "Nothing can be said across planes: " + "; ".join(across.silences) + "."
    if weights[0] == 0:
        return (
            "Over these planes no prompt weight is better on average than none: instruction tuning (0, 1) "
            "is the "
            "recommended setting."
        )
    resolved = gain.low > 0 or gain.high < 0
    lead = (
        f"On average over these planes {pair(weights)} gains {interval_text(gain)} points over (0, 1)"
        if resolved
        else f"On average over these planes {pair(weights)} can't be told from (0, 1): "
        f"{interval_text(gain)} points"
    )
    outlook = f"for a model and a dataset that weren't run it is {interval_text(new)}, P(better) = {new.positive:.2f}"
    carries = "and it carries over" if new.low > 0 else "so it can't be promised elsewhere"
    return f"{lead}; {outlook}, {carries} (exploratory)."


def agreement_section(across: Across, figures: Figures) -> Markup:
    """The maps, the shares and the region of several planes."""
    parts: list[object] = [
        tag("h2", "Does it hold across planes?", id="across"),
        tag("p", across_finding(across), class_="finding"),
    ]
    if across.silences:
        parts.append(tag("div", tag("strong", "Not said"), bullets(across.silences), class_="warn"))
    if "pooled" in figures:
        parts.append(
            image(
                figures["pooled"],
                "Maps of the pooled gain and of a new plane's best region",
                "Left: the mean surface of these planes; the colour is cut at losses as large as the gains. "
                "Right: a plane nobody ran. Dark everywhere: these planes don't say where its best region is.",
                wide=True,
            )
        )
    if "agreement" in figures:
        parts.append(
            image(
                figures["agreement"],
                "Numbers of planes better and worse than the convention",
                f"A plane counts where its own surface gives P above {SURE:g}. A universal region would "
                f"be dark on the "
                "left and blank on the right.",
                wide=True,
            )
        )
    if across.pooled is not None:
        parts.append(_shares(across))
    if across.left_out:
        parts.append(_left_out(across.left_out))
    return join(parts)


def _shares(across: Across) -> Markup:
    pooled = across.pooled
    if pooled is None:
        return Markup("")
    meaning = {
        "common": "the same on every plane",
        "model": "its model's, on every dataset",
        "dataset": "its dataset's, with every model",
        "interaction": "its own: holds for one model on one dataset",
    }
    rows = [
        [name, text, f"{pooled.shares[name]:.2f}", "{:.2f} to {:.2f}".format(*pooled.share_intervals[name])]
        for name, text in meaning.items()
    ]
    rays = pooled.model_weights.get("ray", 0.0) + pooled.model_weights.get("polar", 0.0)
    return join(
        [
            tag("h3", "How much of a surface is shared"),
            table(
                ["part", "of a plane's surface that is", "share of variance", "95 %"], rows, numeric=(2, 3)
            ),
            tag(
                "p",
                f"One Gaussian process over all runs with unequal noise by plane; P(only the ratio "
                f"matters, or nearly) = "
                f"{rays:.2f}; effective sample size {pooled.effective_sample_size:.0f}. In simulated "
                f"studies with known "
                f"truth its 95 % gain intervals held the truth in {POOLED_COVERAGE} of planes, least "
                f"where small effects "
                "of scale exist: read them as narrow.",
                class_="note",
            ),
        ]
    )


def _left_out(found: Sequence[LeftOut]) -> Markup:
    parts: list[object] = [
        tag("h3", "Chosen on the others, judged where unseen"),
        tag(
            "p",
            "Each line: the pair that all other planes recommend, and what it gained on the planes that "
            "were left out. "
            "Nothing was selected on the scores shown.",
            class_="note",
        ),
    ]
    for factor, heading in (
        ("model", "left-out model"),
        ("dataset", "left-out dataset"),
        ("plane", "left-out plane"),
    ):
        mine = [one for one in found if one.factor == factor]
        if not mine:
            continue
        rows = [
            [
                one.level,
                tight(pair(one.choice)),
                f"{points_text(one.gain.mean)} \u00b1 {one.gain.standard_error:.2f}",
                f"{one.num_positive} of {one.num_planes}",
            ]
            for one in mine
        ]
        planes = sum(one.num_planes for one in mine)
        mean = sum(one.gain.mean * one.num_planes for one in mine) / planes
        error = math.sqrt(sum((one.gain.standard_error * one.num_planes) ** 2 for one in mine)) / planes
        positive = sum(one.num_positive for one in mine)
        rows.append(["mean", "", f"{points_text(mean)} \u00b1 {error:.2f}", f"{positive} of {planes}"])
        parts.append(
            table(
                [heading, "choice", "gain, points \u00b1 s.e.", "planes that gain"],
                rows,
                numeric=(2, 3),
                classes=[""] * len(mine) + ["best"],
            )
        )
    return join(parts)


def trade_off_section(
    places_Q2: Floats, found: TradeOff | None, correlation: float, figures: Figures
) -> Markup:
    """What one family of benchmarks costs another."""
    if found is None:
        return Markup("")
    rows = []
    for weighted in found.distinct:
        place = (float(places_Q2[weighted.place, 0]), float(places_Q2[weighted.place, 1]))
        gains = [
            f"{points_text(mean, 1)} \u00b1 {deviation:.1f}"
            for mean, deviation in zip(weighted.means, weighted.deviations, strict=True)
        ]
        rows.append(
            [
                f"{weighted.share:.2f}",
                tight(pair(place)),
                *map(tight, gains),
                f"{found.not_dominated_Q[weighted.place]:.2f}",
            ]
        )
    words = (
        "One pair is best for every weighting: nothing is traded."
        if found.agree
        else f"The best pair depends on what counts: from {rows[0][1]} for {found.families[1]} alone to "
        f"{rows[-1][1]} for "
        f"{found.families[0]} alone. There is no single best region; this curve is the answer."
    )
    noise = (
        ""
        if math.isnan(correlation)
        else f" What single runs deviate by correlates by {correlation:+.2f} between families."
    )
    return join(
        [
            tag("h2", "What one ability costs another"),
            tag("p", words),
            image(
                figures["trade_off"],
                "Trade-off curve",
                "Prompt-only, far off the chart, is in the table only.",
            )
            if "trade_off" in figures
            else "",
            table(
                [f"weight on {found.families[0]}", "best pair", *found.families, "P(not dominated)"],
                rows,
                numeric=range(2, 3 + len(found.families)),
            ),
            tag(
                "p",
                "Gains over (0, 1), points \u00b1 posterior s.d., means over planes and over the "
                "benchmarks of a family. The "
                f"rest of the weight is on {found.families[1]}. P(not dominated): no other pair is better "
                f"by over half of "
                f"epsilon on every family.{noise}",
                class_="note",
            ),
        ]
    )


def ranks_section(ranks: Ranks | None, figures: Figures) -> Markup:
    """A few settings, named beforehand, by their ranks over planes."""
    if ranks is None:
        return Markup("")
    cliques = "; ".join(", ".join(clique) for clique in ranks.cliques)
    told = f"Can't be told apart: {cliques}." if cliques else "All of them differ."
    return join(
        [
            tag("h2", "Settings named beforehand, by rank"),
            image(
                figures["ranks"],
                "Critical-difference diagram of mean ranks",
                f"A bar joins settings that can't be told apart. {told}",
            )
            if "ranks" in figures
            else "",
            tag(
                "p",
                f"{plural(len(ranks.names), 'setting')} on {plural(ranks.num_planes, 'plane')}; p = "
                f"{ranks.p_value:.2g} for no "
                f"difference at all. Ranks of all cells at once would have no power. {told}",
                class_="note",
            ),
        ]
    )


def factors_section(found: Sequence[Association], unknown: Sequence[str] = ()) -> Markup:
    """What the best ratio goes with."""
    if not found and not unknown:
        return Markup("")
    rows: list[Sequence[object]] = [
        [
            one.name,
            one.num_planes,
            one.num_levels,
            "does not vary"
            if math.isnan(one.correlation)
            else f"{one.correlation:+.2f} [{one.low:+.2f}, {one.high:+.2f}]",
            "" if math.isnan(one.p_value) else f"{one.p_value:.2f}",
            "" if one.is_told or math.isnan(one.correlation) else "too few levels to tell a trend",
        ]
        for one in found
    ]
    rows += [[name, "", "", "absent", "", "not on record"] for name in unknown]
    return join(
        [
            tag("h2", "What the best ratio goes with"),
            table(
                ["property", "planes", "levels", "Spearman with the best angle", "p", ""],
                rows,
                numeric=(1, 2, 3, 4),
            ),
            tag(
                "p",
                "Intervals: where each plane's optimum may be, given these planes. p: permuting the "
                "levels. Positive: more "
                "prompt weight where the property is larger.",
                class_="note",
            ),
        ]
    )
