"""Attention over rows laid end to end, in which no row sees another.

Registered with transformers under a name of its own, so that any model of its attention interface can run it.
It never reads an attention mask: transformers' own packing contaminates rows silently if it is handed a mask
of ones. Rows of similar length are padded to each other inside the attention only, where right padding under
a causal mask is exact; everything else of the model sees no padding. On CUDA in 16 bits PyTorch's varlen
kernel does without padding, if it gives the same numbers here (`choose_varlen`).

Letters: B rows, T positions of all rows end to end, L positions of a bucket's longest row, A heads, K
key-value heads, D width of a head."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NAME = "end_to_end"
_MOST_PADDING = 1.25  # of a bucket, padded over real tokens; more buckets cost calls, more padding work


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring rows of similar length. `gather` (B * L,) positions, padding repeats a row's first;
    `scatter` (tokens,) positions in the padded rows; both None where all rows are equally long."""

    tokens: slice
    num_rows: int
    length: int
    gather: Tensor | None
    scatter: Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of one packed sequence begin. `starts` (B + 1,) int32 on the device."""

    buckets: tuple[Bucket, ...]
    starts: Tensor
    longest: int
    varlen: bool


def make_layout(lengths: Sequence[int], device: torch.device, *, varlen: bool = False) -> Layout:
    """The layout of rows of these lengths, which must not increase: neighbours share a bucket."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    buckets = (
        tuple(_bucket(lengths[first:last], starts[first], device) for first, last in _bucket_edges(lengths))
        if not varlen
        else ()
    )
    return Layout(
        buckets, torch.tensor(starts, dtype=torch.int32).to(device, non_blocking=True), max(lengths), varlen
    )


def _bucket_edges(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    first, real = 0, 0
    for index, length in enumerate(lengths):
        if index > first and (index - first + 1) * lengths[first] > _MOST_PADDING * (real + length):
            yield first, index
            first, real = index, 0
        real += length
    yield first, len(lengths)


def _bucket(lengths: Sequence[int], start: int, device: torch.device) -> Bucket:
    longest, tokens = lengths[0], slice(start, start + sum(lengths))
    if lengths[-1] == longest:
        return Bucket(tokens, len(lengths), longest, None, None)
    gather = torch.zeros(len(lengths), longest, dtype=torch.int64)
    scatter: list[Tensor] = []
    position = 0
    for row, length in enumerate(lengths):
        gather[row, :length] = torch.arange(position, position + length)
        gather[row, length:] = position
        scatter.append(torch.arange(row * longest, row * longest + length))
        position += length
    return Bucket(
        tokens,
        len(lengths),
        longest,
        gather.flatten().to(device, non_blocking=True),
        torch.cat(scatter).to(device, non_blocking=True),
    )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; without `packed`, causal attention over right-padded rows.

    Shapes   query (B, A, T, D); key, value (B, K, T, D); result (B, T, A, D). Packed: B sequences of the same
             layout, of which all but stacked runs (train.stacked) have one.
    Raises   ValueError for a mask: rows are told apart by the layout alone.
    """
    if attention_mask is not None:
        raise ValueError("packed attention takes no mask")
    settings = _Settings(dropout if module.training else 0.0, scaling, sliding_window, softcap)
    if packed is None:
        return _causal(query, key, value, settings).transpose(1, 2), None
    if len(query) > 1:
        return _several(query, key, value, packed, settings), None
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T, heads, D)
    if packed.varlen:
        return _varlen(query, key, value, packed, settings)[None], None
    outputs = [
        _bucket_attention(query[bucket.tokens], key[bucket.tokens], value[bucket.tokens], bucket, settings)
        for bucket in packed.buckets
    ]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None


@dataclass(frozen=True, slots=True)
class _Settings:
    dropout: float
    scaling: float | None
    sliding_window: int | None
    softcap: float | None


def _several(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: _Settings) -> Tensor:
    """Packed sequences of one layout beside each other; (B, heads, T, D) in, (B, T, heads, D) out."""
    count = len(query)
    if layout.varlen:
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]
        offsets = torch.arange(count, device=query.device, dtype=torch.int32)[:, None] * layout.starts[-1]
        starts = torch.cat([layout.starts[:1], (layout.starts[1:] + offsets).flatten()])
        whole = Layout((), starts, layout.longest, varlen=True)
        return _varlen(flat[0], flat[1], flat[2], whole, settings).unflatten(0, (count, -1))
    outputs = []
    for bucket in layout.buckets:
        parts = []
        for part in (query, key, value):
            tokens = part[:, :, bucket.tokens]
            padded = tokens if bucket.gather is None else tokens.index_select(2, bucket.gather)
            rows = padded.unflatten(2, (bucket.num_rows, bucket.length)).transpose(1, 2)
            parts.append(rows.flatten(0, 1))  # (B * rows, heads, L, D)
        output = _causal(parts[0], parts[1], parts[2], settings).unflatten(0, (count, bucket.num_rows))
        output = output.transpose(2, 3).flatten(1, 2)  # (B, rows * L, heads, D)
        outputs.append(output if bucket.scatter is None else output.index_select(1, bucket.scatter))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _bucket_attention(
    query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, settings: _Settings
) -> Tensor:
    """(tokens, heads, D) in and out."""
    padded = [
        part if bucket.gather is None else part.index_select(0, bucket.gather) for part in (query, key, value)
    ]
    shaped = [
        part.reshape(bucket.num_rows, bucket.length, *part.shape[1:]).transpose(1, 2) for part in padded
    ]
    output = _causal(shaped[0], shaped[1], shaped[2], settings).transpose(1, 2).flatten(0, 1)
    return output if bucket.scatter is None else output.index_select(0, bucket.scatter)


def _causal(query: Tensor, key: Tensor, value: Tensor, settings: _Settings) -> Tensor:
    """Causal attention of each row of (B, heads, L, D); a window and a softcap where the model has them."""
    length = query.shape[2]
    window = settings.sliding_window if (settings.sliding_window or length) < length else None
    if settings.softcap is None:
        mask = None if window is None else _window_mask(length, window, query.device)
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=settings.dropout,
            is_causal=mask is None,
            scale=settings.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) if groups > 1 else part for part in (key, value))
    scaling = query.shape[-1] ** -0.5 if settings.scaling is None else settings.scaling
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / settings.softcap) * settings.softcap
    scores = scores.masked_fill(~_window_mask(length, window or length, query.device), float("-inf"))
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return functional.dropout(weights, settings.dropout) @ value


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(L, L), true where position i sees j: i - window < j <= i."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (distance >= 0) & (distance < window)


def _varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, settings: _Settings) -> Tensor:
    """PyTorch's kernel for rows of any lengths; (T, heads, D) in and out. See `choose_varlen`."""
    kernel, parameters = _varlen_kernel()
    assert kernel is not None
    groups = query.shape[1] // key.shape[1]
    extra: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in parameters:
        extra["enable_gqa"] = True
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    if "window_size" in parameters:
        window = settings.sliding_window
        if window is None or window >= layout.longest:
            window = 0  # -1 to the left: everything before
        extra["window_size"] = (window - 1, 0)
    else:
        extra["is_causal"] = True
    if settings.scaling is not None and "scale" in parameters:
        extra["scale"] = settings.scaling
    elif settings.scaling is not None:
        query = query * (settings.scaling * query.shape[-1] ** 0.5)
    parts = [part.contiguous() for part in (query, key, value)]
    return kernel(*parts, layout.starts, layout.starts, layout.longest, layout.longest, **extra)


def _varlen_kernel() -> tuple[Callable[..., Any] | None, frozenset[str]]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # before torch 2.10
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def choose_varlen(config: Any, device: torch.device, dtype: torch.dtype, dropout: float) -> bool:
    """Whether PyTorch's varlen kernel can do this model's attention here, decided by trying it.

    Only CUDA and 16 bits; not with dropout, a softcap, or, before it took one, a sliding window.
    """
    if (
        device.type != "cuda"
        or dtype not in (torch.bfloat16, torch.float16)
        or dropout
        or getattr(config, "attn_logit_softcapping", None)
    ):
        return False
    kernel, parameters = _varlen_kernel()
    if kernel is None or (getattr(config, "sliding_window", None) and "window_size" not in parameters):
        return False
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, count, 48, width, device=device, generator=generator).to(dtype)
        for count in (heads, keys, keys)
    )
    module = nn.Module().eval()
    lengths = [25, 16, 7]
    try:
        tried, known = (
            attention(module, query, key, value, None, packed=make_layout(lengths, device, varlen=varlen))[0]
            for varlen in (True, False)
        )
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(torch.allclose(tried.float(), known.float(), atol=3e-2, rtol=3e-2))


@contextmanager
def packed_attention(model: Any, *, is_compiled: bool = False) -> Iterator[None]:
    """Inside, the model's attention is ours; afterwards its own again.

    is_compiled   attention itself stays out of torch.compile, which would make a new graph for every layout
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(attention) if is_compiled else attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
