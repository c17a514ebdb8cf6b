"""`python slurm_sweeps.py ROOT NUM_RUNS [KEY=VALUE ...]`: a detached toy sweep on a cluster, without Hydra."""

import sys
from pathlib import Path

from toy_sweep import toy_plan

from sweep.folder import SweepFolder, check_root
from sweep.launcher import LauncherConfig
from sweep.ledger import Ledger
from sweep.slurm.tend import Tender
from sweep.spec import Plan

TRAINER = "toy_trainer:make_trainer"
DEFAULTS = {"time_min": 5, "signal_delay_s": 15, "silence_s": 12.0, "max_jobs": 8}


def toy_tender(root: Path, plan: Plan, **settings) -> Tender:
    """What a command would look with."""
    check_root(root)
    folder = SweepFolder(root, plan.name)
    folder.write_plan(plan)
    launcher = LauncherConfig(kind="slurm", **{**DEFAULTS, **settings})
    return Tender(plan, Ledger(root, launcher.max_attempts), folder, launcher, trainer=TRAINER)


if __name__ == "__main__":
    toy_tender(Path(sys.argv[1]), toy_plan(int(sys.argv[2]))).tend()
