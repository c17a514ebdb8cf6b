"""Identities: content and nothing else; and the pre-flight that catches broken data and checkpoints."""

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time

import pytest

from train import identity
from train.config import DatasetConfig, ModelConfig
from train.errors import DataError, ModelError, TemplateError
from train.identity import dataset_identity, model_identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = [{"prompt": f"q{index}", "response": "a"} for index in range(5)]


def dataset(path, **settings_of_dataset):
    return DatasetConfig(name="mine", source="local", path=str(path), **settings_of_dataset)


def model(path, **settings_of_model):
    return ModelConfig(name="mine", source="local", path=str(path), **settings_of_model)


def of_data(config, cache=None):
    return dataset_identity(config, cache_folder=cache)


def of_model(config, cache=None):
    return model_identity(config, cache_folder=cache)


def aged(path):
    """As if it had been written a minute ago; the memo does not trust files of this very moment."""
    then = time.time() - 60
    os.utime(path, (then, then))
    return path


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def safetensors(size=8):
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def test_needs_no_heavy_library():
    code = (
        "import sys, train.identity\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'datasets', 'huggingface_hub', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    root = os.path.dirname(os.path.dirname(identity.__file__))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


def test_a_files_identity_is_its_content(rows_file, tmp_path):
    first = of_data(dataset(rows_file))
    assert first.startswith("sha256:")
    assert len(first) == 71
    copy = shutil.copy(rows_file, tmp_path / "copy.jsonl")
    assert of_data(dataset(copy, max_tokens=9)) == first
    rows_file.write_text(rows_file.read_text().replace("q0", "Q0"))
    assert of_data(dataset(rows_file)) != first


def test_a_folders_identity_is_names_and_contents_of_its_data(rows_file, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(rows_file, folder / "a.jsonl")
    one = of_data(dataset(folder))
    (folder / "README.md").write_text("notes")
    assert of_data(dataset(folder)) == one
    shutil.copy(rows_file, folder / "b.jsonl")
    two = of_data(dataset(folder))
    assert two != one
    (folder / "b.jsonl").rename(folder / "c.jsonl")
    assert of_data(dataset(folder)) != two
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert of_data(dataset(moved)) == of_data(dataset(folder))


def test_a_folder_written_by_datasets(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    first = of_data(dataset(tmp_path / "saved"))
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes() + b"x")
    assert of_data(dataset(tmp_path / "saved")) != first


def test_embedded_data_are_the_rows_they_would_be():
    config = DatasetConfig(
        name="tiny", source="embedded", num_train_rows=5, num_validation_rows=5, num_test_rows=5
    )
    first = of_data(config)
    assert first == of_data(dataclasses.replace(config, name="other", max_tokens=9))
    for change in ({"split_seed": 1}, {"num_train_rows": 6}, {"num_validation_rows": 4}, {"num_test_rows": 4},
                   {"num_robustness_rows": 1}):  # fmt: skip
        assert of_data(dataclasses.replace(config, **change)) != first


def test_a_models_identity_is_its_files_and_its_template(model_folder, tmp_path):
    first = of_model(model(model_folder))
    assert first.startswith("sha256:")
    assert first.endswith("+template:raw")
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    assert of_model(model(moved)) == first
    for name in ("PROVENANCE.json", "README.md", "training_args.bin", "optimizer.pt", "custom.py"):
        (moved / name).write_text("{}")
    assert of_model(model(moved)) == first
    assert of_model(model(moved, trust_remote_code=True)) != of_model(
        model(model_folder, trust_remote_code=True)
    )
    for name, content in (("config.json", b'{"model_type": "gpt2"}'), ("tokenizer.json", b'{"version": "2"}'),
                          ("tokenizer_config.json", b'{"eos_token": "</e>"}'), ("chat_template.jinja", b"x"),
                          ("model.safetensors", safetensors(9)),
                          ("b.safetensors", safetensors())):  # fmt: skip
        changed = shutil.copytree(model_folder, tmp_path / f"changed-{name}")
        (changed / name).write_bytes(content)
        assert of_model(model(changed)) != first, name


def test_the_names_of_a_models_files_count(model_folder):
    first = of_model(model(model_folder))
    (model_folder / "model.safetensors").rename(model_folder / "other.safetensors")
    assert of_model(model(model_folder)) != first


def test_the_template_counts_by_its_text(model_folder, tmp_path):
    (tmp_path / "a.jinja").write_text("{{ messages }}")
    shutil.copy(tmp_path / "a.jinja", tmp_path / "b.jinja")
    (tmp_path / "c.jinja").write_text("{{ messages }}!")
    names = ["raw", "chat", "tulu", "chatml", *(str(tmp_path / f"{letter}.jinja") for letter in "abc")]
    found = [of_model(model(model_folder, template=name)) for name in names]
    assert found[4] == found[5]
    assert len(set(found)) == 6
    with pytest.raises(TemplateError, match="absent"):
        of_model(model(model_folder, template=str(tmp_path / "absent.jinja")))


def refuse(call, error, *parts):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    assert caught.value.expected
    assert caught.value.fix


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("config.json", None, ("no config.json",)),
    ("config.json", b"", ("config.json is empty",)),
    ("config.json", b'{\n"a": }', ("config.json line 2 is broken",)),
    ("config.json", b"\xff", ("config.json is broken",)),
    ("tokenizer.json", None, ("no tokenizer", "tokenizer.model")),
    ("tokenizer.json", b"", ("tokenizer.json is empty",)),
    ("tokenizer_config.json", b'{"eos_token": null}', ("no EOS token", "tokenizer_config.json")),
    ("tokenizer_config.json", None, ("no EOS token",)),
    ("model.safetensors", b"", ("model.safetensors is empty",)),
    ("model.safetensors", b"abc", ("header is cut short",)),
    ("model.safetensors", safetensors()[:40], ("header is cut short",)),
    ("model.safetensors", safetensors()[:-1], ("corrupt", "bytes")),
    ("model.safetensors", safetensors() + b"x", ("corrupt",)),
    ("model.safetensors", struct.pack("<Q", 4) + b"nope", ("header is not valid",)),
    ("model.safetensors", struct.pack("<Q", 8) + b'{"w": 1}', ("header is not valid",)),
    ("model.safetensors", struct.pack("<Q", 2) + b"[]", ("header is not valid",)),
    ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors", "b": "two.safetensors"}}',
     ("lacks 1 of 2 weight files", "two.safetensors")),
])  # fmt: skip
def test_broken_checkpoints_have_one_line_each(model_folder, name, content, parts):
    if content is None:
        (model_folder / name).unlink()
    else:
        (model_folder / name).write_bytes(content)
    refuse(lambda: of_model(model(model_folder)), ModelError, *parts)


@pytest.mark.parametrize(("name", "content"), [
    ("tokenizer_config.json", {"eos_token": {"content": "</s>"}}),
    ("special_tokens_map.json", {"eos_token": "</s>"}),
    ("config.json", {"eos_token_id": 0}),
    ("config.json", {"text_config": {"eos_token_id": [1, 2]}}),
])  # fmt: skip
def test_eos_may_be_named_in_any_of_four_places(model_folder, name, content):
    (model_folder / "tokenizer_config.json").write_text("{}")
    (model_folder / name).write_text(json.dumps(content))
    assert of_model(model(model_folder))


def test_missing_folders(tmp_path, monkeypatch):
    refuse(lambda: of_model(model(tmp_path / "absent")), ModelError, "absent is not a folder")
    refuse(lambda: of_data(dataset(tmp_path / "absent.jsonl")), DataError, "absent.jsonl does not exist")
    monkeypatch.setattr(identity, "EMBEDDED_MODEL_FOLDER", tmp_path / "absent")
    refuse(
        lambda: of_model(ModelConfig(name="tiny", source="embedded")), ModelError, "embedded model is missing"
    )


def test_real_checkpoint(shared_data):
    assert of_model(model(shared_data / "stories260k" / "hf")).startswith("sha256:")


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("a.jsonl", b"", ("a.jsonl is empty",)),
    ("a.jsonl", b"\n\n", ("a.jsonl is empty",)),
    ("a.json", b"[]", ("a.json is empty",)),
    ("a.jsonl", b'{"prompt": "q", "response": "a"}\n{"prompt"\n', ("a.jsonl line 2",)),
    ("a.json", b'[{"prompt": "q"},\n{]', ("a.json line 2",)),
    ("a.jsonl", b'{"prompt": "q"}\n', ("no row has a response",)),
    ("a.csv", b"x,y\n1,2\n", ("no row has a response", "x, y")),
    ("a.parquet", b"PAR1 cut", ("not a whole Parquet file",)),
    ("a.parquet", b"P", ("not a whole Parquet file",)),
    ("a.docx", b"x", ("unsupported suffix",)),
])  # fmt: skip
def test_broken_data_is_caught_before_anything_starts(tmp_path, name, content, parts):
    (tmp_path / name).write_bytes(content)
    refuse(lambda: of_data(dataset(tmp_path / name)), DataError, *parts)


def test_of_a_large_file_only_the_first_rows_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MAX_PARSED_BYTES", 100)
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROWS[0]) + "\n"
    path.write_text(good * 200 + "{broken")
    assert of_data(dataset(path))
    path.write_text(good * 2 + "{broken\n" + good * 200)
    refuse(lambda: of_data(dataset(path)), DataError, "a.jsonl line 3")


def test_hashes_are_remembered_until_the_file_changes(rows_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    aged(rows_file)
    first = of_data(dataset(rows_file), cache)
    reads = []
    digest = identity.hashlib.file_digest
    monkeypatch.setattr(
        identity.hashlib,
        "file_digest",
        lambda stream, name: reads.append(stream.name) or digest(stream, name),
    )
    assert of_data(dataset(rows_file), cache) == first
    assert reads == []
    assert of_data(dataset(rows_file)) == first
    assert len(reads) == 1
    rows_file.write_text(rows_file.read_text().replace("q0", "Q0"))  # same size
    aged(rows_file)
    changed = of_data(dataset(rows_file), cache)
    assert changed != first
    os.utime(rows_file, (1, 1))
    assert of_data(dataset(rows_file), cache) == changed
    assert len(reads) == 3
    replacement = rows_file.with_name("new")  # same size and time, another file
    replacement.write_text(rows_file.read_text().replace("Q0", "q0"))
    os.utime(replacement, (1, 1))
    os.replace(replacement, rows_file)
    assert of_data(dataset(rows_file), cache) == first


def test_a_file_of_this_moment_is_not_remembered(rows_file, tmp_path):
    cache = tmp_path / "cache"
    before = of_data(dataset(rows_file), cache)
    stat = rows_file.stat()
    rows_file.write_text(rows_file.read_text().replace("q0", "Q0"))
    os.utime(rows_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a coarse clock would show it
    assert of_data(dataset(rows_file), cache) != before


def test_a_broken_memo_is_no_harm(rows_file, tmp_path):
    cache = tmp_path / "cache"
    aged(rows_file)
    first = of_data(dataset(rows_file), cache)
    memo = cache / "hashes.json"
    for content in (
        "",
        "[]",
        "{",
        json.dumps({str(rows_file): "x"}),
        json.dumps({str(rows_file): [1, 2, 3]}),
    ):
        memo.write_text(content)
        assert of_data(dataset(rows_file), cache) == first
        assert len(json.loads(memo.read_text())) == 1


def test_writers_of_the_memo_at_the_same_time(tmp_path):
    cache = tmp_path / "cache"
    paths = []
    for index in range(8):
        paths.append(aged_rows(tmp_path / f"{index}.jsonl", index))
    found = {}
    threads = [
        threading.Thread(target=lambda p=path: found.update({p: of_data(dataset(p), cache)}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {path: of_data(dataset(path)) for path in paths}
    assert json.loads((cache / "hashes.json").read_text())
    assert [path.name for path in cache.iterdir()] == ["hashes.json"]


def aged_rows(path, index):
    path.write_text(json.dumps({"prompt": f"q{index}", "response": "a"}))
    return aged(path)


def hub_model(**settings_of_model):
    return ModelConfig(name="far", source="hub", path="organisation/name", **settings_of_model)


def hub_dataset(**settings_of_dataset):
    return DatasetConfig(name="far", source="hub", path="organisation/name", **settings_of_dataset)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A hub that can't be reached, and a list of what it was asked."""
    import huggingface_hub

    calls = []

    class Unreachable:
        def repo_info(self, path, **settings_of_call):
            calls.append((path, settings_of_call["repo_type"], settings_of_call["revision"]))
            raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return calls


def test_a_commit_needs_no_network(asked):
    assert of_model(hub_model(revision=COMMIT)) == f"hub:organisation/name@{COMMIT}+template:raw"
    assert of_data(hub_dataset(revision=COMMIT)) == f"hub:organisation/name@{COMMIT}"
    assert asked == []


def test_a_branch_that_cannot_be_resolved(asked):
    refuse(lambda: of_model(hub_model(revision="dev")), ModelError, "revision dev", "network",
           "hf download organisation/name", "model.source=local")  # fmt: skip
    refuse(lambda: of_data(hub_dataset()), DataError, "revision main", "hf download --repo-type dataset",
           "dataset.source=local")  # fmt: skip
    assert asked == [("organisation/name", "model", "dev"), ("organisation/name", "dataset", "main")]
    assert model_identity(hub_model(), cache_folder=None, allow_unresolved=True) == (
        "hub:organisation/name@unresolved+template:raw"
    )
    assert dataset_identity(hub_dataset(), cache_folder=None, allow_unresolved=True) == (
        "hub:organisation/name@unresolved"
    )


def test_the_local_cache_knows_branches(asked, tmp_path, monkeypatch):
    for kind in ("models", "datasets"):
        refs = tmp_path / "home" / "hub" / f"{kind}--organisation--name" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(COMMIT + "\n")
    assert of_data(hub_dataset()) == f"hub:organisation/name@{COMMIT}"
    assert len(asked) == 1  # the hub is asked first where there is a network
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert of_model(hub_model()) == f"hub:organisation/name@{COMMIT}+template:raw"
    assert len(asked) == 1
    (tmp_path / "home" / "hub" / "models--organisation--name" / "refs" / "main").write_text("garbage")
    refuse(lambda: of_model(hub_model()), ModelError, "can't be resolved")


def test_the_hub_is_asked_for_a_branch(asked, monkeypatch):
    import huggingface_hub

    class Reachable:
        def repo_info(self, path, *, repo_type, revision, timeout):
            assert timeout
            asked.append((path, repo_type, revision))
            return type("Info", (), {"sha": COMMIT})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Reachable)
    assert of_data(hub_dataset(revision="v1.0")) == f"hub:organisation/name@{COMMIT}"
    assert asked == [("organisation/name", "dataset", "v1.0")]


def test_a_branch_is_pinned_to_the_commit_of_its_identity():
    from tiny import run_config

    from train.identity import pinned

    config = run_config()
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = dataclasses.replace(config.model, source="hub", path="org/name", revision="main")
    config = dataclasses.replace(config, model=model)
    result = pinned(config, f"hub:org/name@{commit}+template:raw", "sha256:0")
    assert result.model.revision == commit
    assert result.dataset == config.dataset
    assert pinned(config, "hub:org/name@unresolved+template:raw", "sha256:0") == config


def test_a_checkpoint_without_safetensors_is_refused(model_folder):
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        model_identity(model(model_folder), cache_folder=None)
