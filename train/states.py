"""What a model has read of some rows: keys and values of every layer, to be kept, joined and gone on with.

transformers' own cache copies all of them for every token; here they stand in room for what is to come. Only for
models whose layers all see everything that came before (`num_plain_layers`), which most are.

Letters: L layers, B rows, K key-value heads, T positions, D width of a head.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from train.heads import base_model

_MORE, _LEAST_MORE = 0.25, 32  # of what is there, and positions, when the room has been used up


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Rows read so far; a position that is not read is nobody's, no row sees it.

    Shapes   keys_values (2 L, B, K, T or more, D): keys and values of the first layer, of the second, ...;
             is_read (B, T) int64, 1 or 0.
    """

    keys_values: Tensor
    is_read_BT: Tensor

    @property
    def num_bytes(self) -> int:
        return self.keys_values.numel() * self.keys_values.element_size()

    def chosen(self, rows_B: Tensor, num_more: int) -> "States":
        """These rows, with room for so many more positions."""
        layers, _, heads, _, width = self.keys_values.shape
        length = self.is_read_BT.shape[1]
        room = self.keys_values.new_empty(layers, len(rows_B), heads, length + num_more, width)
        room[:, :, :, :length] = self.keys_values[:, rows_B, :, :length]
        return States(room, self.is_read_BT[rows_B])

    def without_gaps(self) -> "States":
        """Without the positions that no row has read."""
        columns_T = self.is_read_BT.any(0).nonzero()[:, 0]
        if len(columns_T) == self.is_read_BT.shape[1]:
            return self
        return States(self.keys_values.index_select(3, columns_T), self.is_read_BT[:, columns_T])


def joined(parts: Sequence[States], starts: Sequence[int], num_rows: int, num_more: int) -> States:
    """The parts' rows from `starts` on, with room for so many more positions; rows between have read nothing.

    starts   increasing
    """
    longest = max(part.is_read_BT.shape[1] for part in parts)
    layers, _, heads, _, width = parts[0].keys_values.shape
    keys_values = parts[0].keys_values.new_empty(layers, num_rows, heads, longest + num_more, width)
    is_read_BT = parts[0].is_read_BT.new_zeros(num_rows, longest)
    end = 0
    for part, start in zip(parts, starts, strict=True):
        keys_values[:, end:start, :, :longest] = (
            0  # what nobody has read is multiplied by 0, so may not be NaN
        )
        count, length = part.is_read_BT.shape
        end = start + count
        keys_values[:, start:end, :, :length] = part.keys_values[:, :, :, :length]
        keys_values[:, start:end, :, length:longest] = 0
        is_read_BT[start:end, :length] = part.is_read_BT
    keys_values[:, end:, :, :longest] = 0
    return States(keys_values, is_read_BT)


def forward_takes(model: nn.Module, *names: str) -> bool:
    """Whether the model inside any adapters is called with all of these."""
    return set(names) <= set(inspect.signature(base_model(model).forward).parameters)


def num_plain_layers(model: nn.Module) -> int:
    """How many layers there are to be kept, if each keeps every token and rows may have their own positions; or 0."""
    inner = base_model(model)
    if not forward_takes(model, "past_key_values", "position_ids", "attention_mask", "use_cache"):
        return 0
    try:
        layers = DynamicCache(config=inner.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a configuration that names no layers
        return 0
    return len(layers) if all(type(layer) is DynamicLayer for layer in layers) else 0


class Cache(DynamicCache):
    """For a pass over new rows, or one over what follows `states`."""

    def __init__(self, num_layers: int, states: States | None = None) -> None:
        super().__init__()
        length = 0 if states is None else states.is_read_BT.shape[1]
        pairs = [(None, None)] * num_layers if states is None else _pairs(states.keys_values)
        self.layers = [_Layer(keys, values, length) for keys, values in pairs]

    def states(self, rows_B: Tensor, is_read_BT: Tensor) -> States | None:
        """Of these rows after a pass over them; None where a layer kept something else.

        Shapes   rows (B,); is_read (B, T), which may end before the rows do.
        """
        found = [part for layer in self.layers for part in (layer.keys, layer.values) if part is not None]
        is_whole = len(found) == 2 * len(self.layers) and found[0].dim() == 4
        if not is_whole or any(part.shape != found[0].shape for part in found):
            return None
        _, heads, _, width = found[0].shape
        length = is_read_BT.shape[1]
        kept = found[0].new_empty(len(found), len(rows_B), heads, length, width)
        for place, part in enumerate(found):
            torch.index_select(part[:, :, :length], 0, rows_B, out=kept[place])
        return States(kept, is_read_BT)


class _Layer(DynamicLayer):
    """Keys and values written into room that is there, instead of copied into longer ones each time."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, length: int) -> None:
        super().__init__()
        self._room, self._length = (keys, values), length
        if keys is not None and values is not None:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.keys, self.values = keys[:, :, :length], values[:, :, :length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See DynamicLayer."""
        keys, values = self._room
        end = self._length + key_states.shape[-2]
        if keys is None or values is None:  # the first pass
            self._room = key_states, value_states
            self.keys, self.values = key_states, value_states
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        else:
            if end > keys.shape[-2]:
                keys, values = (_longer(part, end) for part in (keys, values))
                self._room = keys, values
            keys[:, :, self._length : end] = key_states
            values[:, :, self._length : end] = value_states
            self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        self._length = end
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """See DynamicLayer."""
        super().batch_select_indices(indices)
        self._room = self.keys, self.values


def _pairs(keys_values: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts = keys_values.unbind(0)
    return list(zip(parts[::2], parts[1::2], strict=True))


def _longer(part: Tensor, length: int) -> Tensor:
    """With room for `length` positions, and some more."""
    old = part.shape[-2]
    room = length + max(int(_MORE * length), _LEAST_MORE)
    longer = part.new_empty(*part.shape[:2], room, part.shape[3])
    longer[:, :, :old] = part
    return longer
