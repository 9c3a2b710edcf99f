"""Keys and values by slot: one position a slot, so that nothing ever moves.

A sequence is a table of slots, position p in `table[p]`. Accepting a draft, dropping one, forking and
preempting change tables and reference counts; the rows of keys and values stay where they were written.

Invariants (I1, I3, I5 of the runner, checked by `check`): a table's first `length` slots hold positions
0..length-1 without holes; a slot is written once between being handed out and being given back; a slot that
is in no table and no prefix is free, and a free slot is in none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.device import CPU

# What a layer keeps for a position: key/value heads, key dim, value dim; None for a layer that keeps nothing.
Layout = tuple[tuple[int, int, int] | None, ...]


@dataclass(eq=False)
class Sequence:
    """One sequence's place in a `SlotKV`.

    Attributes:
        table: int64, slots held, those of positions 0..length-1 first; the rest are reserved.
        length: positions whose keys and values are there.
        state: what recurrent layers carry, by layer.
    """

    table: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    length: int = 0
    state: dict[int, Any] = field(default_factory=dict)

    @property
    def slots(self) -> Tensor:
        """Slots of its positions, int64 [length]."""
        return self.table[: self.length]


class SlotKV:
    """Storage of keys (rotated) and values for many sequences; grows up to a limit.

    Args:
        layout: per layer.
        limit: most slots, None for as many as are asked for.
        device: of the storage; tables of slots stay on the CPU.

    Attributes:
        keys, values: per layer [slots, heads, dim], None where the layer keeps nothing; in `dtype`.
    """

    def __init__(
        self, layout: Layout, dtype: torch.dtype, *, limit: int | None = None, device: torch.device = CPU
    ) -> None:
        self.limit, self.layout = limit, layout
        self.dtype, self._device = dtype, device
        self.keys: list[Tensor | None] = [None] * len(layout)
        self.values: list[Tensor | None] = [None] * len(layout)
        self._users = torch.zeros(0, dtype=torch.int32)

    @property
    def capacity(self) -> int:
        """Slots there is storage for."""
        return self._users.shape[0]

    @property
    def free_slots(self) -> int:
        """Slots that can still be handed out, None being no limit."""
        unused = int((self._users == 0).sum())
        return unused + (2**62 if self.limit is None else self.limit - self.capacity)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one position over all layers."""
        size = torch.empty(0, dtype=self.dtype).element_size()
        return size * sum(heads * (key + value) for heads, key, value in filter(None, self.layout))

    def alloc(self, count: int, *, after: int | None = None) -> Tensor:
        """Hand out slots, int64 [count], in one run where there is one, best directly behind slot `after`.

        Raises:
            OptionError: fewer are left; nothing was handed out.
        """
        if count > self.free_slots:
            raise OptionError(
                f"{count} more positions do not fit the {self.limit} of the key/value cache",
                fix="raise the cache's size, or run fewer sequences at once",
            )
        slots = self._run(count, after)
        if slots is None and self.capacity + count <= (self.limit or 2**62):
            self._grow(self.capacity + count)
            slots = self._run(count, after)
        if slots is None:
            if int((self._users == 0).sum()) < count:
                self._grow(self.limit or 0)
            slots = torch.nonzero(self._users == 0)[:count, 0]
        self._users[slots] = 1
        return slots

    def share(self, slots: Tensor) -> None:
        """Count one more user of each slot."""
        self._users[slots] += 1

    def free(self, slots: Tensor) -> None:
        """Count one user fewer of each slot; without users it can be handed out again."""
        self._users[slots] -= 1

    def reserve(self, sequence: Sequence, positions: int) -> None:
        """See that `sequence` holds slots for at least so many positions.

        Raises:
            OptionError: they do not fit.
        """
        missing = positions - sequence.table.shape[0]
        if missing > 0:
            after = int(sequence.table[-1]) if sequence.table.shape[0] else None
            sequence.table = torch.cat([sequence.table, self.alloc(missing, after=after)])

    def fork(self, sequence: Sequence, length: int | None = None) -> Sequence:
        """Return a second sequence with the same first positions; nothing is copied but recurrent state."""
        slots = sequence.table[: sequence.length if length is None else length].clone()
        self.share(slots)
        return Sequence(slots, len(slots), dict(sequence.state) if len(slots) == sequence.length else {})

    def keep(self, sequence: Sequence, accepted: Tensor) -> None:
        """Commit some of the slots behind `length`, given by their place there (int64), and only those."""
        behind = sequence.table[sequence.length :]
        rest = torch.ones(len(behind), dtype=torch.bool)
        rest[accepted] = False
        sequence.table = torch.cat([sequence.slots, behind[accepted], behind[rest]])
        sequence.length += len(accepted)

    def trim(self, sequence: Sequence) -> None:
        """Give back what the sequence holds behind its length: turned down, or reserved."""
        self.free(sequence.table[sequence.length :])
        sequence.table = sequence.slots

    def release(self, sequence: Sequence) -> None:
        """Give back everything the sequence holds."""
        self.free(sequence.table)
        sequence.table, sequence.length, sequence.state = sequence.table[:0], 0, {}

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store rows [n, heads, dim] in `slots`."""
        own_keys, own_values = self._layer(layer)
        slots = slots.to(self._device)
        own_keys.index_copy_(0, slots, keys)
        own_values.index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Keys and values [n, heads, dim]; a slice is a view."""
        keys, values = self._layer(layer)
        if isinstance(slots, Tensor):
            slots = slots.to(self._device)
        return keys[slots], values[slots]

    def check(self, sequences: Iterable[Sequence], others: Iterable[Tensor] = ()) -> None:
        """Assert the invariants, given every sequence and whatever else holds slots."""
        users = torch.zeros_like(self._users)
        for held in (*(s.table for s in sequences), *others):
            assert len(torch.unique(held)) == len(held), "a slot twice in one table"
            users[held] += 1
        assert torch.equal(users, self._users), "a slot leaked, or was freed in use"
        assert all(s.length <= len(s.table) for s in sequences), "positions without slots"

    def _layer(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None or keys.shape[0] < self.capacity:
            self._store(layer)
            keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        return keys, values

    def _run(self, count: int, after: int | None) -> Tensor | None:
        free = self._users == 0
        if after is not None and after + 1 + count <= self.capacity:
            behind = slice(after + 1, after + 1 + count)
            if bool(free[behind].all()):
                return torch.arange(behind.start, behind.stop)
        if not count:
            return torch.empty(0, dtype=torch.int64)
        # The length of the free run that begins at each slot, from the end backwards.
        taken = torch.nonzero(~free)[:, 0]
        starts = torch.cat([torch.tensor([0]), taken + 1])
        stops = torch.cat([taken, torch.tensor([self.capacity])])
        fits = torch.nonzero(stops - starts >= count)
        if not len(fits):
            return None
        first = int(starts[fits[0, 0]])
        return torch.arange(first, first + count)

    def _grow(self, capacity: int) -> None:
        capacity = max(capacity, 2 * self.capacity, 256)
        capacity = capacity if self.limit is None else min(capacity, self.limit)
        self._users = torch.cat([self._users, self._users.new_zeros(capacity - self.capacity)])

    def _store(self, layer: int) -> None:
        """Make layer storage as long as the tables; done when a layer is first touched after growth."""
        shape = self.layout[layer]
        assert shape is not None, "this layer keeps no keys and values"
        heads, key_dim, value_dim = shape
        for kept, dim in ((self.keys, key_dim), (self.values, value_dim)):
            # Zeros, not empty: what is masked still enters as 0 times its value, and 0 x NaN is NaN.
            wider = torch.zeros(self.capacity, heads, dim, dtype=self.dtype, device=self._device)
            old = kept[layer]
            if old is not None:
                wider[: len(old)] = old
            kept[layer] = wider


def as_run(slots: Tensor) -> slice | Tensor:
    """The slice that `slots` is, if it is a rising run without holes; else `slots`."""
    count = slots.shape[0]
    if count and int(slots[-1]) - int(slots[0]) == count - 1:
        first = int(slots[0])
        if torch.equal(slots, torch.arange(first, first + count)):
            return slice(first, first + count)
    return slots
