"""One pass over rows: how likely each token is, and how far greedy answers go along with the known ones.

A row is its prompt and the response that is known. Its pass says how likely each token is, and by the way what the
model itself would have written at every place: as long as that is the known response, the answer is known without
being written. Where they part, it is gone on with from what the pass has read of it.

Source   Verifying a draft in one pass: Leviathan et al. 2023, arXiv:2211.17192; greedily, it changes no token.
Letters: N cells, I rows, B rows of a pass, T positions, V vocabulary, R roles.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.batches import Batch, collate, micro_batches
from train.decoding import Begun, own_processors
from train.distributed import World
from train.loss import nll_sums_by_row
from train.spans import Role
from train.states import Cache, forward_takes, num_plain_layers
from train.tokens import TokenSplit

# Held at once while reading: on a CPU fewer stay in its caches, and are padded less (1.7 times as fast).
_PADDED_TOKENS = {"cpu": 1024, "cuda": 8192}
_KEPT_BYTES = 2**28  # on a CPU, of keys and values kept for the writing; what is beyond is read again
_SHARE_OF_FREE_MEMORY = 0.25  # the same on a GPU


@dataclass(frozen=True, slots=True)
class Asked:
    """Greedy answers of so many tokens at most."""

    end_id: int
    max_new_tokens: int


@dataclass(slots=True, eq=False)
class Read:
    """What the passes over the rows of a split gave, of one cell.

    Shapes    sums (2, I, R): nll and number of targets, by row and role; of all ranks
    written   of each row with a check that this rank has read: its answer so far, the end token included
    begun     of those that have not ended, what has been read; without it they have to be read again
    """

    sums_2IR: NDArray[numpy.float64]
    written: dict[int, list[int]] = field(default_factory=dict)
    begun: list[Begun] = field(default_factory=list)


@torch.no_grad()
def read(
    model: nn.Module,
    split: TokenSplit,
    device: torch.device,
    world: World = World(),
    num_cells: int = 1,
    *,
    asked: Asked | None = None,
    kept_bytes: int = 0,
) -> list[Read]:
    """Unweighted nll of each row, and its answer as far as the pass tells; of each cell that the model holds.

    asked        None: no answers
    kept_bytes   of keys and values, which save the answers that go on from reading again
    Exact        a cell's rows keep the passes that they have alone.
    """
    found = [Read(numpy.empty(0)) for _ in range(num_cells)]
    sums_N2IR = torch.zeros(num_cells, 2, len(split), len(Role), dtype=torch.float64, device=device)
    # What a checkpoint does to its logits before it chooses depends on all that was written.
    follows = asked is not None and own_processors(model, 1, device) is None
    num_layers = num_plain_layers(model) if follows else 0
    for rows in islice(reading_batches(split, device), world.rank, None, world.size):
        batch = collate(split, rows, device)
        for one in found if asked is not None else ():
            one.written |= {row: [] for row in rows if split.checks[row] is not None}
        if batch.ids_BT.shape[1] < 2:  # nothing that is predicted
            continue
        cache = Cache(num_layers) if num_layers and kept_bytes > 0 else None
        logits = _pass(model, batch.ids_BT[:, :-1].repeat(num_cells, 1), cache)
        for n, logits_BTV in enumerate(logits.chunk(num_cells)):
            sums_N2IR[n, :, rows] = nll_sums_by_row(logits_BTV, batch.ids_BT, batch.roles_BT)
            if asked is None or not follows:
                continue
            live_B, is_read_BT = _follow(found[n].written, logits_BTV, batch, split, rows, asked)
            if cache is None or not len(live_B):
                continue
            states = cache.states(live_B + n * len(rows), is_read_BT)
            if states is not None:
                found[n].begun.append(Begun([rows[place] for place in live_B.tolist()], states))
                kept_bytes -= states.num_bytes
    for one, sums_2IR in zip(found, world.add(sums_N2IR).cpu(), strict=True):
        one.sums_2IR = sums_2IR.numpy()
    return found


def reading_batches(split: TokenSplit, device: torch.device) -> Iterator[list[int]]:
    """Rows that are read in one pass, the longest first; a row's last token isn't read."""
    lengths = (numpy.diff(split.offsets) - 1).tolist()
    return micro_batches(range(len(lengths)), lengths, _PADDED_TOKENS.get(device.type, 8192))


def kept_bytes(device: torch.device) -> int:
    """What may be kept of a reading for the writing after it."""
    if device.type != "cuda":
        return _KEPT_BYTES
    return int(_SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0])


def _pass(model: nn.Module, ids_BT: Tensor, cache: Cache | None) -> Tensor:
    """Logits (B, T, V); padding is on the right, where nothing that counts sees it."""
    if cache is not None:
        return model(input_ids=ids_BT, past_key_values=cache, use_cache=True).logits
    keeps_nothing = {"use_cache": False} if forward_takes(model, "use_cache") else {}
    return model(input_ids=ids_BT, **keeps_nothing).logits


def _follow(
    written: dict[int, list[int]],
    logits_BTV: Tensor,
    batch: Batch,
    split: TokenSplit,
    rows: Sequence[int],
    asked: Asked,
) -> tuple[Tensor, Tensor]:
    """Write the answers up to the first token that isn't the known one, or is the last.

    Returns   the places in the batch of those to be gone on with (B,), and what is read of them (B, T), all but the
              last token that is written
    """
    starts, lengths = split.offsets[:-1][rows], numpy.diff(split.offsets)[rows]
    prompts = split.prompt_lengths[rows]
    places = [
        place
        for place, row in enumerate(rows)
        if split.checks[row] is not None and 0 < prompts[place] < lengths[place]
    ]
    device = logits_BTV.device
    where = torch.tensor(places, dtype=torch.int64, device=device)
    first_B = torch.from_numpy(prompts[places] - 1).to(device)[:, None]  # says the answer's first token
    last_B = torch.from_numpy(lengths[places] - 2).to(device)[:, None]  # says the row's last
    likeliest_BT, known_BT = logits_BTV.argmax(-1)[where], batch.ids_BT[where, 1:]
    place_T = torch.arange(known_BT.shape[1], device=device)
    stops_BT = (likeliest_BT != known_BT) | (known_BT == asked.end_id)
    stops_BT |= (place_T >= last_B) | (place_T - first_B >= asked.max_new_tokens - 1)
    stop_B = torch.where(stops_BT & (place_T >= first_B), place_T, place_T.numel()).amin(-1)
    token_B = likeliest_BT.gather(1, stop_B[:, None])[:, 0]
    stops, tokens = torch.stack([stop_B, token_B]).tolist()
    live: list[int] = []
    for index, (place, stop, token) in enumerate(zip(places, stops, tokens, strict=True)):
        start = int(starts[place])
        text = [*split.ids[start + prompts[place] : start + stop + 1].tolist(), token]
        written[rows[place]] = text
        if token != asked.end_id and len(text) < asked.max_new_tokens:
            live.append(index)
    kept = torch.tensor(live, dtype=torch.int64, device=device)
    place_T = torch.arange(max((stops[index] for index in live), default=-1) + 1, device=device)
    return where[kept], (place_T <= stop_B[kept][:, None]).long()
