"""`python -m train model=... dataset=... objective.prompt_weight=... objective.response_weight=... seed=...`:
one cell by hand. Prints its record; `python -m sweep` does the same for many."""

import sys


def main(argv: list[str]) -> int:
    """Exit codes: 0 finished, 1 failed, 2 the user's mistake, 130 interrupted."""
    from train.by_hand import HELP, train_by_hand
    from train.errors import UserError
    from train.export import export_command
    from train.secrets import scrub

    is_export = argv[:1] == ["export"]
    if not argv or ({"-h", "--help"} & set(argv) and not is_export):
        print(HELP)
        return 0
    try:
        return export_command(argv[1:]) if is_export else train_by_hand(argv)
    except UserError as error:
        print(f"error: {scrub(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
