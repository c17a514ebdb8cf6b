"""python -m sweep: many runs, from a grid to records. Answers --help before importing anything slow."""

import os
import sys


def main() -> int:
    """The exit code: 0 done, 1 some runs failed, 2 the user's mistake, 130 interrupted."""
    from sweep.arguments import HELP, parse_arguments
    from train.errors import UserError
    from train.secrets import scrub

    try:
        arguments = parse_arguments(sys.argv[1:])
        if arguments.help:
            print(HELP)
            return 0
        from sweep.commands.dispatch import execute

        code = execute(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {scrub(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough; nothing is left to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
