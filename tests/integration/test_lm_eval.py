"""lm-eval on our model in memory is lm-eval: item by item against its command line; IFEval without chance."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from train.benchmarks import lm_eval_tasks
from train.benchmarks.config import benchmark_configs, protocols
from train.benchmarks.evaluation import evaluate_benchmarks
from train.benchmarks.hf_backend import HFBackend
from train.benchmarks.identity import asked_protocols
from train.benchmarks.interface import Context
from train.benchmarks.prompts import PromptEncoder
from train.config import EvalConfig, ModelConfig, build
from train.errors import ConfigError, DataError
from train.items import read_items, score
from train.model import context_length, load_model
from train.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration
pytest.importorskip("lm_eval", reason="lm-eval isn't installed: pip install -e '.[eval]'")

FLAN = [f"mmlu_flan_n_shot_generative_{subject}" for subject in ("anatomy", "astronomy", "virology")]
FIVE_SHOT = [f"mmlu_{subject}" for subject in ("anatomy", "astronomy", "virology")]
BBH = ["bbh_zeroshot_date_understanding", "bbh_zeroshot_navigate"]
LIMIT = 6  # documents of each task
OURS = {
    "exact_match": "exact_match",
    "acc": "accuracy",
    "prompt_level_strict_acc": "prompt_strict",
    "prompt_level_loose_acc": "prompt_loose",
    "inst_level_strict_acc": "instruction_strict",
    "inst_level_loose_acc": "instruction_loose",
}
FLEXIBLE = {"exact_match": "exact_match,flexible-extract"}


@pytest.fixture(scope="module")
def hubroot(shared_data) -> Path:
    if not (shared_data / "hubroot").is_dir() or not (shared_data / "stories260k" / "hf").is_dir():
        pytest.skip(f"no hubroot and stories260k in {shared_data}")
    return shared_data / "hubroot"


@pytest.fixture(scope="module")
def backend(shared_data, hubroot) -> HFBackend:
    config = ModelConfig(name="stories", source="local", path=str(shared_data / "stories260k" / "hf"))
    tokenizer, model = load_tokenizer(config), load_model(config, torch.device("cpu"))
    encoder = PromptEncoder(tokenizer, template="raw", model_add_bos=None, add_bos=None)
    return HFBackend(model, tokenizer, torch.device("cpu"), encoder, context_length=context_length(model))


def eval_config(shared_data, **benchmarks) -> EvalConfig:
    return build(
        EvalConfig,
        {
            "data": str(shared_data / "hubroot"),
            "punkt": str(shared_data / "nltk_punkt" / "nltk_data"),
            "benchmarks": {name: {"kind": "lm_eval", **values} for name, values in benchmarks.items()},
        },
        "eval.",
    )


def measure(config, folder, cache, make_backend):
    return evaluate_benchmarks(
        config,
        protocols(config, {}),
        make_backend,
        run_folder=folder,
        parameters_sha256="stories260k",
        cache_folder=cache,
    )


@pytest.fixture(scope="module")
def command_line(shared_data, hubroot, tmp_path_factory) -> dict[tuple[str, int], dict]:
    """Every sample of the plain `lm_eval` command line, which runs in the folder that looks like the hub."""
    output = tmp_path_factory.mktemp("lm_eval")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(output / "home"),
        "NLTK_DATA": str(shared_data / "nltk_punkt" / "nltk_data"),
        "OMP_NUM_THREADS": "1",
    }
    command = shutil.which("lm_eval", path=str(Path(sys.executable).parent)) or "lm_eval"
    model = f"pretrained={shared_data / 'stories260k' / 'hf'},dtype=float32,max_length=512"
    tasks = ",".join([*FLAN, *BBH, *FIVE_SHOT, "ifeval"])
    settings = f"run --model hf --device cpu --batch_size 8 --limit {LIMIT} --log_samples".split()
    settings += ["--gen_kwargs", "max_gen_toks=16"]
    finished = subprocess.run(
        [command, *settings, "--model_args", model, "--tasks", tasks, "--output_path", str(output / "out")],
        cwd=hubroot,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    samples = {}
    for path in (output / "out").rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            wanted = "flexible-extract" if task in (*FLAN, *BBH) else "none"
            if sample["filter"] == wanted:
                samples[task, sample["doc_id"]] = sample
    assert len(samples) == LIMIT * 9
    return samples


def test_every_item_equals_the_command_line(shared_data, backend, command_line, tmp_path):
    few = {"max_new_tokens": 16}
    config = eval_config(
        shared_data,
        mmlu={"tasks": FLAN, "metrics": FLEXIBLE, "limit": 3 * LIMIT, **few},
        bbh={"tasks": BBH, "metrics": FLEXIBLE, "limit": 2 * LIMIT, **few},
        mmlu_choices={"tasks": FIVE_SHOT, "limit": 3 * LIMIT},
        ifeval={"tasks": ["ifeval"], "limit": LIMIT, **few},
    )
    names = protocols(config, {})
    measured = measure(config, tmp_path, tmp_path / "cache", lambda: backend)
    num_compared = num_texts = 0
    for benchmark, protocol in names.items():
        items = read_items(tmp_path / "evaluations" / protocol, benchmark)
        for index, item_id in enumerate(items.item_ids):
            task, _, doc_id = item_id.rpartition("/")
            sample = command_line[task, int(doc_id)]
            for theirs, column in OURS.items():
                if theirs in sample:
                    value = sample[theirs]
                    value = sum(value) / len(value) if isinstance(value, list) else float(value)
                    assert items.values[column][index] == value, (item_id, theirs)
                    num_compared += 1
            if items.outputs:
                assert items.outputs[index] == sample["resps"][0][0], item_id
                num_texts += 1
    assert (num_compared, num_texts) == (LIMIT * (3 + 2 + 3 + 4), LIMIT * 6)
    assert measured.details["all_ifeval.instruction_strict"]["num_items"] == LIMIT
    again = measure(config, tmp_path, tmp_path / "cache", lambda: pytest.fail("nothing is left to measure"))
    assert again.metrics == measured.metrics


def test_an_edited_file_of_the_same_name_is_asked_anew(shared_data, hubroot, tmp_path):
    """Neither requests of this process nor those kept on disk are those of other data."""
    hub = tmp_path / "hub" / "google" / "IFEval"
    hub.mkdir(parents=True)
    for path in (hubroot / "google" / "IFEval").iterdir():
        if path.name == "README.md":
            shutil.copy(path, hub)
    lines = (hubroot / "google" / "IFEval" / "input_data.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    config = dataclasses.replace(
        eval_config(shared_data, ifeval={"tasks": ["ifeval"], "hub": ["google/IFEval"]}),
        data=str(tmp_path / "hub"),
    )
    asked, kept, names = [], [], []
    for first in ("Write a poem.", "Write a letter.", "Write a poem."):
        row = {**json.loads(lines[0]), "prompt": first}
        (hub / "input_data.jsonl").write_text("\n".join([json.dumps(row), lines[1]]) + "\n")
        for forget in (False, True):
            if forget:
                lm_eval_tasks._loaded.clear()
            protocol = asked_protocols(config, tmp_path / "cache")["ifeval"]
            context = Context(eval=config, protocol=protocol, cache_folder=tmp_path / "cache")
            (benchmark,) = benchmark_configs(config.benchmarks).values()
            requests = lm_eval_tasks.make_benchmark("ifeval", benchmark, context).requests({})
            asked.append(requests[0].prompt)
            names.append(protocol)
        kept.append(len(list((tmp_path / "cache" / "lm_eval").rglob("*.pickle"))))
    assert asked == ["Write a poem."] * 2 + ["Write a letter."] * 2 + ["Write a poem."] * 2
    assert names[0] == names[1] == names[4] != names[2] == names[3]
    assert kept == [1, 2, 2]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Golden:
    """A model that answers what GPT-4 answered. By order: the hub has mended the text of prompt 2785 since."""

    def __init__(self, golden: Path, hubroot: Path) -> None:
        answered = _rows(golden / "prompt_response.jsonl")
        asked = _rows(hubroot / "google" / "IFEval" / "input_data.jsonl")
        pairs = zip(asked, answered, strict=True)
        self.answers = {question["prompt"]: answer["response"] for question, answer in pairs}

    def generate(self, requests):
        from train.benchmarks.interface import Output

        return [Output(self.answers[request.prompt], 1, False) for request in requests]

    def likelihoods(self, choices):
        assert not choices
        return []


def test_ifeval_scores_the_golden_responses_alike_every_time(shared_data, hubroot, tmp_path):
    golden = shared_data / "ifeval" / "golden_gpt4"
    if not golden.is_dir():
        pytest.skip(f"no {golden}")
    config = eval_config(shared_data, ifeval={"tasks": ["ifeval"]})
    (protocol,) = protocols(config, {}).values()
    for name in ("first", "second"):
        measure(config, tmp_path / name, None, lambda: Golden(golden, hubroot))
        items = read_items(tmp_path / name / "evaluations" / protocol, "ifeval")
        counts = []
        for column in ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose"):
            weights = items.weights.get(column, numpy.ones(len(items)))
            counts.append(round(float((items.values[column] * weights).sum())))
            assert score(items, column).mean == pytest.approx(counts[-1] / weights.sum())
        assert counts == [417, 698, 431, 714]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tasks": ["ifevall"]}, "did you mean ifeval"),
        (
            {"tasks": ["ifeval"], "metrics": {"accuracy": "prompt_level_strict,none"}, "limit": 2},
            "doesn't report",
        ),
    ],
)
def test_names_that_lm_eval_lacks_are_one_line(shared_data, backend, tmp_path, values, said):
    config = eval_config(shared_data, quiz={"max_new_tokens": 2, **values})
    with pytest.raises(ConfigError, match=said) as caught:
        measure(config, tmp_path, None, lambda: backend)
    assert "\n" not in str(caught.value)


def test_data_that_the_folder_lacks_is_one_line(shared_data, backend, tmp_path):
    with pytest.raises(DataError, match="has no"):
        measure(eval_config(shared_data, quiz={"tasks": ["piqa"]}), tmp_path, None, lambda: backend)


def test_edit_rates_of_items_make_the_corpus_rate():
    sacrebleu = pytest.importorskip("sacrebleu")
    from train.benchmarks.columns import Columns

    references = ["the wolf lives in the forest", "a red brick", "one two three four"]
    predictions = ["the wolf lives near the big forest", "brick red a", ""]
    columns = Columns()
    for index, pair in enumerate(zip(references, predictions, strict=True)):
        columns.add(str(index), "t", {"translation_edit_rate": list(pair)}, 1.0, {})
    values, weights = columns.column("translation_edit_rate"), columns.weight("translation_edit_rate")
    expected = sacrebleu.corpus_ter(predictions, [references]).score
    assert 100 * float((values * weights).sum() / weights.sum()) == pytest.approx(expected)
