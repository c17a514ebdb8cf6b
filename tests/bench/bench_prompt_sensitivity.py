"""POSIX: what computing each wording once gains over the straightforward loop, at equal numbers.

    python tests/bench/bench_prompt_sensitivity.py --checkpoint FOLDER --prompts FILE.json

Process time on one thread, the two ways interleaved set by set: 21 wordings, 30 new tokens, as the POSIX paper asks
of instructions. Writes results/prompt_sensitivity.json and exits with 1 where a promise is broken: 3x, and every
log-probability equal to 1e-4 nats a token.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from train.sensitivity.posix import prompt_sensitivity
from train.sensitivity.scoring import score_answers, score_answers_one_by_one
from train.sensitivity.variants import variants

PROMISED_RATIO, PROMISED_DIFFERENCE = 3.0, 1e-4


def main() -> int:
    """Measure, write, judge."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    rows = json.loads(arguments.prompts.read_text())[: arguments.sets]
    settings = {
        "max_new_tokens": arguments.new_tokens,
        "end_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id,
        "device": torch.device("cpu"),
    }
    measured = []
    for row in rows:
        wordings = [tokenizer(text)["input_ids"] for text in variants(row["question"], "spelling", 0)]
        seconds, found = {}, {}
        for name, score in (("shared", score_answers), ("one_by_one", score_answers_one_by_one)):
            started = time.process_time()
            found[name] = score(model, wordings, **settings)
            seconds[name] = time.process_time() - started
        shared, known = found["shared"], found["one_by_one"]
        gap = np.abs(shared.log_probability_NN - known.log_probability_NN) / known.num_tokens_N
        measured.append(
            {
                "prompt_tokens": len(wordings[0]),
                "seconds": seconds,
                "ratio": seconds["one_by_one"] / seconds["shared"],
                "same_answers": shared.answers == known.answers,
                "largest_difference_nats_per_token": float(gap.max()),
                "posix_nats_per_token": prompt_sensitivity(shared.log_probability_NN, shared.num_tokens_N),
            }
        )
    total = {way: sum(one["seconds"][way] for one in measured) for way in ("shared", "one_by_one")}
    ratio = total["one_by_one"] / total["shared"]
    largest = max(one["largest_difference_nats_per_token"] for one in measured)
    result = {
        "ratio_one_by_one_over_shared": ratio,
        "ratio_by_set": [
            min(one["ratio"] for one in measured),
            statistics.median(one["ratio"] for one in measured),
        ],
        "largest_difference_nats_per_token": largest,
        "wordings": 21,
        "new_tokens": arguments.new_tokens,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sets": measured,
        "machine": {"processor": platform.machine(), "threads": 1, "torch": torch.__version__},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = Path(__file__).parent / "results" / "prompt_sensitivity.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    same = all(one["same_answers"] for one in measured)
    print(
        f"{ratio:.2f}x over {len(measured)} sets; largest difference {largest:.1e} nats/token; same answers: {same}"
    )
    return 0 if ratio >= PROMISED_RATIO and largest <= PROMISED_DIFFERENCE and same else 1


if __name__ == "__main__":
    sys.exit(main())
