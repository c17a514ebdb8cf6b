"""Answers: the next runs of a plane, or that its region is known."""

import math
from collections.abc import Sequence
from typing import Any

from analysis.search.adaptive import Belief, believe
from analysis.search.questions import Question, Told, chosen_metrics
from analysis.search.sampler import KnowledgeGradientSampler
from analysis.search.scales import EPSILON_POINTS, scale_of
from analysis.search.space import Space, space_of
from analysis.search.studies import make_study, quiet, with_guessed_ends
from analysis.surface import FULL
from train.metrics import Metric


def answer(question: Question) -> dict[str, Any]:
    """{"proposals": [{"weights", "settings", "expected"}], "is_known", "why", "metrics"}; see `sweep.searching`.

    Raises   AnalysisError for a metric that can't choose.
    """
    metrics = chosen_metrics(question.metrics, question.told)
    names = [metric.name for metric in metrics]
    space = space_of(question)
    told = [
        run
        for run in with_guessed_ends(question.told, metrics)
        if space.values_of(run) and all(math.isfinite(run.metrics.get(name, math.nan)) for name in names)
    ]
    belief = believe(space.places, told, metrics, question.seed) if told and not space.others else None
    why = _known(question, belief, told, metrics)
    if why:  # a quick fit that happened to be sure is no claim yet
        careful = believe(space.places, told, metrics, question.seed, FULL)
        why = _known(question, careful, told, metrics)
    proposals = [] if why else _proposals(question, space, told, metrics, belief)
    return {"proposals": proposals, "is_known": bool(why), "why": why, "metrics": names}


def warm_up(question: Question) -> None:
    """After the first answer: what the next one will need, while nobody waits."""
    if question.kind == "gp":
        import torch  # noqa: F401


def _known(question: Question, belief: Belief | None, told: Sequence[Told], metrics: Sequence[Metric]) -> str:
    """Why nothing more is needed; "" if something is. Only the weights' own surface can say so."""
    if belief is None or len(told) < question.pilot_runs:
        return ""
    found = []
    for share in belief.shares:
        scale = belief.scales[0]
        epsilon = EPSILON_POINTS if question.epsilon is None else abs(scale.points(question.epsilon))
        optimum = belief.optimum(share, epsilon)
        if optimum.sure < question.confidence:
            return ""
        found.append(optimum)
    best = belief.places[found[-1].best]
    size = f"{scale.difference(epsilon):.3g}" if len(metrics) == 1 else f"{epsilon:.3g} points"
    sure = min(one.sure for one in found)
    return (
        f"the region is known: ({best[0]:g}, {best[1]:g}) loses at most {size} {_unit(metrics)} "
        f"with probability {sure:.2f}"
    )


def _unit(metrics: Sequence[Metric]) -> str:
    return (
        f"of {metrics[0].title}" if len(metrics) == 1 else f"of {' and '.join(one.title for one in metrics)}"
    )


def _proposals(
    question: Question,
    space: Space,
    told: Sequence[Told],
    metrics: Sequence[Metric],
    belief: Belief | None,
) -> list[dict[str, Any]]:
    sampler = _sampler(question, space, metrics, belief)
    study = make_study(space, metrics, told, question.pending, sampler)
    parameters = space.parameters()
    is_single = len(metrics) == 1 and told
    scale = scale_of(metrics[0], [run.metrics[metrics[0].name] for run in told]) if is_single else None
    found = []
    for _ in range(question.wanted):
        with quiet():
            trial = study.ask(parameters)
        weights, settings = space.proposal(trial.params)
        worth = getattr(sampler, "worth", None)
        found.append(
            {
                "weights": list(weights),
                "settings": settings,
                "expected": None if worth is None or scale is None else scale.difference(worth),
            }
        )
    return found


def _sampler(question: Question, space: Space, metrics: Sequence[Metric], belief: Belief | None) -> Any:
    """Deterministic: the seed follows from how much is known, and asking twice gives the same answer."""
    from optuna.samplers import GPSampler, TPESampler

    seed = question.seed * 100_003 + len(question.told) + len(question.pending)
    if question.kind == "adaptive":
        return KnowledgeGradientSampler(space.places, metrics, question.seed, belief)
    if question.kind == "gp":
        return GPSampler(seed=seed, n_startup_trials=question.pilot_runs)
    return TPESampler(seed=seed, n_startup_trials=question.pilot_runs)
