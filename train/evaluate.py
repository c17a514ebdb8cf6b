"""What a trained model is worth, measured without the swept weights: likelihoods by role, answers by rule.

A weighted evaluation loss is smaller *because* the weight is smaller; nothing here sees a weight.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.batches import collate, micro_batches
from train.config import EvalConfig
from train.embedded.scoring import is_exact_answer, meets_constraint
from train.loss import nll_sums_by_role
from train.spans import Role
from train.tokens import TokenData, TokenSplit

_NLL_PADDED_TOKENS = 8192  # held at once while measuring likelihoods


@torch.no_grad()
def evaluate(
    model: nn.Module, data: TokenData, config: EvalConfig, tokenizer: object, device: torch.device
) -> dict[str, float]:
    """Every metric of every split but train; see `train.metrics`. A metric without a row is absent, never 0."""
    metrics: dict[str, float] = {}
    for name, split in data.splits.items():
        if name == "train" or not len(split.row_ids):
            continue
        measured = _likelihoods(model, split, device)
        if config.generate and any(check is not None for check in split.checks):
            measured |= _answers(model, split, config, tokenizer, device)
        metrics |= {f"{name}_{key}": value for key, value in measured.items() if math.isfinite(value)}
    return metrics


def _likelihoods(model: nn.Module, split: TokenSplit, device: torch.device) -> dict[str, float]:
    """Unweighted nll per target token and per UTF-8 byte of text, for prompt and response tokens apart.

    Units    nats/token; bits/byte. The end-of-sequence token counts as a response token of no bytes.
    """
    lengths = (split.offsets[1:] - split.offsets[:-1]).tolist()
    sums_R = torch.zeros(len(Role), dtype=torch.float64)
    counts_R = torch.zeros(len(Role), dtype=torch.int64)
    for rows in micro_batches(range(len(lengths)), lengths, _NLL_PADDED_TOKENS):
        batch = collate(split, rows, device)
        sums, counts = nll_sums_by_role(model(input_ids=batch.ids_BT).logits, batch.ids_BT, batch.roles_BT)
        sums_R += sums.cpu()
        counts_R += counts.cpu()
    bytes_R = split.role_bytes.sum(axis=0)
    result: dict[str, float] = {}
    for role in (Role.PROMPT, Role.RESPONSE):
        key = role.name.lower()
        if counts_R[role]:
            result[f"{key}_nll"] = float(sums_R[role] / counts_R[role])
        if bytes_R[role]:
            result[f"{key}_bits_per_byte"] = float(sums_R[role]) / (math.log(2) * float(bytes_R[role]))
    return result


def _answers(
    model: nn.Module, split: TokenSplit, config: EvalConfig, tokenizer: object, device: torch.device
) -> dict[str, float]:
    """Greedy answers to the rows that carry a verifiable one, and the signs of a broken model beside them."""
    rows = [row for row, check in enumerate(split.checks) if check is not None]
    outputs = generate(model, [_prompt_ids(split, row) for row in rows], config, tokenizer, device)
    texts = tokenizer.batch_decode([tokens for tokens, _ in outputs], skip_special_tokens=True)  # type: ignore[attr-defined]
    checks = [split.checks[row] or {} for row in rows]
    exact = [is_exact_answer(text, check) for text, check in zip(texts, checks, strict=True)]
    adherence = [
        met
        for text, check in zip(texts, checks, strict=True)
        if (met := meets_constraint(text, check.get("constraint"))) is not None
    ]
    result = {
        "exact_answer": _mean(exact),
        "empty_output_rate": _mean([not text.strip() for text in texts]),
        "truncated_output_rate": _mean([not ended for _, ended in outputs]),
        "mean_output_tokens": _mean([len(tokens) for tokens, _ in outputs]),
    }
    if adherence:
        result["constraint_adherence"] = _mean(adherence)
    return result


def generate(
    model: nn.Module,
    prompts: Sequence[list[int]],
    config: EvalConfig,
    tokenizer: object,
    device: torch.device,
) -> list[tuple[list[int], bool]]:
    """Greedy continuations, without their end token, and whether each ended by itself.

    Prompts of similar length share a batch, padded on the left, so that padding costs little.
    """
    end_id: int = tokenizer.eos_token_id  # type: ignore[attr-defined]
    pad_id = getattr(tokenizer, "pad_token_id", None)
    pad_id = end_id if pad_id is None else pad_id
    outputs: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), config.batch_rows):
        chunk = order[start : start + config.batch_rows]
        longest = max(len(prompts[index]) for index in chunk)
        ids_BT = torch.full((len(chunk), longest), pad_id, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, index in enumerate(chunk):
            ids_BT[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask_BT[row, longest - len(prompts[index]) :] = 1
        generated: Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            do_sample=False,
            use_cache=True,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=pad_id,
        )
        for row, index in enumerate(chunk):
            tokens = generated[row, longest:].tolist()
            ended = end_id in tokens
            outputs[index] = (tokens[: tokens.index(end_id)] if ended else tokens, ended)
    return outputs


def _prompt_ids(split: TokenSplit, row: int) -> list[int]:
    start = int(split.offsets[row])
    return split.ids[start : start + int(split.prompt_lengths[row])].tolist()


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values)
