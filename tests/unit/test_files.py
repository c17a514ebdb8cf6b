"""Files are whole or not there, and the first writer wins."""

import math
import threading

import pytest

from train.files import read_json, write_json_atomic, write_json_exclusive


def test_exclusive_has_one_winner_with_its_whole_content(tmp_path):
    path = tmp_path / "claim.json"
    won: list[int] = []

    def contend(number: int) -> None:
        if write_json_exclusive(path, {"winner": number, "padding": "x" * 10000}):
            won.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_json(path)["winner"] == won[0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["claim.json"], "no temporary file may stay"


def test_nan_is_refused_and_the_old_content_stays(tmp_path):
    path = tmp_path / "record.json"
    write_json_atomic(path, {"value": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json_atomic(path, {"value": math.nan})
    assert read_json(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', "[1, 2]", "null", "\udcff"])
def test_a_half_written_file_is_never_believed(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_json(path) is None
    assert read_json(tmp_path / "absent.json") is None
