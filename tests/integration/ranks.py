"""One rank of a tiny run for test_distributed: trains, and rank 0 writes parameters and log."""

import dataclasses
import json
import os
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "unit"), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny import run_config, tiny_model, tiny_split  # noqa: E402

from train.distributed import world_of  # noqa: E402
from train.loop import Hooks, Interrupted, train_model  # noqa: E402
from train.model import add_adapters, trainable_parameters  # noqa: E402
from train.tracking import NullTracker  # noqa: E402


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    job = json.loads((folder / "job.json").read_text())
    kind = job.get("distributed", "none")
    # SGD, because Adam's first steps blow a rounding of a tiny gradient up to a step of full size.
    recipe = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05} | job.get("recipe", {})
    config = run_config(0.25, 1.0, **recipe, distributed=kind)
    objective = dataclasses.replace(config.objective, **job.get("objective", {}))
    config = dataclasses.replace(config, objective=objective)
    model = tiny_model()
    if config.train.method == "lora":
        model = add_adapters(model, config.train, 5)
    done: list[int] = []
    hooks = Hooks(
        lambda: len(done) >= job.get("stop_after", 10**9),
        lambda step, steps: done.append(step),
        NullTracker(),
    )
    device, was_interrupted, progress = torch.device("cpu"), False, None
    with world_of(kind, device) as world:
        try:
            progress = train_model(
                model,
                tiny_split(),
                config,
                fingerprint="f" * 32,
                folder=folder,
                device=device,
                hooks=hooks,
                world=world,
            )
        except Interrupted:
            was_interrupted = True
    if int(os.environ.get("RANK", "0")):
        return
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    save_file(
        {name: value.detach().clone() for name, value in trainable_parameters(model).items()},
        folder / "parameters.safetensors",
    )
    (folder / "result.json").write_text(
        json.dumps(
            {
                "interrupted": was_interrupted,
                "num_clipped_steps": progress and progress.num_clipped_steps,
                "first_step": done[0],
                "losses": [event["train_loss"] for event in events],
                "tokens": [event["num_tokens"] for event in events],
                "nll": [event["train_response_nll"] for event in events],
            }
        )
    )


if __name__ == "__main__":
    warnings.simplefilter("default")
    main(Path(sys.argv[1]))
