"""python -m analysis.search: one line of JSON in, one out, until the input ends. `sweep.asking` talks to it."""

import json
import os
import sys


def main() -> int:
    """Answer every question; a mistake in one is an answer, too."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    from analysis.search.answers import answer, warm_up
    from analysis.search.questions import question_from_dict
    from train.errors import UserError

    for line in sys.stdin:
        question = question_from_dict(json.loads(line))
        try:
            found = answer(question)
        except UserError as error:
            found = {"refusal": [error.problem, error.expected, error.fix]}
        answers.write(json.dumps(found, allow_nan=False) + "\n")
        answers.flush()
        warm_up(question)
    return 0


if __name__ == "__main__":
    sys.exit(main())
