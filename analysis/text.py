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
    return (f"{plural(total, 'run')} of this plane {'is' if total == 1 else 'are'} absent: "
            + ", ".join(f"{len(names)} {status}" for status, names in absent.items()))


def direction(metric: Metric) -> str:
    """higher is better, lower is better, or nothing to prefer."""
    return "no preferred direction" if metric.better == "none" else f"{metric.better} is better"


def finding(study: Study) -> str:
    """The result in a sentence or three, no stronger than the records allow."""
    region, plane = study.region, study.chosen
    title = plane.metric.title
    if region.best is None:
        return f"No run with {title} has finished; there is nothing to say yet."
    if study.all_equal:
        same = number(region.estimates[region.best].mean, plane.metric)
        return f"Every finished run has the same {title}, {same} {plane.metric.unit}: nothing can be distinguished."
    ray, estimate = plane.rays[region.best], region.estimates[region.best]
    extreme = "highest" if plane.metric.better == "higher" else "lowest"
    where = f"prompt weight {weight(ray.prompt_weight)}, response weight {weight(ray.response_weight)}"
    named = {study.conventional: ", instruction tuning itself", study.instruction_modelling: ", Instruction Modelling"}
    sentence = (f"{title[:1].upper()}{title[1:]} is {extreme} at {where} (ratio {ratio(ray)}"
                f"{named.get(region.best, '')}): {with_error(estimate, plane.metric)} {plane.metric.unit}, "
                f"{plural(estimate.num_seeds, 'seed')}.")
    return " ".join(part for part in (sentence, _region_sentence(study), _test_sentence(study)) if part)


def _region_sentence(study: Study) -> str:
    region, plane = study.region, study.chosen
    if region.members_Y is None:
        return f"No region: {region.why_none}."
    members = [plane.rays[index] for index in range(len(plane.rays)) if region.members_Y[index]]
    num_cells = sum(len(ray.cells) for ray in members)
    done = int((~region.undecided_Y).sum())
    if len(members) == 1:
        told = f"All other {done - 1} distinct settings are more than {region.standard_errors:g} standard errors behind."
    else:
        told = (f"{len(members)} of {done} distinct settings ({plural(num_cells, 'cell')}) "
                f"can't be told from it, ratios {_ratio_range(members)} (provisional).")
    if study.conventional is not None and region.members_Y[study.conventional] \
            and study.conventional != region.best:
        told += " Instruction tuning (0, 1) is among them: no sign here that weighting the prompt helps."
    return told


def _ratio_range(members: list[Ray]) -> str:
    ordered = sorted(members, key=lambda ray: ray.angle)
    return f"{ratio(ordered[0])} to {ratio(ordered[-1])}"


def _test_sentence(study: Study) -> str:
    gain = study.gain("best", "test")
    if gain is None or study.test is None or gain.is_same_ray or not math.isfinite(gain.difference.mean):
        return ""
    return (f"On test it differs from instruction tuning {pair(CONVENTIONAL)} by "
            f"{with_error(gain.difference, study.test.metric, sign=True)} ({EXPLORATORY}).")


def mark(study: Study, ray: int) -> str:
    """What a ray is called: best, IT, IM; empty for the others."""
    names = [name for name, index in (("best", study.region.best), ("IT", study.conventional),
                                      ("IM", study.instruction_modelling)) if index == ray]
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
            sign = "*" if ray == region.best else "+" if region.members_Y is not None and region.members_Y[ray] else " "
            value = float(means_PR[p, r])
            cells.append(f"{number(value, plane.metric) if math.isfinite(value) else '-'}{sign}")
        lines.append(f"{weight(float(plane.prompt_weights_P[p])):>8} |" + "".join(f"{cell:>9}" for cell in cells))
    axis = "".join(f"{weight(float(value)) + ' ':>9}" for value in plane.response_weights_R)
    key = "* best" + ("  + in the provisional region" if region.members_Y is not None else "")
    return "\n".join([f"{plane.metric.title}, {direction(plane.metric)}; rows prompt weight, columns response weight",
                      *lines, f"{'':>8}  {axis}", f"{'':>8}  {key}  - absent  (base model)"])
