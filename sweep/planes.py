"""Runs that a worker takes together: which ones, how many, and their attempts at once.

Who has claimed a run also claims others of the plan that can share its stack (`train.stacked.company`), as many as
the trainer measured to be best, or an evaluation others over the same base (`train.benchmarks.company`); and not more
than the worker's part of all that waits. Each keeps its own claim, heartbeat, checkpoint and record; only the log is
one, under the name of each.
"""

import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweep.duration import share_done
from sweep.evaluations import EVALUATE, is_evaluation
from sweep.holding import Endings, Held, Outcome, beating
from sweep.ledger import CLAIMABLE, Ledger, RunState
from sweep.printed import output_to
from sweep.spec import Plan, RunSpec, Status
from sweep.trainers import GivenBack, RunMany, Together
from train.benchmarks.company import measured_alike, measured_alone
from train.config import SeedsConfig
from train.record import RunRecord
from train.secrets import scrub
from train.stacked.company import in_common, trained_alone

LOOK_AT = 512  # runs of the plan, from the claimed one on: a look at thousands takes longer than a short run


@dataclass(frozen=True, slots=True)
class Portion:
    """How much a worker takes at once. share: of so much that is left to do, in runs, how many may be its own.

    whole: all that waits of a run's plane, whatever the trainer trains at once of it (launcher.unit=plane).
    """

    share: Callable[[float], int]
    whole: bool = False


def fair_share(num_left: float, num_workers: int) -> int:
    """What one of so many workers may take, so that none idles while another has several; halves are taken."""
    return max(1, math.floor(num_left / max(1, num_workers) + 0.5))


def has_company(spec: RunSpec, plan: Plan, ledger: Ledger) -> bool:
    """Whether others may join this run: not where it stops at a rung, or ran out of memory before."""
    return (
        not _alone(spec)
        and spec.fingerprint not in plan.stops
        and not any(kind.endswith("oom") for kind in ledger.losses(spec.fingerprint))
    )


def mates(
    held: Held, plan: Plan, ledger: Ledger, portion: Portion, may_claim: Callable[[RunSpec], bool]
) -> tuple[list[RunSpec], int, int]:
    """The runs that wait and could join a claimed one; how many are alike but for the seed; how many may be at once.

    Every death without a word halves how many go together: it may have been their memory. Of the LOOK_AT runs that
    follow it in the plan, so in a larger one the shares are those of a part.
    """
    spec = held.spec
    at = next(n for n, run in enumerate(plan.runs) if run.fingerprint == spec.fingerprint)
    others = [run for run in (*plan.runs[at + 1 :], *plan.runs[:at])[:LOOK_AT] if may_claim(run)]
    states = ledger.statuses(run.fingerprint for run in others)
    waiting = [run for run in others if states[run.fingerprint].status in CLAIMABLE]
    wanted = _key(spec, portion.whole)
    num_deaths = ledger.num_deaths(spec.fingerprint, before=held.claim.attempt)
    found = [
        run
        for run in waiting
        if _key(run, portion.whole) == wanted
        and has_company(run, plan, ledger)
        and _can_begin(run, ledger)
        and ledger.num_deaths(run.fingerprint) <= num_deaths
    ]
    num_alike = 1 + sum(_without_seed(run) == _without_seed(spec) for run in waiting)
    running = [state for state in states.values() if state.status is Status.RUNNING]
    num_left = 1 + len(waiting) + sum(1.0 - share_done(state) for state in running)
    most = 1 + len(found) if portion.whole else min(portion.share(num_left), 1 + len(found))
    return found, num_alike, max(1, most >> num_deaths)


def units(runs: Iterable[RunSpec], states: Mapping[str, RunState]) -> list[RunState]:
    """What a worker takes at once with launcher.unit=plane, each as its first run that waits, or else is trained."""
    found: dict[Any, list[RunState]] = {}
    for spec in runs:
        key = spec.fingerprint if _alone(spec) else _key(spec, whole=True)
        found.setdefault(key, []).append(states[spec.fingerprint])

    def openness(state: RunState) -> int:
        return 0 if state.status in CLAIMABLE else 1 if state.status is Status.RUNNING else 2

    return [min(plane, key=openness) for plane in found.values()]


def _alone(spec: RunSpec) -> str:
    """Why nothing goes together with it; empty if something may."""
    return measured_alone(spec.config) if is_evaluation(spec) else trained_alone(spec.config)


def _can_begin(spec: RunSpec, ledger: Ledger) -> bool:
    """Whether what it stands on is finished."""
    return not spec.parent_fingerprint or ledger.record(spec.parent_fingerprint) is not None


def _key(spec: RunSpec, whole: bool) -> Any:
    """Equal for runs of one stack, and for evaluations over one base: of one model, dataset and seed.

    Rows end earlier where the response weighs nothing.
    """
    if is_evaluation(spec):
        plane = spec.model_identity, spec.dataset_identity, spec.config.seed
        return EVALUATE, plane, measured_alike(spec.config)
    ends = None if whole else spec.config.objective.response_weight > 0
    return in_common(spec.config), spec.model_identity, spec.dataset_identity, ends


def _without_seed(spec: RunSpec) -> Any:
    return (
        replace(in_common(spec.config), seed=0, seeds=SeedsConfig()),
        spec.model_identity,
        spec.dataset_identity,
    )


def attempt_together(
    held: Sequence[Held],
    trainer: RunMany,
    endings: Endings,
    *,
    should_stop: Callable[[], bool],
    reason: Callable[[], str],
    on_progress: Callable[[int, int], None],
    also: Callable[[], None],
) -> list[tuple[Held, Outcome]]:
    """Train claimed runs at once and write down how each ended, as soon as it did.

    on_progress: hears of the first that goes on. reason: why they were asked to stop. also: at every heartbeat
    """
    left, outcomes = {one.claim.fingerprint: one for one in held}, list[tuple[Held, Outcome]]()

    def close(name: str, write: Callable[[Held], Outcome]) -> None:
        one = left.pop(name)
        try:
            outcomes.append((one, write(one)))
        except Exception as error:  # a record that can't be written
            outcomes.append((one, endings.broken(one, error)))

    def ended(name: str, what: RunRecord | Exception) -> None:
        if isinstance(what, RunRecord):
            close(name, lambda one: endings.recorded(one, what))
        elif isinstance(what, GivenBack):
            close(name, lambda one: endings.given_back(one, reason()))
        else:
            print(scrub("".join(traceback.format_exception(what))), file=sys.stderr)
            close(name, lambda one: endings.broken(one, what))

    def member(one: Held) -> Together:
        def told(step: int, num_steps: int) -> None:
            one.progress(step, num_steps)
            if next(iter(left.values()), one) is one:
                on_progress(step, num_steps)

        return Together(one.spec, one.claim.folder, one.claim.attempt, one.fenced.is_set, told)

    with beating(held, also):
        try:
            with output_to(held[0].claim.path("log")):
                for one in held[1:]:
                    os.link(held[0].claim.path("log"), one.claim.path("log"))
                try:
                    trainer.together([member(one) for one in held], should_stop=should_stop, ended=ended)
                except GivenBack:
                    raise
                except (Exception, SystemExit):
                    print(scrub(traceback.format_exc()), file=sys.stderr)
                    raise
        except GivenBack:
            for name in list(left):
                close(name, lambda one: endings.given_back(one, reason()))
        except (Exception, SystemExit) as error:
            for name in list(left):
                close(name, lambda one, error=error: endings.broken(one, error))
    return outcomes
