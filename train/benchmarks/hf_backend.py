"""A transformers model in memory as a backend: batches of similar length, stop strings, bounded outputs.

Letters: B rows, T positions.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.benchmarks.interface import Choice, Likelihood, Output, Request
from train.benchmarks.likelihoods import likelihoods_of
from train.benchmarks.prompts import PromptEncoder
from train.decoding import decode, greedy
from train.seeds import derive_seed


class HFBackend:
    """model, tokenizer, device and encoder are for benchmarks that need more than two methods (POSIX).

    context_length   tokens the model can hold, None for no limit: a prompt keeps its end, and a generation that
                     would leave it less than half of the context is shortened to that half.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: torch.device,
        encoder: PromptEncoder,
        *,
        context_length: int | None,
        batch_tokens: int = 16384,
    ) -> None:
        self.model, self.tokenizer, self.device, self.encoder = model, tokenizer, device, encoder
        self._context, self._batch_tokens = context_length or 1 << 30, batch_tokens
        generation = getattr(model, "generation_config", None)
        also = getattr(generation, "eos_token_id", None)
        also = also if isinstance(also, list) else [also]
        self.end_ids = sorted({tokenizer.eos_token_id, *(one for one in also if one is not None)})
        pad = getattr(tokenizer, "pad_token_id", None)
        self._pad_id: int = tokenizer.eos_token_id if pad is None else pad

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Rows of one batch share temperature and limit, and are of similar length, longest first: the first
        batch needs the most memory, so what doesn't fit fails at once."""
        return [output for (output,) in self.generate_of_cells([(request,) for request in requests])]

    @torch.no_grad()
    def generate_of_cells(self, requests: Sequence[Sequence[Request]]) -> list[list[Output]]:
        """The same for the cells that the model holds: requests[i][n] is of cell n, and all of requests[i] share
        temperature and limit; so does the result."""
        prompts = [[self.encoder.encode(request) for request in row] for row in requests]
        limits = [min(row[0].max_new_tokens, max(1, self._context // 2)) for row in requests]
        room = [self._context - limit for limit in limits]
        outputs: dict[int, list[Output]] = {}
        for rows in self._batches(requests, prompts, limits):
            asked = [(row, n) for n in range(len(requests[rows[0]])) for row in rows]  # cell by cell
            texts = self._generate_batch(
                [requests[row][n] for row, n in asked],
                [prompts[row][n][-room[row] :] for row, n in asked],
                limits[rows[0]],
                len(requests[rows[0]]),
            )
            for (row, n), (text, num_tokens, is_truncated) in zip(asked, texts, strict=True):
                is_cut = len(prompts[row][n]) > room[row]
                outputs.setdefault(row, []).append(Output(text, num_tokens, is_truncated, is_cut))
        return [outputs[row] for row in range(len(requests))]

    def size_of_a_batch(self, requests: Sequence[Request]) -> tuple[int, int]:
        """The most rows of one cell in a pass that writes, and the most tokens."""
        lengths = [len(self.encoder.encode(one)) + one.max_new_tokens for one in requests]
        shortest = min(min(lengths), self._context)
        return min(len(requests), max(1, self._batch_tokens // shortest)), self._batch_tokens

    def tokens_of_a_batch(self, choices: Sequence[Choice]) -> int:
        """The most tokens of one cell in a pass that reads."""
        pairs = (self.encoder.encode_pair(one.context, one.continuation) for one in choices)
        return min(self._batch_tokens, sum(len(context) + len(rest) for context, rest in pairs))

    def _batches(
        self,
        requests: Sequence[Sequence[Request]],
        prompts: Sequence[Sequence[list[int]]],
        limits: Sequence[int],
    ) -> Iterator[list[int]]:
        """Rows of a cell at a time."""
        lengths = [
            min(max(map(len, row)), self._context - limit) for row, limit in zip(prompts, limits, strict=True)
        ]
        order = sorted(
            range(len(requests)),
            key=lambda row: (
                requests[row][0].temperature,
                -limits[row],
                -lengths[row],
                requests[row][0].prompt,
            ),
        )
        part: list[int] = []
        for row in order:
            first = part[0] if part else row
            longest = lengths[first] + limits[first]
            is_other = (requests[row][0].temperature, limits[row]) != (
                requests[first][0].temperature,
                limits[first],
            )
            if part and (is_other or (len(part) + 1) * longest > self._batch_tokens):
                yield part
                part = []
            part.append(row)
        if part:
            yield part

    def _generate_batch(
        self, requests: Sequence[Request], prompts: Sequence[list[int]], limit: int, num_cells: int
    ) -> list[tuple[str, int, bool]]:
        written = decode(
            self.model,
            prompts,
            max_new_tokens=limit,
            end_ids=self.end_ids,
            pad_id=self._pad_id,
            device=self.device,
            num_cells=num_cells,
            choose=_Sampling(requests) if requests[0].temperature > 0 else greedy,
            is_stopped=_Stops(self.tokenizer, [request.stop for request in requests])
            if any(request.stop for request in requests)
            else None,
        )
        found = []
        for request, row in zip(requests, written, strict=True):
            end = next((place for place, token in enumerate(row) if token in self.end_ids), None)
            tokens = row if end is None else row[:end]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            shortest = min((text.index(stop) for stop in request.stop if stop and stop in text), default=None)
            if shortest is None:
                found.append((text, len(tokens), end is None))
            else:
                found.append((text[:shortest], _num_tokens_until(self.tokenizer, tokens, shortest), False))
        return found

    def likelihoods(self, choices: Sequence[Choice]) -> list[Likelihood]:
        """One pass for choices that differ in their last token only, and logits at scored positions only.

        Source   lm-evaluation-harness 0.4.13, HFLM: the same tokens are scored, cut on the left alike.
        """
        (found,) = self.likelihoods_of_cells(choices, 1)
        return found

    def likelihoods_of_cells(self, choices: Sequence[Choice], num_cells: int) -> list[list[Likelihood]]:
        """The same, of each cell that the model holds."""
        return likelihoods_of(
            self.model,
            [self.encoder.encode_pair(choice.context, choice.continuation) for choice in choices],
            context_length=self._context,
            batch_tokens=self._batch_tokens,
            pad_id=self._pad_id,
            device=self.device,
            num_cells=num_cells,
        )


class _Stops:
    """Which rows have written one of their stop strings: only the end of each is read at each step."""

    def __init__(self, tokenizer: Any, stops: Sequence[tuple[str, ...]]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        longest = max((len(stop.encode()) for row in stops for stop in row), default=0)
        self._lookback = longest + 2  # a token holds at least a byte, or is a mark

    def __call__(self, rows: Sequence[int], written: Sequence[list[int]]) -> list[bool]:
        ends = [tokens[-self._lookback :] for tokens in written]
        texts = self._tokenizer.batch_decode(ends, skip_special_tokens=True)
        return [
            any(stop and stop in text for stop in self._stops[row])
            for row, text in zip(rows, texts, strict=True)
        ]


class _Sampling:
    """Sampling by the largest of (logits / temperature + Gumbel noise), each row's noise drawn from its own
    seed: what a row writes depends on no other row of its batch, so an interrupted generation goes on alike."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._temperature = requests[0].temperature
        self._generators = [
            torch.Generator().manual_seed(derive_seed("sample", request.seed, request.key))
            for request in requests
        ]

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        width = logits_BV.shape[-1]
        uniform = torch.stack([torch.rand(width, generator=self._generators[row]) for row in rows])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return (logits_BV.float() / self._temperature + noise.to(logits_BV.device)).argmax(-1)


def _num_tokens_until(tokenizer: Any, tokens: list[int], num_chars: int) -> int:
    """How many tokens it took to write so many characters."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(tokens[:middle], skip_special_tokens=True)) < num_chars:
            low = middle + 1
        else:
            high = middle
    return low
