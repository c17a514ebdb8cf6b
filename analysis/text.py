"""Numbers and findings as words. A number that isn't there is never printed as 0. Pure."""

import math
from collections.abc import Iterable, Mapping

from analysis.plane import Plane, Ray
from analysis.region import Estimate
from analysis.study import CONVENTIONAL, EXPLORATORY, Study
from sweep.spec import Status
from train.metrics import Metric

ABSENT = "absent"


def decimals(metric: Metric) -> int:
    """Digits after the point: shares, nats and bits need three, tokens one."""
    return 1 if metric.unit == "tokens" else 3


def number(value: float, metric: Metric) -> str:
    """A value of the metric, without unit; "absent" for NaN, and no minus before zero."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:.{decimals(metric)}f}"
    return text.lstrip("-") if float(text) == 0 else text


def signed(value: float, metric: Metric) -> str:
    """A difference, with its sign; exact zero has none."""
    if not math.isfinite(value):
        return ABSENT
    text = f"{value:+.{decimals(metric)}f}"
    return text[1:] if float(text) == 0 else text


def with_error(estimate: Estimate, metric: Metric, *, sign: bool = False) -> str:
    """`mean +/- standard error`; without the second where nothing was measured twice."""
    mean = signed(estimate.mean, metric) if sign else number(estimate.mean, metric)
    if not math.isfinite(estimate.mean) or not math.isfinite(estimate.standard_error):
        return mean
    return f"{mean} ± {number(estimate.standard_error, metric)}"


def weight(value: float) -> str:
    """A weight as people write it: 0.25, 1, 0."""
    return f"{value:.6g}"


def pair(weights: tuple[float, float]) -> str:
    """(prompt weight, response weight)."""
    return f"({weight(weights[0])}, {weight(weights[1])})"


def ratio(ray: Ray) -> str:
    """prompt weight / response weight, in three digits."""
    return "prompt only" if math.isinf(ray.ratio) else f"{ray.ratio:.3g}"


def cells_of(plane: Plane, ray: Ray) -> list[tuple[float, float]]:
    """The weights of a ray's cells, from the origin outwards."""
    return [plane.weights(cell) for cell in ray.cells]


def group_name(group: tuple[str, str, Iterable[tuple[str, object]]]) -> str:
    """Model, dataset and settings on one line."""
    model, dataset, settings = group
    return ", ".join([f"{model} on {dataset}", *(f"{key}={value}" for key, value in settings)])


def plural(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def absent_sentence(absent: Mapping[Status, tuple[str, ...]]) -> str:
    """How many runs are absent, by status; empty if none is."""
    total = sum(len(names) for names in absent.values())
    if not total:
        return ""
    return f"{plural(total, 'run')} of this plane {'is' if total == 1 else 'are'} absent: " + ", ".join(
        f"{len(names)} {status}" for status, names in absent.items()
    )


def direction(metric: Metric) -> str:
    """higher is better, lower is better, or nothing to prefer."""
    return "no preferred direction" if metric.better == "none" else f"{metric.better} is better"


def finding(study: Study) -> str:
    """The result, no stronger than the records allow: the first sentence, then what qualifies it."""
    return " ".join(finding_sentences(study))


def finding_sentences(study: Study) -> tuple[str, ...]:
    """The finding in one sentence, and further ones about the convention and about test."""
    region, plane = study.region, study.chosen
    title = plane.metric.title
    if region.best is None:
        return (f"No run with {title} has finished; there is nothing to say yet.",)
    estimate, ray = region.estimates[region.best], plane.rays[region.best]
    if study.all_equal:
        same = number(estimate.mean, plane.metric)
        return (
            f"Every finished run has the same {title}, {same} {plane.metric.unit}: nothing can be "
            "distinguished.",
        )
    extreme = "Highest" if plane.metric.better == "higher" else "Lowest"
    named = {
        study.conventional: ", instruction tuning",
        study.instruction_modelling: ", Instruction Modelling",
    }
    told = _told_apart(study)
    fewer = any(0 < other.num_seeds < estimate.num_seeds for other in region.estimates)
    seeds = plural(estimate.num_seeds, "seed") + (", among the settings with as many" if fewer else "")
    first = (
        f"{extreme} {title} at prompt weight {weight(ray.prompt_weight)}, response weight "
        f"{weight(ray.response_weight)}{named.get(region.best, '')}: {with_error(estimate, plane.metric)} "
        f"{plane.metric.unit} over {seeds}{f'; {told}' if told else ''}."
    )
    return tuple(part for part in (first, _convention_sentence(study), _test_sentence(study)) if part)


def _told_apart(study: Study) -> str:
    region, plane = study.region, study.chosen
    if region.members_Y is None:
        return "no region" if region.best is not None else ""
    members = [ray for ray, is_member in zip(plane.rays, region.members_Y, strict=True) if is_member]
    done = int((~region.undecided_Y).sum())
    if len(members) == 1:
        return (
            f"all {done - 1} other distinct settings are over {region.standard_errors:g} standard errors "
            "behind"
        )
    ordered = sorted(members, key=lambda ray: ray.angle)
    return (
        f"{len(members) - 1} of {done - 1} other distinct settings can't be told from it "
        f"(provisional region: {plural(sum(len(ray.cells) for ray in members), 'cell')}, ratios "
        f"{ratio(ordered[0])} to {ratio(ordered[-1])})"
    )


def _convention_sentence(study: Study) -> str:
    members, conventional = study.region.members_Y, study.conventional
    if (
        members is None
        or conventional is None
        or conventional == study.region.best
        or not members[conventional]
    ):
        return ""
    return (
        "Instruction tuning (0, 1) is among them: validation gives no clear sign that weighting the prompt "
        "helps."
    )


def _test_sentence(study: Study) -> str:
    gain = study.gain("best", "test")
    if gain is None or study.test is None or gain.is_same_ray or not math.isfinite(gain.difference.mean):
        return ""
    metric, difference = study.test.metric, gain.difference
    sign = 1 if metric.better == "higher" else -1
    how = "better" if sign * difference.mean > 0 else "worse"
    if not abs(difference.mean) > study.region.standard_errors * difference.standard_error:  # NaN: one seed
        how = "not resolved" if math.isfinite(difference.standard_error) else f"{how}, with unknown error"
    return (
        f"On test its difference to instruction tuning {pair(CONVENTIONAL)} is "
        f"{with_error(difference, metric, sign=True)} {metric.unit}: {how} ({EXPLORATORY})."
    )


def mark(study: Study, ray: int) -> str:
    """What a ray is called: best, IT, IM; empty for the others."""
    names = [
        name
        for name, index in (
            ("best", study.region.best),
            ("IT", study.conventional),
            ("IM", study.instruction_modelling),
        )
        if index == ray
    ]
    return ", ".join(names)


def text_plane(study: Study) -> str:
    """The plane for a terminal: prompt weight downwards, response weight to the right.

    `*` the best run, `+` the rest of the region, `-` asked and absent, blank never asked.
    """
    plane, region, means_PR = study.chosen, study.region, study.chosen.mean_PR
    lines = []
    for p in reversed(range(plane.prompt_weights_P.size)):
        cells = []
        for r in range(plane.response_weights_R.size):
            ray = plane.ray_PR[p, r]
            if ray < 0:
                is_base = plane.weights((p, r)) == (0.0, 0.0) and math.isfinite(plane.base_score)
                cells.append(f"({number(plane.base_score, plane.metric)})" if is_base else "")
                continue
            is_member = region.members_Y is not None and region.members_Y[ray]
            sign = "*" if ray == region.best else "+" if is_member else " "
            sign = " " if study.all_equal else sign
            value = float(means_PR[p, r])
            cells.append(f"{number(value, plane.metric) if math.isfinite(value) else '-'}{sign}")
        lines.append(
            f"{weight(float(plane.prompt_weights_P[p])):>8} |" + "".join(f"{cell:>9}" for cell in cells)
        )
    axis = "".join(f"{weight(float(value)) + ' ':>9}" for value in plane.response_weights_R)
    key = "* best" + ("  + in the provisional region" if region.members_Y is not None else "")
    return "\n".join(
        [
            f"{plane.metric.title}, {direction(plane.metric)}; rows prompt weight, columns response weight",
            *lines,
            f"{'':>8}  {axis}",
            f"{'':>8}  {key}  - absent  (base model)",
        ]
    )
