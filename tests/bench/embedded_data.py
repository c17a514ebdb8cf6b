"""The embedded experiment in the files that other trainers read. For bench_plane.py and bench_question.py."""

import json
import shutil
from pathlib import Path

from train.config import DatasetConfig
from train.rows import embedded_row_dicts
from train.tokenizer import EMBEDDED_MODEL_FOLDER


def write_embedded(folder: Path, config: DatasetConfig) -> Path:
    """FOLDER/model and a file of prompts and completions for each split, joined by single spaces as we do."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(EMBEDDED_MODEL_FOLDER, folder / "model")
    for split, rows in embedded_row_dicts(config).items():
        lines = []
        for row in rows:
            *before, last = [message["content"] for message in row["messages"]]
            lines.append(json.dumps({"prompt": " ".join(before), "completion": f" {last}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
