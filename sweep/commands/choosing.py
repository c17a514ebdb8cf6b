"""Which runs a command is about, in a person's words: a part of a run id, or KEY=VALUE. Pure."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from sweep.spec import Plan, RunSpec
from train.errors import UserError


def chosen_runs(
    plan: Plan, word: str | None, filters: Sequence[str], classes: Mapping[str, Sequence[str]]
) -> list[RunSpec]:
    """The runs that fit everything that was said. UserError, with what there is, if none does.

    A run fits a weight or a seed if one of the cells it answers has it. Several values are separated by commas,
    names may hold * and ?. classes: of each run, by fingerprint.
    """
    found = [
        spec for spec in plan.runs if word is None or word in spec.run_id or spec.fingerprint.startswith(word)
    ]
    if word is not None and not found:
        raise UserError(f"no run matches {word}", "a run id or a part of one", "status lists them")
    said: dict[str, list[str]] = {}
    for text in filters:
        key, _, values = text.partition("=")
        said[key] = [value.strip() for value in values.strip("[]'\" ").split(",") if value.strip()]
    values_of = {spec.fingerprint: _values(plan, spec, classes) for spec in found}
    for key, wanted in said.items():
        fitting = [spec for spec in found if _fits(values_of[spec.fingerprint][key], wanted)]
        if not fitting:
            there = sorted({value for spec in found for value in values_of[spec.fingerprint][key]})
            some = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            raise UserError(
                f"no run matches {key}={','.join(wanted)}", f"one of {some or 'nothing'}", "status lists them"
            )
        found = fitting
    return found


def _values(plan: Plan, spec: RunSpec, classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    cells = [planned.cell for planned in plan.cells if planned.fingerprint == spec.fingerprint]
    return {
        "model": [spec.config.model.name],
        "dataset": [spec.config.dataset.name],
        "stage": [spec.config.stage],
        "class": list(classes.get(spec.fingerprint, ())),
        "seed": sorted({str(cell.seed) for cell in cells} or {str(spec.config.seed)}),
        **{
            key: list(dict.fromkeys(f"{getattr(cell, key):g}" for cell in cells))
            for key in ("prompt_weight", "response_weight")
        },
    }


def _fits(values: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(_same(value, one) for value in values for one in wanted)


def _same(value: str, wanted: str) -> bool:
    try:
        return float(value) == float(wanted)
    except ValueError:
        return fnmatchcase(value, wanted)
