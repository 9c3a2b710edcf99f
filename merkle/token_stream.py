"""Committing while the tokens come: leaves by the block, a signed head now and then, the bill at the end.

1. `add` takes hidden tokens; every `head_blocks` whole blocks a head is signed and sent to the client.
2. `answer` closes the hidden part: its head says `visible 0`, and goes out before the first visible token.
   What is invented after the answer no longer fits.
3. `finish` signs the final head, which states what is billed.

The embedding fingerprint of a block stands in the leaf of its first token; the others have none. Pure: clock,
key and embedder are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from auditor.commitment_errors import HeadChainError
from auditor.merkle.keys import Signer
from auditor.merkle.token_heads import TokenHead, sign_head
from auditor.merkle.token_leaves import Salts, TokenLeaf
from auditor.merkle.tree import Tree

Fingerprint = Callable[[Sequence[int]], bytes]
"""Token ids of one block -> int8 embedding of its text; empty where the head declares no embedder."""


def no_fingerprint(block: Sequence[int]) -> bytes:
    """What a head with `embedder none` commits to."""
    del block
    return b""


def block_leaves(
    request: str, first: int, block: Sequence[int], salts: Salts, fingerprint: Fingerprint
) -> list[TokenLeaf]:
    """Leaves of one block whose first token has index `first`."""
    own = fingerprint(block)
    return [
        TokenLeaf(request, first + i, token, salts.salt(first + i), b"" if i else own)
        for i, token in enumerate(block)
    ]


@dataclass(frozen=True, slots=True)
class Declared:
    """What every head of a response repeats; see `TokenHead`."""

    request: str
    model: str
    tokenizer: str
    embedder: str
    block: int


class TokenStream:
    """One response as it is made.

    Args:
        declared: names and digests.
        salts: of this response.
        signer: the provider's key, of type 0x01.
        clock: POSIX seconds.
        fingerprint: embedding of a block.
        head_blocks: whole blocks between two heads.

    Attributes:
        heads: signed heads so far.
        proofs: consistency proof from each head to the next.
        leaves: hidden tokens committed to so far.
        tree: over them.
    """

    def __init__(
        self,
        declared: Declared,
        salts: Salts,
        signer: Signer,
        clock: Callable[[], int],
        fingerprint: Fingerprint = no_fingerprint,
        *,
        head_blocks: int = 4,
    ) -> None:
        self.heads: list[bytes] = []
        self.proofs: list[list[bytes]] = []
        self.leaves: list[TokenLeaf] = []
        self.tree = Tree()
        self._declared, self._salts, self._signer, self._clock = declared, salts, signer, clock
        self._fingerprint, self._head_blocks = fingerprint, head_blocks
        self._pending: list[int] = []
        self._last: TokenHead | None = None
        self._answering = False

    def add(self, token: int) -> bytes | None:
        """Take one hidden token; returns the head that is to be sent now, if any.

        Raises:
            HeadChainError: visible tokens have begun.
            CommitmentFieldError: no token id.
        """
        if self._answering:
            raise HeadChainError("hidden tokens after the answer began")
        self._pending.append(token)
        if len(self._pending) < self._declared.block:
            return None
        self._close_block()
        blocks = len(self.leaves) // self._declared.block
        return self._sign(visible=0, final=False) if blocks % self._head_blocks == 0 else None

    def answer(self) -> bytes:
        """The hidden tokens are complete: the head that goes out before the first visible one."""
        if self._pending:
            self._close_block()
        self._answering = True
        return self._sign(visible=0, final=False)

    def finish(self, visible: int) -> bytes:
        """The response is complete: the head that states the bill.

        Raises:
            HeadChainError: `answer` was not called, or the response is already finished.
        """
        if not self._answering or (self._last is not None and self._last.final):
            raise HeadChainError("a response ends once, after its answer")
        return self._sign(visible=visible, final=True)

    def _close_block(self) -> None:
        first = len(self.leaves)
        leaves = block_leaves(self._declared.request, first, self._pending, self._salts, self._fingerprint)
        self.leaves += leaves
        self.tree.extend(b"".join(leaf.hash() for leaf in leaves))
        self._pending = []

    def _sign(self, *, visible: int, final: bool) -> bytes:
        declared, last = self._declared, self._last
        now = self._clock() if last is None else max(last.time, self._clock())  # clocks may step back
        head = TokenHead(
            declared.request,
            len(self.heads),
            self.tree.size,
            visible,
            self.tree.root(),
            declared.block,
            declared.model,
            declared.tokenizer,
            declared.embedder,
            now,
            final,
        )
        if last is not None:
            self.proofs.append(self.tree.consistency_proof(last.hidden, head.hidden) if last.hidden else [])
        self._last = head
        self.heads.append(sign_head(head, self._signer))
        return self.heads[-1]
