"""Every mistake gets one clear line and exit code 2, before anything is started."""

import gzip
import json
import os
import shutil
import subprocess

import pytest
from commands import run_command

pytestmark = pytest.mark.integration

LOCAL_DATA = ("dataset=local", "dataset.path={path}")
ROW = {"prompt": "what?", "response": "that."}


def write(name: str, content: str):
    def make(folder):
        path = folder / name
        path.write_text(content)
        return path

    return make


def copy_of_model(change):
    """The embedded checkpoint with something wrong about it."""

    def make(folder):
        from commands import PROJECT

        model = shutil.copytree(PROJECT / "train" / "embedded" / "model", folder / "model")
        change(model)
        return model

    return make


def without_eos(model):
    path = model / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"})
    )
    for name in ("special_tokens_map.json",):
        (model / name).unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    config.pop("eos_token_id", None)
    (model / "config.json").write_text(json.dumps(config))


def truncate_weights(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scramble_header(model):
    path = model / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def folder(path):
    return path


def mt_bench_files(path):
    """Whole by name; what is in them is looked at later."""
    (path / "reference_answer").mkdir()
    for name in ("question.jsonl", "reference_answer/gpt-4.jsonl", "judge_prompts.jsonl"):
        (path / name).write_text("{}\n")
    return path


def ifeval_file(copies):
    def make(path):
        row = {"key": 1, "prompt": "p", "instruction_id_list": [], "kwargs": []} if copies else {"text": "p"}
        file = path / "google" / "IFEval" / "input_data.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text((json.dumps(row) + "\n") * max(1, copies))
        return path

    return make


MT_BENCH = ["+eval.benchmarks.mt.kind=mt_bench", "eval.judge.model=local"]
IFEVAL = [
    "+eval.benchmarks.quiz.kind=lm_eval",
    "+eval.benchmarks.quiz.tasks=[ifeval]",
    "+eval.benchmarks.quiz.hub=[google/IFEval]",
]
GRID = "+grid=smoke_2x2"
CASES = {
    "unknown grid": (["+grid=wit_6x6"], None, "wit_5x5"),
    "no grid": ([], None, "wit_5x5"),
    "unknown model": ([GRID, "model=llama_9"], None, "llama_3_2_1b"),
    "unknown dataset": ([GRID, "dataset=limaa"], None, "lima"),
    "unknown action": ([GRID, "plam"], None, "plan"),
    "misspelt key": ([GRID, "train.learnin_rate=1"], None, "learning_rate"),
    "misspelt grid key": ([GRID, "grid.sedes=[0]"], None, "seeds"),
    "wrong type": ([GRID, "train.learning_rate=fast"], None, "a number"),
    "negative weight": ([GRID, "grid.cells={product:{prompt_weight:[-1],response_weight:[1]}}"], None, "-1"),
    "nan weight": ([GRID, "grid.cells={product:{prompt_weight:[nan],response_weight:[1]}}"], None, "nan"),
    "the corner": ([GRID, "grid.cells={product:{prompt_weight:[0],response_weight:[0,1]}}"], None, "exclude"),
    "empty grid": ([GRID, "grid.seeds=[]"], None, "seed"),
    "nothing left": (
        [GRID, "grid.cells={product:{prompt_weight:[0],response_weight:[1]},only:[{prompt_weight:5}]}"],
        None,
        "no cells",
    ),
    "dataset path missing": ([GRID, "dataset=local", "dataset.path=nowhere.jsonl"], None, "nowhere.jsonl"),
    "dataset without path": ([GRID, "dataset=local"], None, "dataset.path"),
    "empty file": ([GRID, *LOCAL_DATA], write("rows.jsonl", ""), "empty"),
    "broken json line": ([GRID, *LOCAL_DATA], write("rows.jsonl", json.dumps(ROW) + "\n{broken\n"), "line 2"),
    "broken json": ([GRID, *LOCAL_DATA], write("rows.json", "[\n" + json.dumps(ROW) + ",\n{]"), "line 3"),
    "no responses": (
        [GRID, *LOCAL_DATA],
        write("rows.jsonl", json.dumps({"prompt": "what?"}) + "\n"),
        "response",
    ),
    "unknown suffix": ([GRID, *LOCAL_DATA], write("rows.docx", "x"), ".docx"),
    "model path missing": ([GRID, "model=local", "model.path=nowhere"], None, "nowhere"),
    "tokenizer without eos": ([GRID, "model=local", "model.path={path}"], copy_of_model(without_eos), "eos"),
    "truncated checkpoint": (
        [GRID, "model=local", "model.path={path}"],
        copy_of_model(truncate_weights),
        "model.safetensors",
    ),
    "scrambled checkpoint": (
        [GRID, "model=local", "model.path={path}"],
        copy_of_model(scramble_header),
        "model.safetensors",
    ),
    "benchmark file absent": (
        [GRID, *MT_BENCH, "+eval.benchmarks.mt.path={path}/absent"],
        folder,
        "question.jsonl",
    ),
    "judge's key missing": (
        [GRID, *MT_BENCH, "+eval.benchmarks.mt.path={path}", "eval.judge.key_variable=NO_SUCH_KEY"],
        mt_bench_files,
        "NO_SUCH_KEY is not set",
    ),
    "no judge": ([GRID, MT_BENCH[0], "+eval.benchmarks.mt.path={path}"], mt_bench_files, "eval.judge.model"),
    "benchmark rows twice": ([GRID, *IFEVAL, "eval.data={path}"], ifeval_file(2), "a second time"),
    "benchmark rows of another shape": ([GRID, *IFEVAL, "eval.data={path}"], ifeval_file(0), "has no key"),
    "unknown measure": (
        [GRID, *MT_BENCH, "+eval.benchmarks.mt.path={path}", "+eval.aggregates.all=[mt.ratting/10]"],
        mt_bench_files,
        "did you mean rating",
    ),
    "hub without network": ([GRID, "model=llama_3_2_1b"], None, "network"),
    "hub dataset without network": ([GRID, "dataset=alpaca_cleaned"], None, "network"),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_mistake_is_one_line_and_starts_nothing(tmp_path, name):
    arguments, make, expected = CASES[name]
    path = make(tmp_path) if make else None
    root = tmp_path / "root"
    arguments = [argument.format(path=path) if "{path}" in argument else argument for argument in arguments]
    result = run_command(
        "sweep", *arguments, f"root={root}", HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1"
    )
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert expected.lower() in lines[0].lower(), lines[0]
    assert "Traceback" not in result.stdout + result.stderr
    assert not list(root.glob(".runs/*")), "nothing may be started"


def test_a_compressed_file_that_is_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode() * 1000)[:-20])
    result = run_command("sweep", GRID, "dataset=local", f"dataset.path={path}", f"root={tmp_path}/root")
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_full_disk_is_found_before_anything_starts(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (folder / "ballast").write_bytes(b"x" * 60_000)
        result = run_command("sweep", GRID, f"root={folder}/out")
        assert result.returncode == 2, result.stdout + result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert "space" in result.stderr
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_read_only_folder_is_found_before_anything_starts(tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir()
    if os.geteuid() == 0:  # root writes through permissions: a read-only mount is the real thing
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("mounting a read-only file system is not allowed here")
    else:
        folder.chmod(0o500)
    try:
        result = run_command("sweep", GRID, f"root={folder}/out")
        assert result.returncode == 2, result.stdout + result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)
