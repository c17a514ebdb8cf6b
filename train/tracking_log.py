"""How many points really are in W&B's own file: its transaction log, read without W&B's help.

W&B 0.31 tells nobody that it could not write, and its reader went private. The format is LevelDB's log of
protocol buffers: blocks of 32 KiB, chunks with a header of 7 bytes (checksum, length, kind), 7 in front.
"""

from collections.abc import Iterator
from pathlib import Path

_BLOCK, _HEADER, _START = 32768, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def num_points(path: Path) -> int:
    """Lines of history in the log; 0 if it isn't there."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] - made at run time

    count = 0
    for content in _records(path):
        record = Record()
        record.ParseFromString(content)
        count += record.WhichOneof("record_type") == "history"
    return count


def _records(path: Path) -> Iterator[bytes]:
    """The whole records; a half-written last one is left out."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    position, parts = _START, b""
    while position + _HEADER <= len(content):
        if _BLOCK - position % _BLOCK < _HEADER:  # the rest of a block that is too short for a header
            position += _BLOCK - position % _BLOCK
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        chunk = content[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(chunk) < length:
            return
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            yield parts
