"""Criterion 10: what pooling planes gains where they agree, and what it costs where they don't. Truth is known.

    python tests/bench/bench_planes.py run WORLD FIRST LAST FILE     repetitions FIRST to LAST - 1, appended to FILE
    python tests/bench/bench_planes.py collect FILE                  writes tests/bench/results/planes.json

Each repetition: 3 x 3 planes of 35 single runs at mid noise (0.78 points in a contrast), fitted separately and pooled.
Worlds are those of tests/unit/plane_worlds.py; `uneven` is homogeneous with 60 % of the runs and noise x 1/2 to 2.
About 4 CPU-s each.
"""

import dataclasses
import json
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "unit")]

from plane_worlds import Outcome, study, summary  # noqa: E402

WORLDS = {
    **{kind: (kind, {}) for kind in ("homogeneous", "unrelated", "by_dataset", "graded", "off_ray")},
    "uneven": ("homogeneous", {"present": 0.6, "unequal": True}),
}
LIMITS = {
    "regret of pooled / separate, homogeneous": 0.7,
    "regret of pooled / separate, unrelated": 1.1,
    "false claims for a new plane": 0.025,
}


def run(world: str, first: int, last: int, file: Path) -> None:
    kind, changes = WORLDS[world]
    with open(file, "a", encoding="utf-8") as stream:
        for seed in range(first, last):
            outcome = study(kind, seed, **changes)
            stream.write(json.dumps({"world": world, "seed": seed, **dataclasses.asdict(outcome)}) + "\n")
            stream.flush()


def collect(file: Path) -> dict[str, object]:
    found: dict[str, dict[int, Outcome]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        world, seed = values.pop("world"), values.pop("seed")
        found.setdefault(world, {})[seed] = Outcome(**values)
    worlds = {world: summary(list(outcomes.values())) for world, outcomes in found.items()}
    every = [outcome for outcomes in found.values() for outcome in outcomes.values()]
    measured = {
        "regret of pooled / separate, homogeneous": worlds["homogeneous"]["regret_ratio"],
        "regret of pooled / separate, unrelated": worlds["unrelated"]["regret_ratio"],
        "false claims for a new plane": sum(outcome.new_plane_false for outcome in every) / len(every),
    }
    rounded = {
        world: {name: round(value, 4) for name, value in numbers.items()} for world, numbers in worlds.items()
    }
    return {
        "limits": LIMITS,
        "measured": {name: round(value, 4) for name, value in measured.items()},
        "held": all(measured[name] <= limit for name, limit in LIMITS.items()),
        "worlds": rounded,
    }


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        world, first, last, file = sys.argv[2:]
        run(world, int(first), int(last), Path(file))
        return
    results = collect(Path(sys.argv[2]))
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    (PROJECT / "tests" / "bench" / "results" / "planes.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
