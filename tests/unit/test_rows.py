"""Row formats, file types, bad rows, bad files and splits."""

import csv
import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import DatasetConfig
from train.errors import DataError
from train.rows import SPLITS, Message, convert, load_rows, split_rows, usable_rows

PAIRS = [{"prompt": f"question {index}?", "response": f"answer {index}"} for index in range(6)]
AS_MESSAGES = tuple((Message("user", row["prompt"]), Message("assistant", row["response"])) for row in PAIRS)


def local(path, **settings_of_dataset):
    return DatasetConfig(name="mine", source="local", path=str(path), **settings_of_dataset)


def all_messages(loaded):
    return sorted((row.messages for rows in loaded.splits.values() for row in rows), key=str)


def rows_in(row_format):
    if row_format == "pair":
        return PAIRS
    if row_format == "alpaca":
        return [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in PAIRS]
    role, text, human, machine, key = {
        "messages": ("role", "content", "user", "assistant", "messages"),
        "sharegpt": ("from", "value", "human", "gpt", "conversations"),
    }[row_format]
    return [
        {key: [{role: human, text: row["prompt"]}, {role: machine, text: row["response"]}]} for row in PAIRS
    ]


def write(path, rows):
    """The rows in the file type that the suffix says."""
    if path.name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".csv"):
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
        text = lines if ".jsonl" in path.name else json.dumps(rows, indent=1)
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(("suffix", "row_format"), [
    (suffix, row_format)
    for suffix in (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".csv")
    for row_format in ("pair", "alpaca", "messages", "sharegpt")
    if suffix != ".csv" or row_format in ("pair", "alpaca")  # a CSV cell holds no list
])  # fmt: skip
@pytest.mark.parametrize("is_forced", [False, True])
def test_every_format_in_every_file_type(tmp_path, suffix, row_format, is_forced):
    path = write(tmp_path / f"rows{suffix}", rows_in(row_format))
    loaded = load_rows(local(path, columns=row_format if is_forced else "auto"))
    assert all_messages(loaded) == sorted(AS_MESSAGES, key=str)
    assert (loaded.num_read, dict(loaded.unusable)) == (6, {})


def test_json_shapes(tmp_path):
    path = tmp_path / "rows.json"
    for text in (json.dumps({"version": 1, "data": PAIRS}), "\n".join(map(json.dumps, PAIRS)),
                 "\ufeff" + json.dumps(PAIRS)):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        assert all_messages(load_rows(local(path))) == sorted(AS_MESSAGES, key=str)


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"prompt": "a\u2028b\u0085c", "response": "x\x1cy"}, ensure_ascii=False), encoding="utf-8"
    )
    assert all_messages(load_rows(local(path))) == [
        (Message("user", "a\u2028b\u0085c"), Message("assistant", "x\x1cy"))
    ]


def test_long_csv_cells_and_line_ends_in_them(tmp_path):
    rows = [{"prompt": "a\nb", "response": "x" * 200_000}]
    assert all_messages(load_rows(local(write(tmp_path / "rows.csv", rows))))[0][1].content == "x" * 200_000


def test_folder_of_files_reads_the_named_split_or_all(tmp_path):
    write(tmp_path / "part-1.jsonl", PAIRS[:2])
    write(tmp_path / "part-2.parquet", PAIRS[2:])
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache" / "old.jsonl", PAIRS)
    assert load_rows(local(tmp_path)).num_read == 6
    write(tmp_path / "train-00000.jsonl", PAIRS[:3])
    assert load_rows(local(tmp_path)).num_read == 3
    write(tmp_path / "training_notes.jsonl", PAIRS)
    assert load_rows(local(tmp_path)).num_read == 3


def test_folders_written_by_the_datasets_library(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(rows_in("messages"))
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "extra": data.select(range(2))}).save_to_disk(str(tmp_path / "two"))
    assert all_messages(load_rows(local(tmp_path / "one"))) == sorted(AS_MESSAGES, key=str)
    assert load_rows(local(tmp_path / "two")).num_read == 6
    assert load_rows(local(tmp_path / "two", hub_split="extra")).num_read == 2
    with pytest.raises(DataError, match=r"hub_split=other is not in .*train, extra"):
        load_rows(local(tmp_path / "two", hub_split="other"))
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(DataError, match="can't be loaded"):
        load_rows(local(tmp_path / "one"))


def test_plain_files_need_no_data_library(tmp_path, monkeypatch):
    import sys

    for name in ("datasets", "pyarrow", "pandas", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    for suffix in (".json", ".jsonl", ".csv", ".jsonl.gz"):
        assert load_rows(local(write(tmp_path / f"rows{suffix}", PAIRS))).num_read == 6


ROLES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(("row_format", "raw", "reason"), [
    ("pair", {"prompt": "q", "response": None}, "no_response"),
    ("pair", {"prompt": "q"}, "no_response"),
    ("pair", {"response": "a"}, "no_prompt"),
    ("pair", {"prompt": None, "response": "a"}, "no_prompt"),
    ("pair", {"prompt": "q", "response": " \n"}, "empty_response"),
    ("pair", {"prompt": "q", "response": "###eos_token###"}, "empty_response"),
    ("pair", {"prompt": "\t", "response": "a"}, "empty_prompt"),
    ("pair", {"prompt": 5, "response": "a"}, "wrong_type"),
    ("pair", {"prompt": "q", "response": ["a"]}, "wrong_type"),
    ("pair", {"prompt": "q", "response": "a\ud800"}, "invalid_unicode"),
    ("pair", {"question": "q"}, "unknown_format"),
    ("pair", {}, "unknown_format"),
    ("pair", "text", "wrong_type"),
    ("pair", None, "wrong_type"),
    ("alpaca", {"instruction": "q", "input": "", "output": ""}, "empty_response"),
    ("alpaca", {"instruction": "q", "input": ""}, "no_response"),
    ("alpaca", {"instruction": " ", "input": " ", "output": "a"}, "empty_prompt"),
    ("alpaca", {"instruction": "q", "input": 3, "output": "a"}, "wrong_type"),
    ("messages", {"messages": "text"}, "wrong_type"),
    ("messages", {"messages": ["text"]}, "wrong_type"),
    ("messages", {"messages": [{"content": "q"}]}, "wrong_type"),
    ("messages", {"messages": []}, "no_response"),
    ("messages", turns(("user", "q")), "no_response"),
    ("messages", turns(("system", "s")), "no_response"),
    ("messages", turns(("user", "q"), ("assistant", "")), "empty_response"),
    ("messages", turns(("user", "q"), ("assistant", None)), "no_response"),
    ("messages", turns(("user", None), ("assistant", "a")), "no_prompt"),
    ("messages", turns(("user", " "), ("assistant", "a")), "empty_prompt"),
    ("messages", turns(("user", [{"type": "text"}]), ("assistant", "a")), "wrong_type"),
    ("messages", turns(("assistant", "a"), ("user", "q"), ("assistant", "a")), "bad_role_order"),
    ("messages", turns(("user", "q"), ("user", "q"), ("assistant", "a")), "bad_role_order"),
    ("messages", turns(("user", "q"), ("assistant", "a"), ("assistant", "a")), "bad_role_order"),
    ("messages", turns(("user", "q"), ("system", "s"), ("assistant", "a")), "bad_role_order"),
    ("messages", turns(("user", "q"), ("tool", "t"), ("assistant", "a")), "bad_role_order"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "bad_role_order"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}]}, "no_response"),
])  # fmt: skip
def test_every_reason(row_format, raw, reason):
    assert convert(raw, row_format) == reason
    loaded, unusable = usable_rows([*rows_in(row_format), raw], row_format, place="here")
    assert len(loaded) == 6
    assert unusable == {reason: 1}


def test_what_is_kept_of_a_row():
    user, assistant = Message("user", "q"), Message("assistant", "a")
    assert convert({"instruction": "q", "input": "i", "output": "a"}, "alpaca") == (
        Message("user", "q\n\ni"),
        assistant,
    )
    assert convert({"instruction": "", "input": "i", "output": "a"}, "alpaca") == (
        Message("user", "i"),
        assistant,
    )
    assert convert({"instruction": "q", "input": " ", "output": "a"}, "alpaca") == (user, assistant)
    assert convert({"instruction": "q", "output": "a"}, "alpaca") == (user, assistant)
    assert convert({"prompt": "q", "response": "a###eos_token###"}, "pair") == (user, assistant)
    assert convert({"prompt": " q ", "response": "\na "}, "pair") == (
        Message("user", " q "),
        Message("assistant", "\na "),
    )
    two = [("user", "q"), ("assistant", "a")] * 2
    assert convert(turns(("system", "s"), *two), "messages") == (
        Message("system", "s"),
        *(user, assistant) * 2,
    )
    assert convert(turns(("system", " "), *two), "messages") == (user, assistant) * 2
    assert convert(turns(*two, ("user", "unanswered")), "messages") == (user, assistant) * 2
    conversations = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
    assert convert({"conversations": conversations}, "sharegpt") == (Message("system", "s"), user, assistant)
    conversations = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
    assert convert({"conversations": conversations}, "sharegpt") == (user, assistant)


def test_the_format_is_that_of_most_of_the_first_rows():
    rows, unusable = usable_rows([*rows_in("alpaca")[:1], *PAIRS], "auto", place="here")
    assert len(rows) == 6
    assert unusable == {"unknown_format": 1}


def test_ids_are_given_ones_where_unique_and_content_else():
    given = [{**row, "id": index} for index, row in enumerate(PAIRS)]
    assert [row.row_id for row in usable_rows(given, "auto", place="")[0]] == list("012345")
    same = [{**row, "id": "x"} for row in PAIRS]
    ids = [row.row_id for row in usable_rows(same, "auto", place="")[0]]
    assert len(set(ids)) == 6
    assert all(name.startswith("x-") for name in ids)
    assert sorted(row.row_id for row in usable_rows(same[::-1], "auto", place="")[0]) == sorted(ids)
    twice = [row.row_id for row in usable_rows(PAIRS[:1] * 3, "auto", place="")[0]]
    assert len(set(twice)) == 3
    assert [name[16:] for name in twice] == ["", "-2", "-3"]


def refuse(config, *parts):
    with pytest.raises(DataError) as caught:
        load_rows(config)
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    assert caught.value.expected
    assert caught.value.fix


def test_bad_files_have_one_line_each(tmp_path):
    refuse(local(tmp_path / "absent.jsonl"), "absent.jsonl", "does not exist")
    (tmp_path / "folder").mkdir()
    refuse(local(tmp_path / "folder"), "no data file")
    for name, content, parts in (
        ("a.xlsx", b"x", ("unsupported suffix", ".jsonl")),
        ("a.jsonl", b"", ("is empty",)),
        ("a.jsonl", b"\n\n", ("is empty",)),
        ("a.json", b"[]", ("is empty",)),
        ("a.csv", b"prompt,response\n", ("is empty",)),
        ("a.jsonl", b'{"prompt": "q", "response": "a"}\n\n{"prompt": \n', ("a.jsonl line 3", "mend line 3")),
        ("a.json", b'[\n{"prompt": "q"},\n{"prompt" "q"}\n]', ("a.json line 3",)),
        ("a.json", b'{"a": "q"}\n{"a" "q"}', ("a.json line 2",)),
        ("a.json", b'{"a": [], "b": []}', ("2 lists", "a, b")),
        ("a.json", b'{"a": 1}', ("0 lists",)),
        ("a.json", b'"text"', ("holds a str",)),
        ("a.json", b"[" * 100_000, ("line 1", "deep")),
        ("a.jsonl", b"[" * 100_000, ("line 1", "deep")),
        ("a.jsonl", b'{"prompt": "q"}\n\xff\xfe', ("line 2", "UTF-8")),
        ("a.jsonl.gz", b"not gzip", ("not a whole gzip file",)),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "q"}\n' * 99)[:-12], ("not a whole gzip file",)),
        ("a.parquet", b"PAR1 not", ("not a whole Parquet file",)),
        ("a.csv", b'prompt,response\n"q,a\n', ("line", "broken")),
        ("a.jsonl", b'{"question": "q", "reply": "a"}',
         ("no row has a response", "question, reply", "instruction/output", "dataset.columns")),
        ("a.jsonl", b'{"instruction": "q", "context": ""}', ("no row has a response", "no_response 1")),
        ("a.jsonl", b"[1]\n2", ("no row has a response", "keys found: none")),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        refuse(local(tmp_path / name), *parts)
    refuse(
        local(write(tmp_path / "b.jsonl", PAIRS), columns="messages"),
        "no row has a response",
        "unknown_format 6",
    )


def hub(**settings_of_dataset):
    return DatasetConfig(name="far", source="hub", path="organisation/name", **settings_of_dataset)


def test_hub_without_network_or_cache_says_what_to_do(monkeypatch):
    import huggingface_hub

    for error in (OSError("no route\nto host"), ValueError(""), KeyError("x")):

        def fail(*_arguments, error=error, **_settings):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        refuse(hub(revision="abc"), "hf download --repo-type dataset organisation/name --revision abc",
               "dataset.source=local")  # fmt: skip


def test_hub_reads_the_snapshot_with_the_datasets_library(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download",
        lambda path, **settings_of_call: asked.append((path, settings_of_call)) or str(tmp_path / "snapshot"),
    )  # fmt: skip
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "snapshot" / "train.jsonl", PAIRS)
    write(tmp_path / "snapshot" / "test.jsonl", PAIRS[:2])
    loaded = load_rows(hub(revision="abc"))
    assert all_messages(loaded) == sorted(AS_MESSAGES, key=str)
    assert asked == [("organisation/name", {"repo_type": "dataset", "revision": "abc"})]
    assert load_rows(hub(hub_split="test")).num_read == 2
    refuse(hub(hub_split="other"), "split other", "dataset.hub_split")


def many(number, prompts=None):
    raw = [{"prompt": f"q{index % (prompts or number)}", "response": f"a{index}"} for index in range(number)]
    return usable_rows(raw, "pair", place="")[0]


def ids_by_split(rows, **settings_of_dataset):
    return {split: [row.row_id for row in chosen]
            for split, chosen in split_rows(rows, local("x", **settings_of_dataset)).items()}  # fmt: skip


def test_split_sizes():
    sizes = {split: len(ids) for split, ids in ids_by_split(many(1000), num_validation_rows=50).items()}
    assert sizes == {"train": 850, "validation": 50, "test": 100, "robustness": 0}
    sizes = {split: len(ids) for split, ids in ids_by_split(many(10)).items()}
    assert sizes == {"train": 8, "validation": 1, "test": 1, "robustness": 0}
    assert [len(ids) for ids in ids_by_split(many(9)).values()] == [9, 0, 0, 0]
    limited = ids_by_split(many(1000), num_train_rows=7, num_test_rows=0)
    assert [len(limited[split]) for split in SPLITS] == [7, 100, 0, 0]


def test_fewer_training_rows_are_the_first_of_more():
    whole = ids_by_split(many(200))
    assert ids_by_split(many(200), num_train_rows=20)["train"] == whole["train"][:20]
    assert ids_by_split(many(200), num_train_rows=20)["test"] == whole["test"]


def test_order_of_the_file_changes_nothing_but_the_seed_does():
    rows = many(300, prompts=200)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert ids_by_split(rows) == ids_by_split(shuffled)
    assert ids_by_split(rows)["train"] != [
        row.row_id for row in rows if row.row_id in set(ids_by_split(rows)["train"])
    ]
    other = ids_by_split(rows, split_seed=1)
    assert set(other["test"]) != set(ids_by_split(rows)["test"])
    assert other["train"][:5] != ids_by_split(rows)["train"][:5]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(number=st.integers(1, 120), prompts=st.integers(1, 60), seed=st.integers(0, 5))
def test_splits_partition_the_rows_and_share_no_first_prompt(number, prompts, seed):
    rows = many(number, prompts=prompts)
    chosen = split_rows(rows, local("x", split_seed=seed, num_test_rows=5))
    ids = [row.row_id for split in SPLITS for row in chosen[split]]
    assert sorted(ids) == sorted(row.row_id for row in rows)
    prompts_by_split = [{row.messages[0].content for row in chosen[split]} for split in SPLITS]
    assert sum(map(len, prompts_by_split)) == len(set.union(*prompts_by_split))
    assert len(chosen["validation"]) <= number // 10
    assert len(chosen["test"]) <= min(5, number // 10)


def test_first_prompt_decides_also_behind_a_system_message():
    rows = usable_rows([turns(("system", f"s{index}"), ("user", f"q{index // 2}"), ("assistant", f"a{index}"))
                        for index in range(60)], "auto", place="")[0]  # fmt: skip
    chosen = split_rows(rows, local("x"))
    prompts = [{row.messages[1].content for row in chosen[split]} for split in SPLITS]
    assert len(chosen["test"]) == 6
    assert sum(map(len, prompts)) == 30


def test_embedded_rows_carry_their_check():
    loaded = load_rows(DatasetConfig(name="tiny", source="embedded", num_validation_rows=5, num_test_rows=4,
                                     num_robustness_rows=3))  # fmt: skip
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {
        "train": 512, "validation": 5, "test": 4, "robustness": 3,
    }  # fmt: skip
    assert loaded.num_read == 524
    row = loaded.splits["robustness"][0]
    assert row.check is not None
    assert row.check["answer"]
    assert row.check["id"] == row.row_id
    assert row.messages[-1].role == "assistant"
    limited = load_rows(DatasetConfig(name="tiny", source="embedded", num_train_rows=3, split_seed=9))
    assert len(limited.splits["train"]) == 3
    assert limited.splits["train"][0].messages != loaded.splits["train"][0].messages


def test_real_files(shared_data):
    folder = shared_data / "sft_lima_alpagasus"
    lima = load_rows(local(folder / "lima_data.jsonl"))
    assert lima.num_read == 1030
    assert {split: len(rows) for split, rows in lima.splits.items()} == {
        "train": 824, "validation": 103, "test": 103, "robustness": 0,
    }  # fmt: skip
    assert sum(len(row.messages) > 2 for rows in lima.splits.values() for row in rows) == 30
    alpaca = load_rows(local(shared_data / "sft_alpaca_demo" / "alpaca_en_demo.json"))
    assert alpaca.num_read == 999
    seeds = shared_data / "self_instruct_seeds" / "seed_tasks.jsonl"
    refuse(local(seeds), "no row has a response", "instances", "instruction")
