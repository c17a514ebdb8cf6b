"""python -m analysis: from records to planes, a region and a report. --help answers before slow imports."""

import os
import sys


def main() -> int:
    """The exit code: 0 report written, 2 the user's mistake or nothing to analyse, 130 interrupted."""
    from train.errors import UserError
    from train.secrets import scrub

    try:
        from analysis.command import HELP, parse_request, run

        request = parse_request(sys.argv[1:])
        if request.help:
            print(HELP)
            return 0
        print(run(request))
        sys.stdout.flush()
        return 0
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
