"""evaluate on adapters of one base, as it is typed: at once and one by one the same, and a kill in the middle."""

import json
import os
import shutil
import signal
import time

import numpy
import pytest
from commands import run_command, start_command

from sweep.slots import holders
from train.files import read_json
from train.items import read_items

pytestmark = pytest.mark.integration

SWEEP = (
    "+grid=smoke_2x2",
    "grid.cells={product:{prompt_weight:[0,0.5,1],response_weight:[1]}}",
    "dataset.num_train_rows=16",
    "dataset.num_validation_rows=8",
    "dataset.num_test_rows=8",
    "dataset.num_robustness_rows=4",
    "eval.max_new_tokens=4",
    "train=lora",
    "train.learning_rate=1e-2",
    "train.max_steps=3",
    "retention=all",
    "launcher.slots=1",
)


def asked(shared_data) -> list[str]:
    """What is written, and what is read of the model itself."""
    benchmark = "{kind:lm_eval,tasks:[ifeval],limit:8,max_new_tokens:8,prompt:text,hub:[google/IFEval]}"
    return [
        "eval=wordings",
        "eval.benchmarks.wordings.limit=48",
        f"+eval.benchmarks.ifeval={benchmark}",
        f"eval.data={shared_data / 'hubroot'}",
        f"eval.punkt={shared_data / 'nltk_punkt' / 'nltk_data'}",
        "evaluate",
    ]


def evaluations(root):
    """Measured run -> its evaluation's record."""
    found = {}
    for path in root.glob(".runs/*/record.json"):
        record = read_json(path)
        if record["stage"] == "evaluate":
            found[read_json(path.parent / "spec.json")["parent_fingerprint"]] = record
    return found


def written(root, run):
    """What the run wrote, by what it was asked; each once."""
    lines = (root / ".runs" / run / "evaluations" / "outputs.jsonl").read_text().splitlines()
    texts = {line["name"]: line["text"] for line in map(json.loads, lines[1:])}
    assert len(texts) == len(lines) - 1 == 8, "nothing is asked twice"
    return texts


def test_at_once_as_one_by_one_and_a_kill_in_the_middle_costs_no_number(tmp_path, shared_data):
    pytest.importorskip("lm_eval", reason="lm-eval isn't installed: pip install -e '.[eval]'")
    alone, root = tmp_path / "alone", tmp_path / "root"
    done = run_command("sweep", *SWEEP, f"root={alone}")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(alone, root, symlinks=True)
    one_by_one = start_command("sweep", *SWEEP, f"root={alone}", "train.plane=off", *asked(shared_data))
    at_once = start_command("sweep", *SWEEP, f"root={root}", *asked(shared_data))
    deadline = time.monotonic() + 240
    while not evaluations(root) and at_once.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    (victim,) = {holder.owner.pid for holder in holders(root).values()}
    os.kill(victim, signal.SIGKILL)
    before = evaluations(root)
    for process in (one_by_one, at_once):
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output

    assert 1 <= len(before) <= 3, "in the middle"
    known, found = evaluations(alone), evaluations(root)
    assert known.keys() == found.keys()
    assert len(found) == 4, "three runs and the base model"
    for run, record in found.items():
        if run in before:
            assert (record, 1) == (before[run], record["attempt"])
            assert record["environment"]["evaluated_with"] == 4
        else:
            assert record["attempt"] == 2
        other = known[run]
        assert "evaluated_with" not in other["environment"]
        assert record["metrics"] == pytest.approx(other["metrics"], abs=5e-6)
        assert written(root, run) == written(alone, run)
        for name in ("wordings", "ifeval"):
            mine, theirs = (items_of(where, run, name) for where in (root, alone))
            assert (mine.item_ids, mine.outputs) == (theirs.item_ids, theirs.outputs)
            for column in theirs.values:
                numpy.testing.assert_allclose(mine.values[column], theirs.values[column], rtol=0, atol=5e-6)
    assert len({record["metrics"]["all_wordings.prompt_sensitivity"] for record in found.values()}) == 4


def items_of(root, run, name):
    (path,) = (root / ".runs" / run / "evaluations").glob(f"*/{name}.parquet")
    return read_items(path.parent, name)
