"""One cell as TRL's users write it: SFTTrainer on prompts and completions, losses of three splits, greedy answers.

    python trl_cell.py FOLDER packed|padded SEED [SEED ...]       cells one after another in this process
    python trl_cell.py FOLDER packed|padded -m hydra/launcher=submitit_local KEY=VALUES ...

FOLDER holds `model` and train, validation, test and robustness as JSON lines of prompt and completion; a cell
writes FOLDER/cells/NAME.json. What it doesn't do that ours does: the two weights (TRL has none: completions only,
whatever the weights; packed, not even those), checkpoints, resuming, per-row results, bits per byte, prompts'
likelihoods, and answers scored beyond equality with the completion. Rows of several turns are trained on their last
answer only. Packed rows attend to each other here, as TRL packs safely only for flash attention, which needs a GPU.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

EPOCHS, ROWS_OF_A_STEP, LEARNING_RATE, LONGEST, NEW_TOKENS = 2, 8, 1e-3, 256, 32
SPLITS = ("train", "validation", "test", "robustness")


def rows_of(folder: Path, split: str) -> list[dict[str, str]]:
    """One split."""
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def settings(folder: Path, seed: int, packed: bool) -> dict[str, Any]:
    """What SFTConfig is told: as many tokens a step either way, and nothing that only costs."""
    return {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": 1 if packed else ROWS_OF_A_STEP,
        "packing": packed,
        "eval_packing": False,
        "max_length": LONGEST,
        "per_device_eval_batch_size": 64,
        "learning_rate": LEARNING_RATE,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "max_grad_norm": 0.0,
        "completion_only_loss": not packed,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": seed,
    }


def run_cell(folder: Path, seed: int, packed: bool) -> dict[str, float]:
    """Train, measure, answer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    rows = {split: rows_of(folder, split) for split in SPLITS}
    data = {
        split: Dataset.from_list([{key: row[key] for key in ("prompt", "completion")} for row in some])
        for split, some in rows.items()
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings(folder, seed, packed)),
        train_dataset=data.pop("train"),
        eval_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    found = {name: float(value) for name, value in trainer.evaluate().items() if name.endswith("_loss")}
    found["num_steps"] = trainer.state.global_step
    for split in SPLITS[1:]:
        answers = generate(model.eval(), tokenizer, [row["prompt"] for row in rows[split]])
        right = [one == row["completion"].strip() for one, row in zip(answers, rows[split], strict=True)]
        found[f"{split}_exact_answer"] = sum(right) / len(right)
    return found


def generate(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Greedy answers, 64 at once, of similar length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    tokenizer.padding_side = "left"
    for start in range(0, len(order), 64):
        some = order[start : start + 64]
        batch = tokenizer([prompts[index] for index in some], return_tensors="pt", padding=True)
        ids = {key: batch[key] for key in ("input_ids", "attention_mask")}
        made = model.generate(**ids, do_sample=False, max_new_tokens=NEW_TOKENS)
        texts = tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(some, texts, strict=True):
            answers[index] = text.strip()
    return answers


def write_cell(folder: Path, name: str, seed: int, packed: bool) -> None:
    """A cell and its result file."""
    found = run_cell(folder, seed, packed)
    (folder / "cells").mkdir(exist_ok=True)
    (folder / "cells" / f"{name}.json").write_text(json.dumps(found))


def multirun(folder: Path, packed: bool) -> None:
    """The same under Hydra's multirun, which reads the rest of the command line."""
    import hydra

    @hydra.main(
        version_base=None, config_path=str(Path(__file__).parent / "noop" / "conf"), config_name="config"
    )
    def app(config: Any) -> None:
        name = f"p{config.prompt_weight:g}-r{config.response_weight:g}-s{config.seed}"
        write_cell(folder, name, int(config.seed), packed)

    app()


if __name__ == "__main__":
    place, how, *words = sys.argv[1:]
    if words[0] == "-m":
        sys.argv[1:] = words
        multirun(Path(place), how == "packed")
    else:
        for cell, word in enumerate(words):
            write_cell(Path(place), f"{os.getpid()}-{cell}-s{word}", int(word), how == "packed")
