"""`python slurm_sweeps.py ROOT NUM_RUNS SETTINGS`: submit and watch a toy sweep on a cluster, without Hydra."""

import json
import sys
from pathlib import Path

from toy_sweep import toy_plan

from sweep.arguments import Arguments
from sweep.commands import clustering
from sweep.commands.session import Session
from sweep.config import GridConfig, SearchConfig, SweepConfig
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


def toy_session(tender: Tender, arguments: Arguments) -> Session:
    """What `python -m sweep` would open for the tender's sweep."""
    config = SweepConfig(
        action=arguments.action,
        root=str(tender.folder.root),
        name=tender.plan.name,
        grid=GridConfig(name=tender.plan.name),
        launcher=tender.launcher,
        search=SearchConfig(),
    )
    return Session(arguments, config, tender.plan, tender.folder, tender.ledger)


def watch(root: Path, plan: Plan, settings: dict) -> int:
    """`python -m sweep ... watch` as it is, but for the question and the trainer."""
    tender = toy_tender(root, plan, **settings)
    clustering.tender_of = lambda session: tender
    return clustering.watch(toy_session(tender, Arguments("watch")))


if __name__ == "__main__":
    words = json.loads(sys.argv[3])
    sys.exit(watch(Path(sys.argv[1]), toy_plan(int(sys.argv[2])), {**words, "setup": tuple(words["setup"])}))
