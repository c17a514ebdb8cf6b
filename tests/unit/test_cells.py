"""The table of a sweep: every cell, recorded or not, and never a 0 for a number that isn't there."""

import dataclasses

from toys import finished, toy_plan, toy_spec

from sweep.cells import cell_rows
from sweep.ledger import RunState
from sweep.spec import Cell, PlannedCell, Status


def test_every_cell_and_base_has_a_row_with_the_same_columns():
    plan = toy_plan(2, has_base=True)
    done = plan.runs[1]
    records = {done.fingerprint: finished(done, metrics={"validation_response_nll": 1.25})}
    rows = cell_rows(plan, records, {done.fingerprint: RunState(status=Status.FINISHED)})
    assert len(rows) == 3
    assert len({tuple(row) for row in rows}) == 1
    base, first, second = rows
    assert base["is_base"] is True
    assert (base["prompt_weight"], base["response_weight"], base["seed"]) == (0.0, 0.0, None)
    assert first["is_base"] is False
    assert (first["status"], first["seed"], first["run_id"]) == ("finished", 0, done.run_id)
    assert first["validation_response_nll"] == 1.25
    assert (first["train_rows"], first["training_s"], first["num_steps"]) == (8, 2.0, 4)
    assert second["status"] == "planned"
    assert (second["validation_response_nll"], second["training_s"]) == (None, None)
    assert list(first)[-2:] == ["train_rows", "validation_response_nll"], "numbers come last"


def test_an_alias_shows_the_weights_that_were_trained():
    plan = toy_plan(1)
    spec = plan.runs[0]
    alias = PlannedCell(Cell("toy", "rows", 0.5, 0.5, 0), spec.fingerprint, True)
    plan = dataclasses.replace(plan, cells=(*plan.cells, alias))
    own, other = cell_rows(plan, {spec.fingerprint: finished(spec)}, {})
    assert (own["is_alias"], other["is_alias"]) == (False, True)
    assert (other["prompt_weight"], other["response_weight"]) == (0.5, 0.5)
    assert (other["canonical_prompt_weight"], other["canonical_response_weight"]) == (1.0, 1.0)
    assert own["validation_response_nll"] == other["validation_response_nll"] == 1.5
    assert other["run_id"] == spec.run_id


def test_further_axes_are_columns():
    spec = toy_spec()
    asked = Cell("toy", "rows", 1.0, 1.0, 0, (("train.learning_rate", 0.1),))
    cell = PlannedCell(asked, spec.fingerprint, False)
    (row,) = cell_rows(dataclasses.replace(toy_plan(1), cells=(cell,)), {}, {})
    assert row["train.learning_rate"] == 0.1
