"""Keys and values of the sequences that are being decoded, with a length of its own for each.

Invariants: 0 <= lengths <= capacity <= the model's context; positions 0..length-1 of a row are its
sequence in order; what lies beyond a row's length is stale and never attended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.errors import ContextLengthError, OptionError

if TYPE_CHECKING:
    from auditor.reference.config import ModelConfig


class KVCache:
    """Room for `batch` sequences of up to `capacity` tokens.

    Attributes:
        lengths: int64 [batch], the tokens stored per row.
        keys, values: [layers, batch, key/value heads, capacity, head_dim] in `dtype`; keys are rotated.

    """

    def __init__(self, config: ModelConfig, *, batch: int, capacity: int, dtype: torch.dtype) -> None:
        if batch < 0 or not 0 < capacity <= config.context_length:
            raise OptionError(
                f"a cache of {batch} rows and {capacity} positions; the model has {config.context_length}",
                fix="capacity must lie between 1 and the context length",
            )
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.context_length = config.context_length
        self.lengths = torch.zeros(batch, dtype=torch.int64)
        # Zeros, not empty: a masked position still enters attention as 0 times its value, and 0 x NaN is NaN.
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)

    @property
    def batch(self) -> int:
        """Rows."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Positions a row has room for."""
        return self.keys.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.keys.dtype

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` positions a row; at least doubles, within the context.

        Raises:
            ContextLengthError: more positions than the model has.

        """
        if capacity > self.context_length:
            raise ContextLengthError(f"{capacity} positions; the model has {self.context_length}")
        if capacity <= self.capacity:
            return
        capacity = min(max(capacity, 2 * self.capacity), self.context_length)
        self.keys, self.values = _padded(self.keys, capacity), _padded(self.values, capacity)

    def keep(self, rows: Tensor) -> None:
        """Drop every row but these, in this order: `rows` is int64 [n] of row numbers, or boolean [batch].

        Raises:
            IndexError: a row number outside the batch.

        """
        self.lengths = self.lengths[rows]
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def write_prompt(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Store a prompt's keys and values, each [tokens, key/value heads, head_dim], from position 0 on."""
        self.keys[layer, row, :, : keys.shape[0]] = keys.transpose(0, 1)
        self.values[layer, row, :, : values.shape[0]] = values.transpose(0, 1)

    def write_next(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store one token's keys and values a row, each [batch, key/value heads, head_dim], at `lengths`."""
        rows = torch.arange(self.batch)
        self.keys[layer, rows, :, self.lengths] = keys
        self.values[layer, rows, :, self.lengths] = values


def _padded(tensor: Tensor, capacity: int) -> Tensor:
    wider = tensor.new_zeros((*tensor.shape[:3], capacity, tensor.shape[4]))
    wider[:, :, :, : tensor.shape[3]] = tensor
    return wider
