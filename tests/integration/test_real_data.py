"""The whole path on real files and a real pre-trained checkpoint: the commands of the README."""

import json

import pandas
import pytest
from commands import run_command

pytestmark = pytest.mark.integration

FILES = ("lima_data.jsonl", "alpagasus_3k_dolly.jsonl", "alpagasus_claude_t45_alpaca.jsonl")


@pytest.mark.parametrize("file_name", FILES)
def test_smoke_2x2_reaches_its_report_on_real_data(shared_data, tmp_path, file_name):
    result = run_command(
        "sweep",
        "+grid=smoke_2x2",
        "model=local",
        f"model.path={shared_data}/stories260k/hf",
        "dataset=local",
        f"dataset.path={shared_data}/sft_lima_alpagasus/{file_name}",
        f"root={tmp_path}",
        "train.max_steps=20",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = tmp_path / "smoke_2x2" / "report"
    assert (report / "report.html").stat().st_size > 20_000
    region = json.loads((report / "region.json").read_text())
    assert region["planes"]
    cells = pandas.read_parquet(report / "cells.parquet")
    trained = cells[(cells.prompt_weight > 0) | (cells.response_weight > 0)]
    assert len(trained) == 3
    assert (trained.status == "finished").all()
    assert trained.validation_response_nll.between(0.5, 10).all()
    by_weights = trained.set_index(["prompt_weight", "response_weight"])
    base = cells[(cells.prompt_weight == 0) & (cells.response_weight == 0)].iloc[0]
    # What a weight trains gets better: the real effect, on real text.
    assert by_weights.loc[(0, 1), "validation_response_nll"] < base.validation_response_nll
    assert by_weights.loc[(1, 0), "validation_prompt_nll"] < base.validation_prompt_nll
    assert (
        by_weights.loc[(0, 1), "validation_response_nll"] < by_weights.loc[(1, 0), "validation_response_nll"]
    )
