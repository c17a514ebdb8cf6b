"""Pre-train the embedded base model: a tokenizer and a small Llama model on text of the tiny world.

    python -m train.embedded.pretrain --output DIR [--minutes M | --steps N] [--seed S]

The result ships in `train/embedded/model/`, so this need not be run to run a sweep; it is here so that the
base model can be made again, from nothing, on one core. `PROVENANCE.json` says what the shipped one was made
from.
"""

import argparse
import datetime
import itertools
import json
import math
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from train.embedded.world import GENERATOR_VERSION, make_documents

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCABULARY_SIZE: Final = 768
TOKENIZER_DOCUMENTS: Final = 20_000
HELD_OUT_DOCUMENTS: Final = 1_000
HELD_OUT_SEED_OFFSET: Final = 1_000_000
"""Added to the seed for held-out documents, so that they are drawn apart from the training documents."""
SEQUENCE_LENGTH: Final = 128
"""Tokens per packed training sequence; instruction rows of this world are shorter."""
BATCH_SEQUENCES: Final = 16
LEARNING_RATE: Final = 2.5e-3
WEIGHT_DECAY: Final = 0.1
WARMUP_SHARE: Final = 0.02
MAXIMUM_BYTES: Final = 4_000_000
"""The largest model.safetensors that the repository takes, in bytes."""
SPEED_STEPS: Final = 10
"""Throwaway steps that turn a budget in minutes into a number of steps."""
REPORT_STEPS: Final = 400


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer that loses nothing and prepends <s> where special tokens are asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = make_documents(seed=seed, num_documents=TOKENIZER_DOCUMENTS)
    tokenizer.train_from_iterator(documents, trainer)
    template = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, output: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for `AutoTokenizer.from_pretrained`."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(output)


def make_model(seed: int) -> LlamaForCausalLM:
    """The untrained model: about 0.7 million parameters with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        initializer_range=0.04,
    )
    return LlamaForCausalLM(config)


class PackedDocuments:
    """An endless stream of documents packed into batches of token ids; it counts what it has read."""

    def __init__(self, tokenizer: Tokenizer, documents: Iterator[str]) -> None:
        self._tokenizer = tokenizer
        self._documents = documents
        self._tokens: list[int] = []
        self.num_documents = 0

    def next_batch(self) -> torch.Tensor | None:
        """Token ids of shape (sequences, tokens), or None where the documents are used up."""
        needed = BATCH_SEQUENCES * SEQUENCE_LENGTH
        while len(self._tokens) < needed:
            texts = list(itertools.islice(self._documents, 256))
            if not texts:
                return None
            self.num_documents += len(texts)
            for encoding in self._tokenizer.encode_batch(texts):
                self._tokens += [*encoding.ids, EOS_ID]
        batch, self._tokens = self._tokens[:needed], self._tokens[needed:]
        return torch.tensor(batch).view(BATCH_SEQUENCES, SEQUENCE_LENGTH)


def mean_loss(model: LlamaForCausalLM, batch: torch.Tensor, *, uses_bfloat16: bool = False) -> torch.Tensor:
    """Mean nll of the next token, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16, enabled=uses_bfloat16):
        logits = model(input_ids=batch).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int) -> float:
    """Mean nll of documents that were not trained on, in nats per token."""
    documents = make_documents(seed=seed + HELD_OUT_SEED_OFFSET, num_documents=HELD_OUT_DOCUMENTS)
    stream = PackedDocuments(tokenizer, documents)
    losses = [mean_loss(model, batch).item() for batch in iter(stream.next_batch, None)]
    return sum(losses) / len(losses)


def learning_rate_at(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth of the peak."""
    num_warmup = max(1, round(WARMUP_SHARE * num_steps))
    if step < num_warmup:
        return LEARNING_RATE * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the gains of normalisation layers alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), foreach=True)


def train_step(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor, uses_bfloat16: bool
) -> float:
    """One optimiser step; returns the loss in nats per token."""
    loss = mean_loss(model, batch, uses_bfloat16=uses_bfloat16)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def steps_in(minutes: float, arguments: argparse.Namespace) -> int:
    """How many steps fit the budget, measured on a throwaway model."""
    model = make_model(arguments.seed)
    optimizer = make_optimizer(model)
    batch = torch.randint(3, VOCABULARY_SIZE, (BATCH_SEQUENCES, SEQUENCE_LENGTH))
    train_step(model, optimizer, batch, arguments.bfloat16)
    start = time.perf_counter()
    for _ in range(SPEED_STEPS):
        train_step(model, optimizer, batch, arguments.bfloat16)
    return max(1, int(minutes * 60 / ((time.perf_counter() - start) / SPEED_STEPS)))


def pretrain(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, save and return the provenance record."""
    started = time.perf_counter()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(arguments.seed)
    num_steps = arguments.steps or steps_in(arguments.minutes, arguments)
    model = make_model(arguments.seed)
    optimizer = make_optimizer(model)
    stream = PackedDocuments(tokenizer, make_documents(seed=arguments.seed, num_documents=sys.maxsize))
    recent: list[float] = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, num_steps)
        batch = stream.next_batch()
        assert batch is not None, "the stream of training documents has no end"
        recent = [*recent[1 - REPORT_STEPS :], train_step(model, optimizer, batch, arguments.bfloat16)]
        if (step + 1) % REPORT_STEPS == 0:
            print(f"step {step + 1}/{num_steps} nll {sum(recent) / len(recent):.4f}", flush=True)
    model.eval()
    model.save_pretrained(arguments.output)
    (arguments.output / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, arguments.output)
    return {
        "generator_version": GENERATOR_VERSION,
        "seed": arguments.seed,
        "documents": stream.num_documents,
        "tokens": num_steps * BATCH_SEQUENCES * SEQUENCE_LENGTH,
        "steps": num_steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_nll_nats_per_token": sum(recent) / len(recent),
        "held_out_nll_nats_per_token": held_out_loss(model, tokenizer, arguments.seed),
        "learning_rate": LEARNING_RATE,
        "bfloat16_autocast": arguments.bfloat16,
        "wall_seconds": time.perf_counter() - started,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "command": f"python -m train.embedded.pretrain --output DIR --steps {num_steps}"
        f" --seed {arguments.seed}{' --bfloat16' if arguments.bfloat16 else ''}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded base model on the tiny world.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="budget, turned into steps by a measurement"
    )
    parser.add_argument("--steps", type=int, default=None, help="exact number of steps, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="autocast; faster on CPUs with avx512_bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    provenance = pretrain(arguments)
    size = (arguments.output / "model.safetensors").stat().st_size
    if size > MAXIMUM_BYTES:
        raise SystemExit(f"model.safetensors has {size} bytes, over {MAXIMUM_BYTES}; choose a smaller shape")
    text = json.dumps(provenance, indent=2) + "\n"
    (arguments.output / "PROVENANCE.json").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
