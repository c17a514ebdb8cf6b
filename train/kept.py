"""Where a run's trained weights are kept, and how they are given up. Standard library only."""

import shutil
from pathlib import Path

FOLDER = "weights"  # in the run's folder
ABOUT = "weight_sweep.json"  # beside the weights: which run they are


def has_weights(run_folder: Path) -> bool:
    """Whether the run's weights are there, whole."""
    return (run_folder / FOLDER / ABOUT).is_file()


def remove_weights(run_folder: Path) -> None:
    """Give the space back; the record stays, and the run can be trained again to the same bits."""
    shutil.rmtree(run_folder / FOLDER, ignore_errors=True)
