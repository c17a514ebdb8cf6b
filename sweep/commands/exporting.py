"""df: every cell with its numbers as a data frame, in two files."""

from sweep.arguments import Arguments
from sweep.cells import cell_rows
from sweep.commands.session import open_session


def export(arguments: Arguments) -> int:
    """report/cells.csv and cells.parquet, one row per cell and base model, recorded or not."""
    import pandas  # here: no other command waits for it

    session = open_session(arguments, allow_unresolved=True)
    states = session.states()
    frame = pandas.DataFrame(cell_rows(session.plan, session.ledger.records(states), states))
    session.folder.report.mkdir(parents=True, exist_ok=True)
    for suffix, write in (
        (".csv", lambda path: frame.to_csv(path, index=False)),
        (".parquet", lambda path: frame.to_parquet(path, index=False)),
    ):
        path = session.folder.report / f"cells{suffix}"
        temporary = path.with_name(f".cells{suffix}.tmp")
        write(temporary)
        temporary.replace(path)
        print(path)
    num_recorded = sum(status == "finished" for status in frame["status"])
    print(f"{len(frame)} rows, {num_recorded} with numbers")
    return 0
