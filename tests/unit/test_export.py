"""Exported weights are the record's, load everywhere, and are refused where they can't be proved."""

import json
import shutil

import pytest
import torch

from train.__main__ import main
from train.compose import compose_run
from train.errors import ConfigError, ModelError
from train.export import export_run, find_run_folder
from train.fingerprint import fingerprint
from train.identity import dataset_identity, model_identity
from train.kept import ABOUT, FOLDER, has_weights
from train.parents import check_parent, overrides_with_parent, parent_weights, read_parent
from train.record import record_to_dict
from train.run import Workbench, run
from train.weights import load_weights, saved_sha256

SMALL = [
    "dataset.num_train_rows=16",
    "dataset.num_validation_rows=4",
    "dataset.num_test_rows=0",
    "train.epochs=1",
    "train.warmup_ratio=0",
    "eval=likelihood",
    "objective.prompt_weight=0",
    "objective.response_weight=1",
    "seed=0",
]


def train(folder, *words, workbench=None):
    config = compose_run([*SMALL, *words])
    identities = {
        "model_identity": model_identity(config.model, cache_folder=None),
        "dataset_identity": dataset_identity(config.dataset, cache_folder=None),
    }
    name = fingerprint(config, **identities)
    record = run(
        config,
        run_id="mine",
        fingerprint=name,
        folder=folder,
        attempt=1,
        should_stop=lambda: False,
        workbench=workbench or Workbench(None),
        on_progress=lambda step, steps: None,
        **identities,
    )
    (folder / "record.json").write_text(json.dumps(record_to_dict(record)))
    from train.config import config_to_dict

    (folder / "spec.json").write_text(
        json.dumps({"run_id": "mine", "fingerprint": name, **identities, "config": config_to_dict(config)})
    )
    return record


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    return folder, train(folder, "keep=all")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return folder, train(folder, "keep=all", "train=lora", "train.batch_size=8", "train.epochs=1")


def test_a_full_run_is_a_transformers_folder(full, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, record = full
    assert export_run(folder, tmp_path / "out") == record.parameters_sha256
    assert not list((tmp_path / "out").glob("*.bin"))
    assert list((tmp_path / "out").glob("*.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.config.use_cache
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id is not None
    reference = train(tmp_path / "again")  # keeps nothing: same bits
    assert reference.parameters_sha256 == record.parameters_sha256
    assert not has_weights(tmp_path / "again")
    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert sorted(name for name, _ in model.named_parameters()) == about["parameters"]
    ids = torch.tensor([[1, 5, 9]])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_an_adapter_is_a_peft_folder(adapted, tmp_path):
    from peft import PeftModel

    from train.conclusion import parameters_sha256
    from train.model import load_model
    from train.tokenizer import quiet

    folder, record = adapted
    export_run(folder, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    base = load_model(compose_run(SMALL).model, torch.device("cpu"))
    with quiet():  # peft 0.21 asks transformers 5.23 by a name on its way out
        loaded = PeftModel.from_pretrained(base, tmp_path / "out", is_trainable=True)
    assert parameters_sha256(loaded) == record.parameters_sha256 == saved_sha256(tmp_path / "out")


def test_weights_that_are_not_the_records_are_refused(full, tmp_path):
    folder = shutil.copytree(full[0], tmp_path / "run")
    weights = next((folder / FOLDER).glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="aren't those of its record"):
        export_run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_that_were_not_kept_can_be_made_again(full, tmp_path, capsys):
    folder = shutil.copytree(full[0], tmp_path / "run")
    shutil.rmtree(folder / FOLDER)
    assert main(["export", str(folder), f"output={tmp_path / 'out'}"]) == 2
    line = capsys.readouterr().err
    assert "weren't kept" in line
    assert "python -m train model=embedded" in line
    assert "keep=all output=FOLDER" in line
    found = parent_weights(read_parent(folder), tmp_path / "scratch", Workbench(None), lambda: False)
    assert found == folder / FOLDER
    assert saved_sha256(found) == full[1].parameters_sha256


def test_a_run_is_found_by_any_of_its_names(full, tmp_path, capsys):
    folder, _ = full
    root = tmp_path / "outputs"
    shutil.copytree(folder, root / ".runs" / "abc123")
    (root / "sweep" / "runs").mkdir(parents=True)
    (root / "sweep" / "runs" / "embedded-p0-r1").symlink_to("../../.runs/abc123")
    for word in ("abc1", "embedded-p0", "p0-r1", str(root / ".runs" / "abc123")):
        assert find_run_folder(word, root).resolve() == (root / ".runs" / "abc123").resolve()
    shutil.copytree(folder, root / ".runs" / "abc999")
    with pytest.raises(ConfigError, match="2 finished runs match abc"):
        find_run_folder("abc", root)
    with pytest.raises(ConfigError, match="no finished run matches"):
        find_run_folder("x[", root)
    assert main(["export", "abc1", f"output={tmp_path / 'out'}", f"root={root}"]) == 0
    assert main(["export", "abc1", f"output={tmp_path / 'out'}", f"root={root}"]) == 2, (
        "never over other files"
    )
    assert main(["export", "abc1"]) == main(["export"]) == main(["export", "a", "b=c", "output=x"]) == 2
    assert main(["export", "--help"]) == 0


def test_a_parent_on_another_base_is_one_line(full, adapted):
    parent = read_parent(full[0])
    ours = compose_run([*SMALL, "stage=dpo"])
    check_parent(parent, ours, parent.model_identity)
    with pytest.raises(ModelError, match="was trained on another base") as caught:
        check_parent(parent, ours, "sha256:other")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="train differs from that of parent"):
        check_parent(read_parent(adapted[0]), ours, parent.model_identity)


def test_a_child_inherits_what_it_does_not_say(full):
    parent = read_parent(full[0])
    config = compose_run(overrides_with_parent(parent, ["stage=dpo", "dpo.beta=0.3", "preference=embedded"]))
    assert config.objective == parent.config.objective
    assert config.train == parent.config.train
    assert (config.stage, config.dpo.beta) == ("dpo", 0.3)
    said = overrides_with_parent(parent, ["dataset=local", "dataset.path=/x", "seed=4"])
    assert not [word for word in said if word.startswith("dataset.num")]
    assert said.count("seed=4") == 1 == sum(word.startswith("seed=") for word in said)


def test_what_is_no_finished_run_is_no_parent(full, tmp_path):
    with pytest.raises(ConfigError, match="is no run"):
        read_parent(tmp_path)
    folder = shutil.copytree(full[0], tmp_path / "failed")
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "outcome": "failed"}))
    with pytest.raises(ConfigError, match="isn't finished"):
        read_parent(folder)
    shutil.copytree(full[0] / FOLDER, tmp_path / "exported")
    assert read_parent(tmp_path / "exported").weights == tmp_path / "exported"


def test_weights_of_another_shape_are_refused(full, adapted):
    from train.model import load_model

    model = load_model(compose_run(SMALL).model, torch.device("cpu"))
    with pytest.raises(ModelError, match="lacks"):
        load_weights(model, adapted[0] / FOLDER)
