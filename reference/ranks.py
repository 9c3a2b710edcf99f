"""The processes that `torch.distributed` joined, and what they hand each other.

Invariants: tensors travel as bytes, so none is rounded and every dtype can go; what comes from several ranks
comes in their order. Calls meet only if every rank makes the same ones in the same order, from one thread.
Whoever joined the processes also parts them: without `torch.distributed.destroy_process_group()` a thread of
gloo can outlive the interpreter and abort a process whose work was done (PyTorch issue 190489).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from auditor.errors import OptionError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process, `own` of `count`, among those that are joined."""

    own: int
    count: int

    @classmethod
    def joined(cls) -> Ranks:
        """Find this process's place.

        Raises:
            OptionError: no process group.
        """
        if not distributed.is_available() or not distributed.is_initialized():
            raise OptionError(
                "no other processes are joined",
                fix="start with torchrun and call torch.distributed.init_process_group('gloo') first",
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's `x`, in the order of ranks; all have one shape and dtype."""
        pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.count)]
        distributed.all_gather([_bytes(piece) for piece in pieces], _bytes(x.contiguous()))
        return pieces

    def send(self, x: Tensor) -> None:
        """Hand `x` to the next rank."""
        distributed.send(_bytes(x.contiguous()), self.own + 1)

    def receive(self, like: Tensor) -> Tensor:
        """Take what the rank before sent, of the shape and dtype of `like`."""
        x = torch.empty_like(like, memory_format=torch.contiguous_format)
        distributed.recv(_bytes(x), self.own - 1)
        return x

    def from_last(self, x: Tensor) -> Tensor:
        """The last rank's `x`, on every rank."""
        x = x.contiguous()
        if x.numel():
            distributed.broadcast(_bytes(x), self.count - 1)
        return x

    def agree(self, text: str) -> bool:
        """Whether every rank says the same."""
        said = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
        return all(torch.equal(said, other) for other in self.gather(said))

    def together(self, make: Callable[[], T], named: Callable[[T], str]) -> T:
        """Make something on every rank, or on none.

        Raises:
            OptionError: another rank failed, or made something of another name.
        """
        name = "failed"
        try:
            made = make()
            name = named(made)
        finally:
            agreed = self.agree(name)
        if not agreed:
            raise OptionError(
                f"rank {self.own} has {name}, and another rank has not",
                fix="see what the other ranks report; give all of them the same files and options",
            )
        return made


def _bytes(x: Tensor) -> Tensor:
    return x.view(-1).view(torch.uint8)
