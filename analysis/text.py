"""Numbers and findings as words. A number that isn't there is never printed as 0. Pure."""

import math
from collections.abc import Iterable, Mapping

from analysis.landscape import Landscape
from analysis.optimum import Mask
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
    """The finding in one sentence, then the region, the noise, test, and what fresh seeds say."""
    region, plane = study.region, study.chosen
    title, unit = plane.metric.title, plane.metric.unit
    if region.best is None:
        return (f"No run with {title} has finished; there is nothing to say yet.",)
    estimate, ray = region.estimates[region.best], plane.rays[region.best]
    if study.all_equal:
        same = number(estimate.mean, plane.metric)
        return (f"Every finished run has the same {title}, {same} {unit}: nothing can be distinguished.",)
    if region.landscape is None:
        only = with_error(estimate, plane.metric)
        where = pair((ray.prompt_weight, ray.response_weight))
        return (f"Only {where} has finished: {title} {only} {unit}; there is nothing to compare it with.",)
    found = (
        _confirmed_sentence(study),
        _best_sentence(study),
        _region_sentence(study),
        _noise_sentence(study),
        _test_sentence(study),
    )
    return tuple(sentence for sentence in found if sentence)


def _best_sentence(study: Study) -> str:
    region, plane = study.region, study.chosen
    assert region.best is not None
    ray, metric = plane.rays[region.best], plane.metric
    where = f"prompt weight {weight(ray.prompt_weight)}, response weight {weight(ray.response_weight)}"
    score = f"{with_error(region.estimates[region.best], metric)} {metric.unit}"
    gain, num_rays = region.gain(region.best), int((~region.undecided_Y).sum())
    extreme = "Highest" if metric.better == "higher" else "Lowest"
    if region.best == study.conventional:
        return (
            f"Instruction tuning (0, 1) is the best of {num_rays} settings: {metric.title} {score}; no other is "
            "preferred by the surface."
        )
    if gain is None:
        return f"{extreme} {metric.title} at {where}: {score} (instruction tuning (0, 1) is not there to compare with)."
    name = ", Instruction Modelling," if region.best == study.instruction_modelling else ""
    said = f"{posterior_gain(study, region.best)}, {EXPLORATORY}"
    if region.recommended == region.best:
        return f"{where.capitalize()}{name} beats instruction tuning (0, 1) on {metric.title}: {said}."
    return (
        f"Nothing is distinguishable from instruction tuning (0, 1) at this noise: the best setting on {metric.title}, "
        f"{where}{name}, differs from it by {said}."
    )


def posterior_gain(study: Study, ray: int) -> str:
    """The posterior's difference of a ray to (0, 1): mean, 95 % interval, unit, P(better)."""
    landscape, gain = study.region.landscape, study.region.gain(ray)
    if landscape is None or gain is None:
        return ABSENT
    metric = study.chosen.metric
    mean, *ends = (landscape.scale.value(points) for points in (gain.mean, gain.low, gain.high))
    low, high = sorted(ends)
    return (
        f"{signed(mean, metric)} [{signed(low, metric)}, {signed(high, metric)}] {metric.unit} "
        f"(95 %; P(better) {probability(gain.positive)})"
    )


def probability(value: float) -> str:
    """Two digits, and never a certainty that draws can't give."""
    return "> 0.99" if value > 0.995 else "< 0.01" if value < 0.005 else f"{value:.2f}"


def _region_sentence(study: Study) -> str:
    region, plane, landscape = study.region, study.chosen, study.region.landscape
    if landscape is None or region.members_Y is None:
        return ""
    epsilon = f"{number(landscape.scale.epsilon, plane.metric)} {plane.metric.unit}"
    there = int((~region.undecided_Y).sum())
    count = f"{int(region.members_Y.sum())} of {there} settings"
    if study.conventional is not None and region.members_Y[study.conventional]:
        count += ", (0, 1) among them"
    median_Q, outer_Q = landscape.optimum.median_Q, landscape.optimum.outer_Q
    inside = f"within {epsilon} of the best with probability 1/2 or more: {ratios_of(landscape, median_Q)} ({count})"
    if not median_Q.any():
        inside = f"no place is within {epsilon} of the best with probability 1/2"
    outside = "nothing can be ruled out"
    if not outer_Q.all():
        outside = f"anything but {ratios_of(landscape, outer_Q)} can be ruled out (90 %)"
    return f"Region: {inside}; {outside}."


def ratios_of(landscape: Landscape, chosen_Q: Mask) -> str:
    """The ratios of some places, as words."""
    span, is_prompt_only = landscape.ratios(chosen_Q), bool((chosen_Q & (landscape.response_Q == 0)).any())
    if span is None:
        return "prompt-only training"
    return f"prompt / response weight {interval(span)}" + (" and prompt only" if is_prompt_only else "")


def interval(ends: tuple[float, float]) -> str:
    """Two ratios, or one."""
    low, high = (f"{end:.2g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _noise_sentence(study: Study) -> str:
    noise, metric, landscape = study.region.noise, study.chosen.metric, study.region.landscape
    if landscape is None or not math.isfinite(noise.run) or not noise.run > 0:
        return ""
    seeds = max((estimate.num_seeds for estimate in study.region.estimates), default=1)
    gain = study.region.gain(study.region.best)
    aim = max(landscape.scale.epsilon, 0.0 if gain is None else landscape.scale.size(gain.mean))
    more = noise.seeds_needed(aim) - seeds
    further = (
        f"{plural(more, 'more seed')} for each of two settings would find a gain of {number(aim, metric)} four times "
        "in five"
        if more > 0
        else f"a gain of {number(aim, metric)} is found four times in five"
    )
    return (
        f"Noise: with {plural(seeds, 'seed')} each, two settings differ by up to "
        f"{number(noise.resolved(seeds), metric)} {metric.unit} by chance (95 %); {further}."
    )


def _confirmed_sentence(study: Study) -> str:
    found = next((one for one in study.confirmed if one.over == CONVENTIONAL), None)
    if found is None:
        return ""
    metric, contrast = study.chosen.metric, found.contrast
    verdict = "beats" if found.is_better else "is not shown to beat"
    low, high = sorted((found.low, found.high))
    return (
        f"Confirmed with {plural(contrast.num_of, 'fresh seed')} each: {pair(found.of)} {verdict} instruction tuning "
        f"(0, 1) on {metric.title}, {signed(found.mean, metric)} [{signed(low, metric)}, {signed(high, metric)}] "
        f"{metric.unit} (95 %)."
    )


def _test_sentence(study: Study) -> str:
    gain = study.gain("best", "test")
    if gain is None or study.test is None or gain.is_same_ray or not math.isfinite(gain.difference.mean):
        return ""
    metric, difference = study.test.metric, gain.difference
    sign = 1 if metric.better == "higher" else -1
    how = "better" if sign * difference.mean > 0 else "worse"
    if not abs(difference.mean) > 2 * difference.standard_error:  # NaN: one seed
        how = "not resolved" if math.isfinite(difference.standard_error) else f"{how}, with unknown error"
    return (
        f"On test rows, seed by seed, the best minus {pair(CONVENTIONAL)} is "
        f"{with_error(difference, metric, sign=True)} {metric.unit}: {how}."
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
    key = "* best" + ("  + in the region" if region.members_Y is not None else "")
    return "\n".join(
        [
            f"{plane.metric.title}, {direction(plane.metric)}; rows prompt weight, columns response weight",
            *lines,
            f"{'':>8}  {axis}",
            f"{'':>8}  {key}  - absent  (base model)",
        ]
    )
