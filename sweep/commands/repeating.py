"""rerun: train a finished run again, beside the first, and compare every number."""

from collections.abc import Callable
from pathlib import Path

from sweep.arguments import Arguments
from sweep.commands.session import find_run, open_session
from sweep.errors import LedgerError
from sweep.evaluations import without_evaluations
from sweep.spec import RunSpec
from train.files import write_json_exclusive
from train.record import RunRecord, record_to_dict

TrainAgain = Callable[[str, RunSpec, Path], RunRecord]


def rerun(arguments: Arguments, train_again: TrainAgain | None = None) -> int:
    """0 if parameters and every metric are identical, 1 if not. The first record stays as it is."""
    session = open_session(arguments)
    spec = find_run(without_evaluations(session.plan).runs, arguments.run)
    first = session.ledger.record(spec.fingerprint)
    if first is None:
        raise LedgerError(f"{spec.run_id} isn't finished", "a finished run", f"first: {session.command()}")
    folder = _new_folder(session.ledger.folder(spec.fingerprint) / "reruns")
    print(f"training {spec.run_id} again in {folder}", flush=True)
    if train_again is None:
        from sweep.trainers import train_again
    second = train_again(session.config.root, spec, folder)
    write_json_exclusive(folder / "record.json", record_to_dict(second))
    lines = differences(first, second)
    print(
        "\n".join([f"not identical: {spec.run_id}", *lines])
        if lines
        else f"identical: parameters_sha256 and {len(first.metrics)} metrics"
    )
    return 1 if lines else 0


def differences(first: RunRecord, second: RunRecord) -> list[str]:
    """What isn't bitwise equal, a line each."""
    lines = []
    if second.outcome != first.outcome:
        lines.append(f"  outcome: {first.outcome}, then {second.outcome}")
    if first.parameters_sha256 != second.parameters_sha256:
        lines.append(
            f"  parameters_sha256: {first.parameters_sha256[:16]}, then {second.parameters_sha256[:16]}"
        )
    for name in sorted({*first.metrics, *second.metrics}):
        before, after = first.metrics.get(name), second.metrics.get(name)
        if before != after:
            lines.append(f"  {name}: {before}, then {after}")
    return lines


def _new_folder(parent: Path) -> Path:
    number = 1
    while True:
        try:
            (parent / str(number)).mkdir(parents=True)
            return parent / str(number)
        except FileExistsError:
            number += 1
