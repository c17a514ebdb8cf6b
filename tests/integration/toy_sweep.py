"""`python toy_sweep.py ROOT NUM_RUNS [SLOTS [RATE]]`: `python -m sweep` without Hydra, on the toy trainer."""

import sys
from pathlib import Path

from sweep.controller import Controller, Interrupts
from sweep.folder import SweepFolder, check_root
from sweep.launch import Launch
from sweep.ledger import Ledger
from sweep.show import make_view
from sweep.spec import Cell, Plan, PlannedCell, RunSpec, Status
from train.config import RunConfig, run_config_from_dict
from train.fingerprint import fingerprint


def toy_config(seed: int, prompt_weight: float = 1.0, learning_rate: float = 1e-3) -> RunConfig:
    """A complete configuration of a run that the toy trainer can train."""
    source = {"name": "toy", "source": "embedded"}
    return run_config_from_dict(
        {
            "model": source,
            "dataset": source,
            "seed": seed,
            "train": {"learning_rate": learning_rate, "device": "cpu"},
            "objective": {"prompt_weight": prompt_weight, "response_weight": 1.0},
            "tracking": {},
        }
    )


def toy_plan(num_runs: int, learning_rate: float = 1e-3) -> Plan:
    """Runs that differ in their seed."""
    runs, cells = [], []
    for seed in range(num_runs):
        config = toy_config(seed, learning_rate=learning_rate)
        name = fingerprint(config, model_identity="m", dataset_identity="d")
        runs.append(RunSpec(f"toy-toy-p1-r1-s{seed}-{name[:12]}", name, config, "m", "d"))
        cells.append(PlannedCell(Cell("toy", "toy", 1.0, 1.0, seed), name, False))
    return Plan("toy", tuple(cells), (), tuple(runs))


def run_toys(root: Path, plan: Plan, num_slots: int) -> int:
    """As `python -m sweep` does it; the same exit codes."""
    check_root(root)
    ledger, folder = Ledger(root), SweepFolder(root, plan.name)
    folder.write_plan(plan)
    launch = Launch(root=str(root), sweep=plan.name, num_slots=num_slots, trainer="toy_trainer:make_trainer")
    view = make_view(ledger)
    try:
        with Interrupts().listening() as interrupts:
            ending = Controller(plan, ledger, folder, launch, view, interrupts, poll_s=0.1).run()
    except KeyboardInterrupt:
        return 130
    finally:
        view.close()
    return 130 if ending.is_interrupted else 0 if ending.num(Status.FINISHED) == len(plan.runs) else 1


if __name__ == "__main__":
    rate = float(sys.argv[4]) if len(sys.argv) > 4 else 1e-3
    sys.exit(run_toys(Path(sys.argv[1]), toy_plan(int(sys.argv[2]), rate), int((sys.argv[3:] or ["2"])[0])))
