"""The app that Dora's jobs run."""

from typing import Any

from dora import get_xp, hydra_main

from noop.cells import answer


@hydra_main(config_name="config", config_path="conf", version_base=None)
def main(config: Any) -> None:
    """One cell."""
    cell = (float(config.prompt_weight), float(config.response_weight), int(config.seed))
    get_xp().link.push_metrics({"answer": answer(*cell)})
