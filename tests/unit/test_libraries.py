"""What a worker loads to train the embedded model, and what it never needs; none of it is collected again."""

import json
import os
import subprocess
import sys

CODE = """
import gc, json, sys
from pathlib import Path
from sweep.arguments import parse_arguments
from sweep.compose import compose_sweep
from sweep.plan import make_plan
from sweep.trainers import make_trainer

words = ["+grid=smoke_2x2", "grid.seeds=[0]", "dataset.num_train_rows=16", "dataset.num_validation_rows=8"]
words += ["dataset.num_test_rows=8", "dataset.num_robustness_rows=8", "eval.max_new_tokens=4", "train.epochs=1"]
plan = make_plan(compose_sweep(parse_arguments(words)), cache_folder=Path("cache"))
spec = next(spec for spec in plan.runs if spec.config.stage == "sft")
assert "torch" not in sys.modules
train = make_trainer(".")
how = {"should_stop": lambda: False, "on_progress": lambda step, steps: None}
record = train(spec, folder=Path("run"), attempt=1, **how)
has_models = any(type(found).__name__ == "LlamaForCausalLM" for found in gc.get_objects())
about = {"outcome": record.outcome, "has_models": has_models, "is_on": gc.isenabled()}
about |= {"frozen": gc.get_freeze_count(), "collected": len(gc.get_objects())}
print(json.dumps(about | {"modules": sorted(sys.modules)}))
"""
NEVER = {
    *("peft", "trl", "datasets", "wandb", "trackio", "optuna", "pandas", "matplotlib", "lm_eval", "submitit"),
    *("analysis", "torchvision", "tensorflow", "jax", "IPython", "openai"),
    *("pyarrow.compute", "torch.nn.attention.varlen"),  # a twentieth of a second each
}


def test_a_worker_loads_what_a_full_run_needs_and_leaves_it_to_stay(project, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout.splitlines()[-1])
    assert about["outcome"] == "finished"
    assert not NEVER & set(about["modules"])
    assert about["is_on"]
    assert (
        about["frozen"] > 10 * about["collected"]
    )  # the collector sees the run and its model, not the libraries
    assert about["has_models"]  # one that is replaced must be freed
