"""What the next runs of an unfinished plane should be, and what each is worth: the report's advice. Pure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.page import Markup, join, table, tag
from analysis.search.adaptive import believe, propose
from analysis.search.questions import Told
from analysis.search.space import angle_of
from analysis.study import Study
from analysis.table import Table
from analysis.text import group_name, number, pair, plural
from sweep.candidates import Weights
from sweep.spec import Status
from train.metrics import Metric

NUM_NEXT = 10
LEAST_FINISHED = 3  # runs, before a surface says anything
_WAITING = (Status.PLANNED, Status.INTERRUPTED, Status.LOST, Status.PAUSED)


@dataclass(frozen=True, slots=True)
class NextRun:
    """One run. weights: as trained. worth: by how much the best posterior mean is expected to rise, given the runs
    before it, in the metric's unit. run_id: "" for a seed that the plan doesn't ask for."""

    weights: Weights
    seed: int
    worth: float
    run_id: str


def next_runs(table_: Table, study: Study, how_many: int = NUM_NEXT) -> tuple[NextRun, ...]:
    """By the knowledge gradient on the surface of the plane; () if the plane is done or has too few runs."""
    metric = study.chosen.metric
    told, waiting = _runs(table_, study, metric)
    if not waiting or len(told) < LEAST_FINISHED:
        return ()
    seeds: dict[Weights, set[int]] = {}
    for run in told:
        seeds.setdefault(run.weights, set()).add(run.seed)
    places = tuple(sorted({*seeds, *(weights for weights, _ in waiting)}, key=angle_of))
    belief = believe(places, told, [metric], seed=0)
    found: list[NextRun] = []
    for weights, worth in propose(belief, [], how_many, len(told)):
        used = seeds.setdefault(weights, set())
        asked = sorted(seed for pair_, seed in waiting if pair_ == weights and seed not in used)
        seed = asked[0] if asked else max(used, default=-1) + 1
        used.add(seed)
        run_id = waiting.get((weights, seed), "")
        found.append(NextRun(weights, seed, belief.scales[0].difference(worth), run_id))
    return tuple(found)


def next_lines(table_: Table, studies: Sequence[Study]) -> str:
    """For a terminal; "" if no plane has anything to add."""
    parts = []
    for study in studies:
        found = next_runs(table_, study)
        if not found:
            continue
        metric = study.chosen.metric
        listed = ", ".join(f"{pair(one.weights)} seed {one.seed}" for one in found)
        words = (
            f"{group_name(study.group)}: the next {plural(len(found), 'run')} that teach most about where the best "
            f"{metric.title} is: {listed}. The first is expected to raise what is recommended by "
            f"{number(found[0].worth, metric)} {metric.unit}. The same line with search=adaptive trains in this order."
        )
        parts.append("\n".join(textwrap.wrap(words, 100)))
    return "\n\n".join(parts)


def next_section(table_: Table, studies: Sequence[Study]) -> Markup:
    """For the report; nothing for a sweep that is done."""
    parts = []
    for study in studies:
        found = next_runs(table_, study)
        if not found:
            continue
        metric = study.chosen.metric
        rows = [
            [
                index + 1,
                pair(one.weights),
                one.seed,
                number(one.worth, metric),
                one.run_id or "not planned yet",
            ]
            for index, one in enumerate(found)
        ]
        header = ["", "weights as trained", "seed", f"expected rise, {metric.unit}", "run"]
        parts += [tag("h3", group_name(study.group)), table(header, rows, numeric=(0, 2, 3))]
    if not parts:
        return Markup("")
    note = (
        "The expected rise is that of the best posterior mean of the surface (knowledge gradient), each run given "
        "those before it; 0 where no single run can change the recommendation. search=adaptive trains in this "
        "order and stops when the region is known."
    )
    return join([tag("h2", "What to run next"), tag("p", note, class_="note"), *parts])


def _runs(table_: Table, study: Study, metric: Metric) -> tuple[list[Told], dict[tuple[Weights, int], str]]:
    """The plane's finished runs, and those that wait: weights and seed -> run id."""
    told: list[Told] = []
    waiting: dict[tuple[Weights, int], str] = {}
    for spec in table_.specs(study.group):
        if spec.config.stage == "base":
            continue
        weights = (spec.config.objective.prompt_weight, spec.config.objective.response_weight)
        record = table_.record_by_fingerprint.get(spec.fingerprint)
        if record is not None and metric.name in record.metrics:
            told.append(
                Told(
                    weights=weights, seed=spec.config.seed, metrics={metric.name: record.metrics[metric.name]}
                )
            )
        elif table_.status_by_fingerprint[spec.fingerprint] in _WAITING:
            waiting[weights, spec.config.seed] = spec.run_id
    return told, waiting
