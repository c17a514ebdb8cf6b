"""evaluate from end to end, as it is typed: everything once, and nothing that is known a second time."""

import numpy
import pytest
from commands import run_command
from judge_server import Judge, judge_server
from wandb_server import WandbServer

from train.files import read_json
from train.items import read_items

pytestmark = pytest.mark.integration

ONE_CELL = ("+grid=smoke_2x2", "grid.cells.product.prompt_weight=[0]")
SMALL = (
    "dataset.num_train_rows=16",
    "dataset.num_validation_rows=8",
    "dataset.num_test_rows=8",
    "dataset.num_robustness_rows=4",
    "eval.max_new_tokens=4",
)


def succeed(*words: str) -> str:
    finished = run_command("sweep", *words, timeout_s=300)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    return finished.stdout


def five(shared_data, url: str) -> list[str]:
    path = "eval.benchmarks"
    return [
        "eval=five",
        f"eval.data={shared_data / 'hubroot'}",
        f"eval.punkt={shared_data / 'nltk_punkt' / 'nltk_data'}",
        f"{path}.alpaca_eval.path={shared_data / 'alpaca_eval'}",
        f"{path}.mt_bench.path={shared_data / 'mt_bench'}",
        f"{path}.posix.path={shared_data / 'prosa_prompt_variants'}",
        f"{path}.posix.prompts=alpaca_eval_v1.json",
        f"+{path}.posix.num_variants=2",
        *(f"{path}.{name}.limit=2" for name in ("mmlu", "bbh", "ifeval", "alpaca_eval", "posix")),
        f"{path}.mt_bench.limit=1",
        *(f"{path}.{name}.max_new_tokens=4" for name in ("mmlu", "bbh", "ifeval", "alpaca_eval", "mt_bench")),
        "eval.judge.model=local",
        f"eval.judge.base_url={url}",
        "eval.judge.key_variable=null",
    ]


def test_all_five_once_and_the_second_time_nothing(tmp_path, shared_data):
    pytest.importorskip("lm_eval", reason="lm-eval isn't installed: pip install -e '.[eval]'")
    judge = Judge()
    with judge_server(judge) as url:
        words = [*ONE_CELL, *SMALL, "train.max_steps=1", f"root={tmp_path}", *five(shared_data, url)]
        succeed(*words)
        num_asked = len(judge.requests)
        # two models, each with two pairs in both orders and two turns; what both wrote alike is asked once
        assert 6 <= num_asked <= 2 * (2 * 2 + 2)
        written = {path: path.read_bytes() for path in tmp_path.rglob("outputs.jsonl")}
        records = [read_json(path) for path in sorted(tmp_path.glob(".runs/*/record.json"))]
        measured = [record for record in records if record["stage"] == "evaluate"]
        assert (len(written), len(measured)) == (2, 2)
        for record in measured:
            five_mean = record["metrics"]["all_five.mean"]
            terms = [
                record["metrics"][f"all_{name}"]
                for name in ("mmlu.exact_match", "bbh.exact_match", "ifeval.instruction_strict")
            ]
            terms += [
                record["metrics"]["all_alpaca_eval.win_rate"],
                record["metrics"]["all_mt_bench.rating"] / 10,
            ]
            assert five_mean == pytest.approx(sum(terms) / 5)
        sessions = sorted(path.stat().st_mtime_ns for path in tmp_path.glob(".timesheets/*"))
        said = succeed("action=evaluate", *words)
        assert len(judge.requests) == num_asked
        assert {path: path.read_bytes() for path in tmp_path.rglob("outputs.jsonl")} == written
        assert sorted(path.stat().st_mtime_ns for path in tmp_path.glob(".timesheets/*")) == sessions
        assert "2 done before" in said or "2 of 2 runs finished" in said


def test_adapters_and_preferences_are_measured_on_a_cluster_as_after_training(slurm, tmp_path):
    """Base model, LoRA and DPO on LoRA: item by item what each run measured of itself; then W&B's summaries."""
    pytest.importorskip("trl", reason="TRL isn't installed: pip install -e '.[dpo]'")
    words = [*ONE_CELL, *SMALL, f"root={tmp_path}", "retention=all", "train.method=lora"]
    words += [
        "train.learning_rate=1e-2",
        "train.max_steps=3",
        "grid.stages=[sft,dpo]",
        "dpo.learning_rate=1e-2",
        "dpo.epochs=1",
    ]
    words += ["preference.num_train_pairs=96", "preference.num_validation_pairs=8"]
    succeed(*words, "launcher.slots=1")
    asked = ["eval=wordings", "eval.benchmarks.wordings.limit=8", "launcher=slurm", "launcher.max_jobs=1"]
    succeed(*words, *asked, "evaluate")
    succeed(*words, *asked, "watch")
    records = {path.parent.name: read_json(path) for path in tmp_path.glob(".runs/*/record.json")}
    runs = {name: one for name, one in records.items() if one["stage"] != "evaluate"}
    assert sorted(one["stage"] for one in runs.values()) == ["base", "dpo", "sft"]
    measured = [one for one in records.values() if one["stage"] == "evaluate"]
    assert [one["environment"]["evaluated_with"] for one in measured] == [3] * 3, "by one job"
    seen = set()
    for name in runs:
        own = read_items(tmp_path / ".runs" / name / "items", "wordings")
        (folder,) = (tmp_path / ".runs" / name / "evaluations").glob("*/wordings.parquet")
        again = read_items(folder.parent, "wordings")
        assert again.item_ids == own.item_ids[:8]
        numpy.testing.assert_allclose(
            again.values["prompt_sensitivity"], own.values["prompt_sensitivity"][:8], atol=1e-4
        )
        seen.add(tuple(numpy.round(again.values["prompt_sensitivity"], 3)))
    assert len(seen) == 3, "three models: neither adapters nor preferences were forgotten"
    with WandbServer() as server:
        finished = run_command("sweep", *words, *asked, "sync", timeout_s=120, **server.variables)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        for evaluation in (one for one in records.values() if one["stage"] == "evaluate"):
            name = evaluation["run_id"].rsplit("-evaluate-", 1)[0]
            (run,) = (
                key
                for key, one in runs.items()
                if one["run_id"].startswith(name) and one["run_id"].removeprefix(name).count("-") == 1
            )
            summary = server.store.run(run).summary
            for metric, value in evaluation["metrics"].items():
                assert summary[metric] == pytest.approx(value), (name, metric)
            assert (
                summary["validation_wordings.prompt_sensitivity"]
                != runs[run]["metrics"]["validation_wordings.prompt_sensitivity"]
            )
