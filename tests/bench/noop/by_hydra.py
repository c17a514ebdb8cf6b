"""`python -m noop.by_hydra FOLDER NUMBER`: Hydra's multirun on hydra-submitit-launcher's local launcher.

As `python app.py -m hydra/launcher=submitit_local seed=0,1 ...`, and then reading what the jobs left.
"""

import json
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from noop.cells import answer, axes_of, write_answers


@hydra.main(version_base=None, config_path=str(Path(__file__).parent / "conf"), config_name="config")
def app(config: Any) -> None:
    """One cell."""
    cell = (float(config.prompt_weight), float(config.response_weight), int(config.seed))
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "metrics.json").write_text(json.dumps({"cell": cell, "answer": answer(*cell)}))


def words(folder: str, number: int) -> list[str]:
    """The command line of a sweep."""
    keys = ("prompt_weight", "response_weight", "seed")
    axes = [f"{key}={','.join(map(str, values))}" for key, values in zip(keys, axes_of(number), strict=True)]
    return ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={folder}/multirun", *axes]


def collect(folder: str) -> None:
    """All metrics.json, as its users write it."""
    read = [json.loads(path.read_text()) for path in Path(folder, "multirun").glob("*/metrics.json")]
    write_answers(Path(folder, "answers.json"), {tuple(entry["cell"]): entry["answer"] for entry in read})


def main(folder: str, number: int) -> None:
    """Sweep and collect in one process."""
    sys.argv[1:] = words(folder, number)
    app()
    collect(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
