"""`python -m noop.ours FOLDER NUMBER`: compose, plan, train and collect, as `python -m sweep` does, on nothing.

The configurations are the embedded experiment's, complete; every cell is a run of its own (grid.collapse=none).
Only the trainer is another, and the report is left out: the others have none.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from noop.cells import answer, axes_of, write_answers
from sweep.arguments import parse_arguments
from sweep.commands.session import open_session
from sweep.controller import Controller, Interrupts
from sweep.launch import Launch
from sweep.show import make_view
from sweep.spec import RunSpec
from sweep.trainers import RunOne
from train.record import RunRecord


def make_trainer(root: str) -> RunOne:
    """What `Launch.trainer` names."""
    return train


def train(
    spec: RunSpec,
    *,
    folder: Path,
    attempt: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    pause_at: float | None = None,
) -> RunRecord:
    """Nothing."""
    objective = spec.config.objective
    value = answer(objective.prompt_weight, objective.response_weight, spec.config.seed)
    return RunRecord(
        run_id=spec.run_id,
        fingerprint=spec.fingerprint,
        outcome="finished",
        stage=spec.config.stage,
        metrics={"validation_response_nll": value},
        attempt=attempt,
        finished_at=time.time(),
    )


def main(folder: str, number: int) -> None:
    """One sweep from its grid to what it found."""
    prompt_weights, response_weights, seeds = axes_of(number)
    product = f"prompt_weight: {list(prompt_weights)}, response_weight: {list(response_weights)}"
    words = ["+grid=smoke_2x2", f"grid.cells={{product: {{{product}}}}}", f"grid.seeds={list(seeds)}"]
    words += ["grid.collapse=none", f"root={folder}/outputs"]
    session = open_session(parse_arguments(words))
    session.folder.write_plan(session.plan)
    session.folder.link_runs(session.plan)
    launch = Launch(
        root=session.config.root,
        sweep=session.config.name,
        num_slots=session.num_slots(()),
        trainer="noop.ours:make_trainer",
    )
    view = make_view(session.ledger)
    with Interrupts().listening() as interrupts:
        Controller(session.plan, session.ledger, session.folder, launch, view, interrupts).run()
    view.close()
    records = session.ledger.records(spec.fingerprint for spec in session.plan.runs)
    found = {
        (cell.cell.prompt_weight, cell.cell.response_weight, cell.cell.seed): records[cell.fingerprint]
        for cell in session.plan.cells
        if cell.cell.prompt_weight or cell.cell.response_weight
    }
    answers = {cell: record.metrics["validation_response_nll"] for cell, record in found.items()}
    write_answers(Path(folder, "answers.json"), answers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
