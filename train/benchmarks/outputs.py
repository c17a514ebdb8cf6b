"""What a model wrote, kept on disk by a hash of what it was asked, so that nothing is generated twice."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.benchmarks.interface import Output, Request
from train.files import write_text_atomic

_VERSION = 1


class Outputs:
    """What one model wrote, on disk: a line an output, the first line says whose. A torn last line is ignored."""

    def __init__(self, path: Path, parameters_sha256: str, add_bos: bool | None) -> None:
        self._path, self._add_bos = path, add_bos
        self._known: dict[str, Output] = {}
        header = {"version": _VERSION, "parameters_sha256": parameters_sha256}
        lines, is_whole = _lines(path)
        if not lines or lines[0] != header:
            lines, is_whole = [header], False
        if not is_whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines[1:]:
            self._known[line["name"]] = Output(
                line["text"], line["num_tokens"], line["is_truncated"], line["is_cut"]
            )

    def name(self, request: Request) -> str:
        """The hash of everything that decides what the model writes, its parameters aside."""
        asked = {**dataclasses.asdict(request), "add_bos": self._add_bos}
        if request.temperature == 0:
            asked |= {"key": "", "seed": 0}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]

    def __contains__(self, request: Request) -> bool:
        return self.name(request) in self._known

    def __getitem__(self, request: Request) -> Output:
        return self._known[self.name(request)]

    def add(self, requests: Sequence[Request], outputs: Sequence[Output]) -> None:
        """Remember a slab, on disk in one write."""
        with open(self._path, "a", encoding="utf-8") as stream:
            for request, output in zip(requests, outputs, strict=True):
                name = self.name(request)
                self._known[name] = output
                stream.write(
                    json.dumps({"name": name, **dataclasses.asdict(output)}, ensure_ascii=True) + "\n"
                )


def _lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The lines of a file, and whether that is all of it: a kill tears the last one."""
    try:
        texts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], False
    found: list[dict[str, Any]] = []
    for text in texts[:-1]:
        try:
            found.append(json.loads(text))
        except ValueError:
            return found, False
    return found, not texts[-1]
