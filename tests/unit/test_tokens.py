"""Token data: what is counted, what is refused, a cache that is never half believed; the tokenizer."""

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
from tokenizers_for_tests import FAMILIES, tokenizer_of, wrapped

import train.tokens
from train.config import DatasetConfig, ModelConfig
from train.errors import DataError, ModelError, TemplateError
from train.spans import Encoder
from train.templates import Role
from train.tokenizer import load_tokenizer
from train.tokens import TokenData, load_token_data

MODEL = ModelConfig(name="tiny", source="local", path="/nowhere")
ROWS = [
    {"id": index, "prompt": f"Where is cat {index}?", "response": f"In house {index}."} for index in range(20)
]


def local(path, **settings_of_dataset):
    return DatasetConfig(name="mine", source="local", path=str(path), **settings_of_dataset)


@pytest.fixture
def rows_file(tmp_path):
    return written(tmp_path / "rows.jsonl", ROWS)


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def load(dataset, *, family="byte_level", cache=None, context_length=None, identity="sha256:x", model=MODEL):
    return load_token_data(
        dataset, model, tokenizer_of(family), context_length=context_length, dataset_identity=identity,
        model_identity="sha256:y", cache_folder=cache,
    )  # fmt: skip


def assert_equal(left: TokenData, right: TokenData):
    assert left.counts == right.counts
    assert left.unusable == right.unusable
    assert list(left.splits) == list(right.splits)
    for split, tokens in left.splits.items():
        for item in dataclasses.fields(tokens):
            one, other = getattr(tokens, item.name), getattr(right.splits[split], item.name)
            if isinstance(one, np.ndarray):
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                assert (one == other).all()
            else:
                assert one == other


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_counts_and_shapes(rows_file, family):
    dataset = local(rows_file)
    data = load(dataset, family=family)
    encoder = Encoder(tokenizer_of(family), max_tokens=512)
    assert {split: len(tokens) for split, tokens in data.splits.items()} == {
        "train": 16, "validation": 2, "test": 2, "robustness": 0,
    }  # fmt: skip
    from train.rows import load_rows

    for split, rows in load_rows(dataset).splits.items():
        tokens = data.splits[split]
        assert (tokens.ids.dtype, tokens.roles.dtype, tokens.offsets.dtype) == (np.int32, np.uint8, np.int64)
        assert (tokens.role_bytes.dtype, tokens.prompt_lengths.dtype) == (np.int64, np.int32)
        assert tokens.role_bytes.shape == (len(rows), 5)
        assert tokens.offsets[-1] == len(tokens.ids) == len(tokens.roles)
        for index, row in enumerate(rows):
            alone = encoder.encode(row.messages)
            kept = tokens.row(index)
            assert not isinstance(alone, str)
            assert kept.row_id == row.row_id
            assert kept.ids.tolist() == alone.ids.tolist()
            assert kept.roles.tolist() == alone.roles.tolist()
            assert kept.role_bytes.tolist() == alone.role_bytes.tolist()
            assert kept.prompt_length == alone.prompt_length
            assert kept.check is None
    train = data.splits["train"]
    assert data.counts["rows_read"] == 20
    assert data.counts["train_rows"] == 16
    assert data.counts["train_truncated_rows"] == 0
    for role in ("prompt", "response", "system", "template"):
        assert data.counts[f"train_{role}_tokens"] == (train.roles == Role[role.upper()]).sum()
    assert data.counts["train_response_tokens"] > 16
    assert "robustness_rows" not in data.counts
    with pytest.raises(IndexError):
        train.row(16)
    with pytest.raises(IndexError):
        train.row(-1)


def test_lengths_are_cut_to_the_smaller_limit(rows_file):
    long = [{**row, "response": row["response"] * 9} for row in ROWS]
    path = written(rows_file, long)
    for dataset, context_length in ((local(path, max_tokens=25), None), (local(path, max_tokens=25), 99),
                                    (local(path), 25)):  # fmt: skip
        data = load(dataset, context_length=context_length)
        assert np.diff(data.splits["train"].offsets).max() == 25
        assert data.counts["train_truncated_rows"] == 16
    assert load(local(path)).counts["train_truncated_rows"] == 0


def test_unusable_rows_are_counted_by_reason_and_too_many_refused(rows_file):
    bad = [{"prompt": "word " * 90, "response": "a"}, {"prompt": "b", "response": "<|end|>"},
           {"prompt": "c", "response": ""}, {"prompt": "d"}]  # fmt: skip
    path = written(rows_file, ROWS + bad)
    data = load(local(path, max_tokens=60))
    assert data.unusable == {
        "empty_response": 1, "no_response": 1, "prompt_too_long": 1, "special_token_in_text": 1,
    }  # fmt: skip
    assert data.counts["unusable_rows.prompt_too_long"] == 1
    assert data.counts["rows_read"] == 24
    assert sum(len(tokens) for tokens in data.splits.values()) == 20
    assert len(load(local(path, max_tokens=60, max_unusable_share=4 / 24)).splits["train"]) > 0
    with pytest.raises(
        DataError, match=r"4 of 24 rows.*empty_response 1, no_response 1, prompt_too_long 1.*60 tokens"
    ) as caught:
        load(local(path, max_tokens=60, max_unusable_share=3.9 / 24))
    assert "max_unusable_share=0.1625" in str(caught.value)
    with pytest.raises(DataError, match="no row is left to train on"):
        load(local(path, max_tokens=3, max_unusable_share=1))


def test_unusable_share_of_a_sample_is_that_of_the_sample(rows_file):
    """num_train_rows leaves most rows out of the tokens; they must not water down the share."""
    path = written(
        rows_file,
        [{"prompt": f"{index} " + "word " * 40 * (index % 2), "response": "a"} for index in range(400)],
    )
    settings_of_dataset = {
        "max_tokens": 40,
        "num_train_rows": 20,
        "num_validation_rows": 5,
        "num_test_rows": 5,
    }
    with pytest.raises(DataError, match="rows can't be used"):
        load(local(path, **settings_of_dataset))


def test_template_errors_come_through(rows_file):
    with pytest.raises(TemplateError):
        load(local(rows_file), model=dataclasses.replace(MODEL, template="chat"))


def test_cache_hit_equals_fresh_and_reads_no_rows(rows_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    dataset = local(rows_file)
    uncached = load(dataset)
    fresh = load(dataset, cache=cache)
    monkeypatch.setattr(train.tokens, "load_rows", None)
    hit = load(dataset, cache=cache)
    assert_equal(uncached, fresh)
    assert_equal(fresh, hit)
    assert len(list(cache.iterdir())) == 1
    import torch

    assert torch.from_numpy(hit.splits["train"].row(0).ids).sum() == uncached.splits["train"].row(0).ids.sum()


def test_a_change_to_a_hit_stays_in_memory(rows_file, tmp_path):
    hit = [load(local(rows_file), cache=tmp_path / "cache") for _ in range(3)]
    before = hit[1].splits["train"].ids.copy()
    hit[1].splits["train"].ids[:] = 0
    assert (hit[2].splits["train"].ids == before).all()
    assert (load(local(rows_file), cache=tmp_path / "cache").splits["train"].ids == before).all()


def test_embedded_checks_survive_the_cache(tmp_path):
    dataset = DatasetConfig(name="tiny", source="embedded", num_train_rows=5, num_validation_rows=4,
                            num_test_rows=3, num_robustness_rows=2)  # fmt: skip
    fresh = load(dataset, cache=tmp_path)
    assert_equal(fresh, load(dataset, cache=tmp_path))
    check = fresh.splits["robustness"].row(0).check
    assert check is not None
    assert {"answer", "family", "constraint", "messages"} <= set(check)


def test_the_key_holds_all_that_changes_tokens_and_nothing_else(rows_file, tmp_path):
    cache = tmp_path / "cache"

    def num_folders(dataset=None, **settings_of_load):
        load(dataset or local(rows_file), cache=cache, **settings_of_load)
        return len(list(cache.iterdir()))

    assert num_folders() == 1
    # Shared by every pair of weights (they aren't even arguments), by names, places and idle limits.
    same = rows_file.rename(rows_file.with_name("renamed.jsonl"))
    shutil.copy(same, rows_file)
    assert num_folders(local(same)) == 1
    assert num_folders(dataclasses.replace(local(same), name="other", max_unusable_share=0.9)) == 1
    assert num_folders(model=dataclasses.replace(MODEL, name="other", path="/else")) == 1
    assert num_folders(model=dataclasses.replace(MODEL, add_bos=True)) == 1  # the tokenizer's own way
    assert num_folders(context_length=512) == 1
    # Not shared.
    for number, settings_of_load in enumerate((
        {"identity": "sha256:other"}, {"context_length": 40}, {"family": "gpt2_like"},
        {"model": dataclasses.replace(MODEL, template="tulu")},
        {"model": dataclasses.replace(MODEL, template="chatml")},
        {"model": dataclasses.replace(MODEL, add_bos=False)}, {"dataset": local(rows_file, split_seed=1)},
        {"dataset": local(rows_file, num_train_rows=3)}, {"dataset": local(rows_file, num_test_rows=1)},
        {"dataset": local(rows_file, max_tokens=100)}, {"dataset": local(rows_file, columns="pair")},
    ), start=2):  # fmt: skip
        assert num_folders(**settings_of_load) == number, settings_of_load
    assert num_folders(identity="hub:organisation/name@unresolved") == 12  # nobody knows what it holds


def test_version_is_part_of_the_key(rows_file, tmp_path, monkeypatch):
    load(local(rows_file), cache=tmp_path / "cache")
    monkeypatch.setattr(train.tokens, "TOKENS_VERSION", 10**6)
    load(local(rows_file), cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


DAMAGES = ["no meta", "half meta", "no array", "cut array", "short array", "empty folder", "no split"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_made_anew(rows_file, tmp_path, damage):
    cache = tmp_path / "cache"
    fresh = load(local(rows_file), cache=cache)
    folder = next(cache.iterdir())
    meta, array = folder / "meta.json", folder / "train.ids.npy"
    if damage == "no meta":
        meta.unlink()
    elif damage == "half meta":
        meta.write_text(meta.read_text()[:50])
    elif damage == "no array":
        array.unlink()
    elif damage == "cut array":
        array.write_bytes(array.read_bytes()[:-5])
    elif damage == "short array":
        np.save(array, np.zeros(3, np.int32))
    elif damage == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        content = json.loads(meta.read_text())
        del content["splits"]["test"]
        meta.write_text(json.dumps(content))
    assert_equal(load(local(rows_file), cache=cache), fresh)
    assert [path.name for path in cache.iterdir()] == [folder.name]
    assert train.tokens._read(folder) is not None


def test_a_writer_that_dies_leaves_nothing_to_believe(rows_file, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def die(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.tokens, "write_json_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        load(local(rows_file), cache=cache)
    assert list(cache.iterdir()) == []


def test_writers_at_the_same_time_are_harmless(rows_file, tmp_path):
    cache = tmp_path / "cache"
    results, start = [], threading.Barrier(4)

    def work():
        start.wait()
        results.append(load(local(rows_file), cache=cache))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results[1:]:
        assert_equal(result, results[0])
    assert len(list(cache.iterdir())) == 1


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tokenizer_of("byte_level").save_pretrained(str(folder))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_load_tokenizer_from_a_folder(model_folder):
    tokenizer = load_tokenizer(dataclasses.replace(MODEL, path=str(model_folder)))
    assert tokenizer.is_fast
    assert tokenizer("Where is")["input_ids"] == tokenizer_of("byte_level")("Where is")["input_ids"]


def refuse_tokenizer(config, *parts):
    with pytest.raises(ModelError) as caught:
        load_tokenizer(config)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    assert caught.value.fix


def test_bad_tokenizers_have_one_line_each(model_folder, tmp_path, monkeypatch):
    config = dataclasses.replace(MODEL, path=str(model_folder))
    refuse_tokenizer(dataclasses.replace(MODEL, path=str(tmp_path / "absent")), "absent does not exist")
    (model_folder / "tokenizer.json").write_text('{"version": ')
    refuse_tokenizer(config, "no usable tokenizer")
    for path in model_folder.glob("token*"):
        path.unlink()
    refuse_tokenizer(config, "no usable tokenizer", "tokenizer.json")
    wrapped(tokenizer_of("byte_level").backend_tokenizer).save_pretrained(str(model_folder))
    refuse_tokenizer(config, "no EOS token", "tokenizer_config.json")
    import transformers

    slow = type("SlowTokenizer", (), {"is_fast": False})()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_arguments, **_settings: slow)
    refuse_tokenizer(config, "slow-only (SlowTokenizer)", "fast")


def test_hub_tokenizer_without_network_says_what_to_do(monkeypatch, model_folder):
    import huggingface_hub

    config = ModelConfig(name="far", source="hub", path="organisation/name", revision="abc")

    def fail(*_arguments, **_settings):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refuse_tokenizer(
        config, "organisation/name", "hf download organisation/name --revision abc", "model.source=local"
    )
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda path, **settings_of_call: asked.update(settings_of_call, path=path) or str(model_folder),
    )
    assert load_tokenizer(config).eos_token == "<|end|>"
    assert (asked["path"], asked["revision"]) == ("organisation/name", "abc")
    assert not any(pattern.endswith("safetensors") for pattern in asked["allow_patterns"])


def test_real_rows_with_a_real_tokenizer(shared_data, tmp_path):
    dataset = local(
        shared_data / "sft_lima_alpagasus" / "alpagasus_claude_t45_alpaca.jsonl", num_train_rows=300
    )
    data = load(dataset, family="stories260k", cache=tmp_path)
    assert data.counts["rows_read"] == 5305
    assert data.unusable["empty_response"] == 4
    train = data.splits["train"]
    first = [int(train.row(index).roles[train.row(index).prompt_length]) for index in range(len(train))]
    assert set(first) == {int(Role.RESPONSE)}
    assert os.listdir(tmp_path)
