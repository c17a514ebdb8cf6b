"""Finished runs of one base evaluated at once: each to what it is worth alone, and none at another's expense."""

import dataclasses

import pytest
import torch
from test_plane_benchmarks import Quiz, texts

import train.benchmarks.evaluation as evaluation
import train.workbench as workbench_module
from train.benchmarks import models, plane_backend
from train.benchmarks.company import measured_alike, measured_alone
from train.benchmarks.config import evaluation_fingerprint
from train.benchmarks.identity import asked_protocols
from train.benchmarks.run import Evaluated, evaluate_run, evaluate_runs
from train.compose import compose_run
from train.conclusion import parameters_sha256
from train.config import EvalConfig, build, config_to_dict
from train.errors import DataError, ModelError
from train.files import write_json_atomic
from train.items import read_items
from train.kept import has_weights
from train.loop import Interrupted
from train.model import add_adapters, load_model, trainable_parameters
from train.record import RunRecord, record_to_dict
from train.run import run
from train.tokenizer import load_tokenizer
from train.weights import save_weights
from train.workbench import Workbench

NUM_RUNS = 3  # and the base model
WORDS = ["objective.prompt_weight=1", "objective.response_weight=1", "seed=0", "train=lora"]
EVAL = build(
    EvalConfig,
    {"benchmarks": {name: {"kind": "lm_eval", "tasks": ["x"]} for name in ("animals", "birds")}},
    "eval.",
)
CONFIG = dataclasses.replace(compose_run(WORDS), eval=EVAL, stage="evaluate")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The saved adapters of each run, with their hashes."""
    noise, tokenizer = torch.Generator().manual_seed(1), load_tokenizer(CONFIG.model)
    folder, hashes = tmp_path_factory.mktemp("weights"), []
    for n in range(NUM_RUNS):
        model = add_adapters(load_model(CONFIG.model, torch.device("cpu")), CONFIG.train, 0)
        with torch.no_grad():
            for value in trainable_parameters(model).values():
                value += 0.05 * torch.randn(value.shape, generator=noise)
        hashes.append(parameters_sha256(model))
        save_weights(model, tokenizer, CONFIG, folder / str(n), {})
    return folder, hashes


@pytest.fixture
def quizzes(monkeypatch):
    """Benchmarks that need no lm-eval; a run folder named in `broken` breaks its scores."""
    broken = set()

    class Breakable(Quiz):
        def __init__(self, name, context):
            super().__init__(name)
            self.protocol, self.run_folder = context.protocol, context.run_folder

        def score(self, outputs, backend):
            if self.run_folder in broken:
                raise RuntimeError("what it wrote can't be scored")
            return super().score(outputs, backend)

    module = type(
        "module", (), {"make_benchmark": staticmethod(lambda name, config, context: Breakable(name, context))}
    )
    monkeypatch.setattr(evaluation, "import_module", lambda name: module)
    return broken


@pytest.fixture
def runs(tmp_path, weights, quizzes):
    return finished_runs(tmp_path / "together", weights)


def finished_runs(root, weights):
    """Evaluations of finished runs, the base model first."""
    saved, hashes = weights
    protocols = asked_protocols(EVAL, None)
    found = []
    for n in range(-1, NUM_RUNS):
        folder = root / f"run {n}"
        folder.mkdir(parents=True)
        if n >= 0:
            (folder / "weights").symlink_to(saved / str(n) / "weights")
        record = RunRecord(
            run_id=f"r{n}",
            fingerprint=f"f{n}",
            outcome="finished",
            stage="base" if n < 0 else "sft",
            parameters_sha256="base" if n < 0 else hashes[n],
        )
        write_json_atomic(folder / "record.json", record_to_dict(record))
        (root / f"evaluation {n}").mkdir()
        found.append(
            Evaluated(
                config=CONFIG,
                run_id=f"e{n}",
                fingerprint=evaluation_fingerprint(f"f{n}", protocols, {}),
                folder=root / f"evaluation {n}",
                attempt=1,
                parent_folder=folder,
            )
        )
    return found


def together(runs, should_stop=lambda: False, workbench=None):
    """By place; what was heard of each."""
    heard = {}
    places = {one.fingerprint: place for place, one in enumerate(runs)}

    def ended(one, what):
        assert places[one.fingerprint] not in heard, "each is heard of once"
        heard[places[one.fingerprint]] = what

    evaluate_runs(
        runs,
        workbench=workbench or Workbench(None),
        model_identity="m",
        should_stop=should_stop,
        ended=ended,
    )
    return heard


@pytest.fixture(scope="module")
def alone(tmp_path_factory, weights):
    """The same runs one by one: evaluations and their records."""
    with pytest.MonkeyPatch.context() as patch:
        module = type("module", (), {"make_benchmark": staticmethod(plain_quiz)})
        patch.setattr(evaluation, "import_module", lambda name: module)
        found, bench = finished_runs(tmp_path_factory.mktemp("alone"), weights), Workbench(None)
        settings = {"attempt": 1, "workbench": bench, "model_identity": "m", "should_stop": lambda: False}
        records = [
            evaluate_run(
                one.config,
                run_id=one.run_id,
                fingerprint=one.fingerprint,
                folder=one.folder,
                parent_folder=one.parent_folder,
                on_progress=lambda done, total: None,
                **settings,
            )
            for one in found
        ]
    return found, records


def plain_quiz(name, config, context):
    quiz = Quiz(name)
    quiz.protocol = context.protocol
    return quiz


def same(runs, heard, alone, places):
    """Texts to the letter, numbers to 1e-6 nats/token and rounding of logits."""
    others, records = alone
    for place in places:
        assert texts(runs[place].parent_folder) == texts(others[place].parent_folder)
        assert heard[place].metrics == pytest.approx(records[place].metrics, abs=5e-6)
        assert heard[place].measured == {
            name: {**about, "standard_error": pytest.approx(about["standard_error"], abs=5e-6)}
            if "standard_error" in about
            else about
            for name, about in records[place].measured.items()
        }
        for name, protocol in asked_protocols(EVAL, None).items():
            mine, theirs = (
                read_items(one[place].parent_folder / "evaluations" / protocol, name)
                for one in (runs, others)
            )
            assert (mine.item_ids, mine.outputs) == (theirs.item_ids, theirs.outputs)


def test_each_is_worth_what_it_is_worth_alone_and_the_base_is_loaded_once(runs, alone, monkeypatch):
    loaded, told = [], {}
    load = workbench_module.load_model
    monkeypatch.setattr(workbench_module, "load_model", lambda *each: loaded.append(each) or load(*each))
    listening = [
        dataclasses.replace(
            one, on_progress=lambda done, total, name=one.run_id: told.update({name: (done, total)})
        )
        for one in runs
    ]
    heard = together(listening)
    assert len(loaded) == 1
    same(runs, heard, alone, range(4))
    assert len({record.metrics["all_animals.accuracy"] for record in heard.values()}) == 4
    assert [heard[place].environment["evaluated_with"] for place in range(4)] == [4] * 4
    assert all("evaluated_with" not in record.environment for record in alone[1])
    assert len(set(told.values())) == 1, "each counts its own outputs"
    assert told["e0"][0] == told["e0"][1] > 0
    for record in heard.values():
        assert (record.outcome, record.stage) == ("finished", "evaluate")
        assert record.evaluation_s > 0
        assert record.setup_s > 0
    assert [heard[n].parameters_sha256 for n in range(4)] == [one.parameters_sha256 for one in alone[1]]


def test_one_that_breaks_takes_no_other_down(runs, alone, quizzes, weights):
    changed = dataclasses.replace(runs[3], fingerprint="another protocol")
    (runs[1].parent_folder / "weights").unlink()
    quizzes.add(runs[2].parent_folder)
    heard = together([*runs[:3], changed])
    same(runs, heard, alone, [0])
    assert isinstance(heard[1], ModelError)
    assert "kept no weights to evaluate" in str(heard[1])
    assert str(heard[2]) == "what it wrote can't be scored"
    assert isinstance(heard[3], DataError)
    assert "changed since the plan was made" in str(heard[3])


def test_a_torn_adapter_is_its_own_failure(runs, alone, weights):
    broken = runs[1].parent_folder / "weights"
    saved = broken.resolve()
    broken.unlink()
    broken.mkdir()
    for path in saved.iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[:100] if path.suffix == ".safetensors" else content)
    heard = together(runs)
    assert isinstance(heard[1], Exception)
    same(runs, heard, alone, [0, 2, 3])


def test_asked_to_stop_what_is_over_stays_and_the_rest_goes_on_later(runs, alone):
    ended, bench = [], Workbench(None)
    with pytest.raises(Interrupted, match="stopped between two benchmarks"):
        evaluate_runs(
            runs,
            workbench=bench,
            model_identity="m",
            should_stop=lambda: len(ended) == 2,
            ended=lambda one, what: ended.append((one.run_id, what)),
        )
    assert [name for name, _ in ended] == ["e-1", "e0"]
    written = [texts(one.parent_folder) for one in runs]
    heard = together(runs[2:], workbench=bench)
    assert [texts(one.parent_folder) for one in runs] == written, "nothing is asked a second time"
    same(runs[2:], heard, tuple(each[2:] for each in alone), [0, 1])


def test_one_that_is_called_away_leaves_the_others(runs, alone):
    away = dataclasses.replace(runs[2], should_stop=lambda: True)
    heard = together([*runs[:2], away, runs[3]])
    assert isinstance(heard[2], Interrupted)
    same(runs, heard, alone, [0, 1, 3])


def test_a_group_that_does_not_fit_is_halved(runs, alone, monkeypatch, capsys):
    write, sizes = plane_backend.PlaneBackend.generate, []

    def lacking(self, places, requests):
        sizes.append(len(places))
        if len(places) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return write(self, places, requests)

    monkeypatch.setattr(plane_backend.PlaneBackend, "generate", lacking)
    heard = together(runs)
    assert sizes[0] == 4
    assert set(sizes[1:]) == {2}
    assert "4 together did not fit in memory: evaluated 2 at a time" in capsys.readouterr().out
    same(runs, heard, alone, range(4))


def test_no_more_are_held_than_there_is_room_for(runs, alone, monkeypatch):
    adapted = add_adapters(load_model(CONFIG.model, torch.device("cpu")), CONFIG.train, 0)
    size = sum(each.numel() * each.element_size() for each in trainable_parameters(adapted).values())
    monkeypatch.setattr(models, "_free_host_memory", lambda: 3 * size / models._SHARE_OF_FREE_MEMORY)
    heard = together(runs)
    assert [heard[n].environment.get("evaluated_with") for n in range(4)] == [3, 3, 3, None]
    same(runs, heard, alone, range(4))


def test_a_group_that_breaks_is_evaluated_run_by_run(runs, alone, monkeypatch, capsys):
    def broken(self, places, requests):
        raise RuntimeError("shapes")

    monkeypatch.setattr(plane_backend.PlaneBackend, "generate", broken)
    heard = together(runs)
    same(runs, heard, alone, range(4))
    assert "a group of them broke (RuntimeError: shapes): evaluated 1 at a time" in capsys.readouterr().out


def test_a_full_disk_is_nobodys_failure(runs, monkeypatch):
    def full(*each):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_items", full)
    with pytest.raises(OSError, match="No space left"):
        together(runs)


def test_runs_without_weights_are_trained_again_one_that_comes_out_otherwise_fails_alone(tmp_path, quizzes):
    words = [f"dataset.num_{split}_rows=8" for split in ("train", "validation", "test")]
    words += ["dataset.num_robustness_rows=0", "train.max_steps=1", "eval.generate=false"]
    bench, runs = Workbench(None), []
    retrain = dataclasses.replace(EVAL, retrain=True)
    protocols = asked_protocols(retrain, None)
    for n, weight in enumerate((0, 0.5, 1)):
        config = compose_run([*WORDS[1:], f"objective.prompt_weight={weight}", *words])
        about = {"run_id": f"r{n}", "fingerprint": f"f{n}", "model_identity": "m", "dataset_identity": "d"}
        folder = tmp_path / f"run {n}"
        heard = {"should_stop": lambda: False, "on_progress": lambda step, steps: None}
        record = run(config, folder=folder, attempt=1, workbench=bench, **about, **heard)
        record = dataclasses.replace(
            record, parameters_sha256="another" if n == 1 else record.parameters_sha256
        )
        write_json_atomic(folder / "record.json", record_to_dict(record))
        write_json_atomic(folder / "spec.json", {**about, "config": config_to_dict(config)})
        (tmp_path / f"evaluation {n}").mkdir()
        runs.append(
            Evaluated(
                config=dataclasses.replace(config, eval=retrain, stage="evaluate"),
                run_id=f"e{n}",
                fingerprint=evaluation_fingerprint(f"f{n}", protocols, {}),
                folder=tmp_path / f"evaluation {n}",
                attempt=1,
                parent_folder=folder,
            )
        )
    heard = together(runs, workbench=bench)
    assert "training it again gave others" in str(heard[1])
    assert [heard[n].environment["evaluated_with"] for n in (0, 2)] == [2, 2]
    assert not any(has_weights(one.parent_folder) for one in runs)


def changed(**parts):
    config = CONFIG
    for part, values in parts.items():
        new = dataclasses.replace(getattr(config, part), **values)
        config = dataclasses.replace(config, **{part: new})
    return config


@pytest.mark.parametrize(
    ("config", "alone"),
    [
        (CONFIG, ""),
        (changed(train={"method": "full"}), "a whole model of its own"),
        (changed(eval={"backend": "vllm"}), "eval.backend=vllm"),
        (changed(train={"plane": "off"}), "train.plane=off"),
    ],
)
def test_who_is_measured_alone(config, alone):
    assert measured_alone(config) == alone


def test_who_is_measured_alike():
    alike = changed(train={"learning_rate": 1.0, "max_steps": 3}, objective={"prompt_weight": 0.3})
    assert measured_alike(alike) == measured_alike(CONFIG)
    for parts in ({"train": {"lora_rank": 3}}, {"eval": {"limit": 3}}, {"train": {"lora_alpha": 3.0}}):
        assert measured_alike(changed(**parts)) != measured_alike(CONFIG)
