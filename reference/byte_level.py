"""Exact probabilities of bytes under a model of tokens, without guessing how the text was tokenized. Pure.

A *cover* of the bytes x is a token sequence whose text begins with x while the text without its last token is
a strict part of x. Each infinite continuation of x passes through exactly one cover, so

    P(x) = sum over covers t of P(t),      P(symbol | x) = P(x symbol) / P(x),

a symbol being one of 256 bytes or a special token. Source: "Exact Byte-Level Probabilities from Tokenized
Language Models", arXiv 2410.09303, section 4; covers, the model and the normalisation are as there, the
search is ours.

Two models of tokens are offered through `follow`, which says what may come next:

* *canonical*: only canonical pairs (`canonical_pairs.py`), each row renormalised over them. A text then has
  one tokenization, a cover is that of a shorter text and one token that reaches beyond it, and x needs one
  chain of rows and a few left contexts near its end.
* *everything*: plain sampling. Covers multiply with each byte, so this is for short texts.

Invariants: the model is asked for each context once, in one call; every sum is float64; with every context
having somewhere to go, the symbols' probabilities add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from auditor.errors import CannotScoreError
from auditor.reference.canonical_pairs import CanonicalPairs
from auditor.reference.token_bytes import TokenBytes

F64 = npt.NDArray[np.float64]
Ids = tuple[int, ...]
Rows = Callable[[Sequence[Ids]], Iterable[tuple[Ids, F64]]]
"""Log P(next token | prompt, context), normalised, float64 [V], for each context, in any order."""


@dataclass(frozen=True, slots=True, eq=False)
class Excluded:
    """Ids that may not come next: as a set to look into, and as an index."""

    members: frozenset[int]
    ids: npt.NDArray[np.int64]

    @classmethod
    def of(cls, members: frozenset[int]) -> Excluded:
        """Both views of a set."""
        return cls(members, np.fromiter(members, np.int64, len(members)))


Follow = Callable[[int | None], Excluded]
"""Which ids may not follow a token (None: the prompt)."""

MOST_COVERS = 100_000
_MUCH = 0.5  # beyond this, one minus it loses digits


@dataclass(frozen=True, slots=True)
class ByteLaw:
    """What comes after the bytes.

    Attributes:
        log_probability: of the bytes themselves, log P(x).
        next_bytes: log P(b | x), float64 [256].
        specials: log P(s | x) of each special token.
        covers: how many were summed. contexts: rows that the model was asked for.
    """

    log_probability: float
    next_bytes: F64
    specials: Mapping[int, float]
    covers: int
    contexts: int

    @property
    def total(self) -> float:
        """Sum of the probabilities of all symbols; 1 up to rounding."""
        return float(np.exp(self.next_bytes).sum() + np.exp(list(self.specials.values())).sum())


@dataclass(frozen=True, slots=True)
class _Cover:
    context: Ids
    at: int
    """Bytes that the context spells."""


def byte_law(data: bytes, vocabulary: TokenBytes, rows: Rows, follow: Follow) -> ByteLaw:
    """P(data) and the law of the next symbol.

    Raises:
        CannotScoreError: no tokens spell the bytes, or more than `MOST_COVERS` ways to.
    """
    ends = _contexts(data, vocabulary, follow)
    wanted = {ids[:n] for ids, _ in ends for n in range(len(ids) + 1)}
    # log P of the next token, for the tokens that some context continues with
    chain: dict[Ids, dict[int, float]] = {ids: {} for ids in wanted}
    for ids in wanted:
        if ids:
            chain[ids[:-1]][ids[-1]] = 0.0
    at = dict(ends)
    tails: dict[Ids, _Tail] = {}
    for context, row in rows(sorted(wanted)):
        law, shift = renormalised(row, follow(context[-1] if context else None).ids, whole=context in at)
        chain[context] = {token: float(law[token]) - shift for token in chain[context]}
        if context in at:
            tails[context] = _tail(data[at[context] :], law - shift, vocabulary)
    return _sum([(_chain(ids, chain), tails[ids]) for ids, _ in ends], vocabulary, len(wanted), at, len(data))


def renormalised(row: F64, forbidden: npt.NDArray[np.int64], *, whole: bool) -> tuple[F64, float]:
    """A row without what may not come next, and what to take off each value that may.

    The row is normalised, so what it loses says what the rest has, unless that is nearly everything.

    Args:
        row: log probabilities, float64 [V].
        whole: whether every value is looked at; otherwise forbidden ones may be left in it.
    """
    lost = float(np.exp(row[forbidden]).sum())
    if whole or lost > _MUCH:
        row = row.copy()
        row[forbidden] = -np.inf
    return row, float(logsumexp(row)) if lost > _MUCH else float(np.log1p(-lost))


def _chain(ids: Ids, chain: Mapping[Ids, Mapping[int, float]]) -> float:
    return sum(chain[ids[:n]][token] for n, token in enumerate(ids))


@dataclass(frozen=True, slots=True)
class _Tail:
    """From one context: log mass of tokens that go on through the rest of the bytes.

    Attributes:
        mass: by the byte they show behind the text, [256]. ending: those that end with it exactly.
        specials: only where no bytes are left.
        count: covers.
    """

    mass: F64
    ending: float
    specials: F64
    count: int


def _tail(rest: bytes, law: F64, vocabulary: TokenBytes) -> _Tail:
    exact, beyond, following = vocabulary.continuations(rest)
    mass = np.bincount(following, weights=np.exp(law[beyond]), minlength=256)
    special = law[list(vocabulary.special_ids)] if not rest else np.empty(0)
    with np.errstate(divide="ignore"):
        ending = float(np.log(np.exp(law[exact]).sum()))
    count = int(np.isfinite(law[exact]).sum() + np.isfinite(law[beyond]).sum())
    with np.errstate(divide="ignore"):
        return _Tail(np.log(mass), ending, np.asarray(special), count)


def _sum(
    ends: Sequence[tuple[float, _Tail]],
    vocabulary: TokenBytes,
    contexts: int,
    at: Mapping[Ids, int],
    length: int,
) -> ByteLaw:
    """Add contexts up: covers that reach beyond the text, and what the exact ones go on with."""
    total, covers = -np.inf, 0
    next_bytes = np.full(256, -np.inf)
    specials = np.full(len(vocabulary.special_ids), -np.inf)
    for (weight, tail), spelled in zip(ends, at.values(), strict=True):
        if spelled < length:  # the context's own last token is no cover yet
            total = np.logaddexp(total, weight + np.logaddexp(logsumexp(tail.mass), tail.ending))
            covers += tail.count
        else:
            specials = np.logaddexp(specials, weight + tail.specials)
        next_bytes = np.logaddexp(next_bytes, weight + tail.mass)
    if length == 0:
        total, covers = 0.0, 1
    if not np.isfinite(total):
        raise CannotScoreError("no sequence of tokens spells these bytes")
    return ByteLaw(
        float(total),
        next_bytes - total,
        dict(zip(vocabulary.special_ids, (specials - total).tolist(), strict=True)),
        covers,
        contexts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """A token sequence as its last token and what comes before."""

    before: _Path | None
    token: int

    def ids(self) -> Ids:
        found, path = [self.token], self.before
        while path is not None:
            found.append(path.token)
            path = path.before
        return tuple(reversed(found))


def _contexts(data: bytes, vocabulary: TokenBytes, follow: Follow) -> list[tuple[Ids, int]]:
    """Token sequences that spell a beginning of `data` and from which one more token may reach its end.

    The whole text is among them: what follows it exactly is read there.
    """
    paths: list[list[_Path | None]] = [[] for _ in range(len(data) + 1)]
    paths[0] = [None]
    count = 0
    for position in range(len(data)):
        if not paths[position]:
            continue
        names = vocabulary.matching(data, position)
        steps = [(i, position + len(vocabulary.spelled[i] or b"")) for i in names]
        for path in paths[position]:
            forbidden = follow(path.token if path else None).members
            for token, end in steps:
                if token not in forbidden:
                    paths[end].append(_Path(path, token))
                    count += 1
        if count > MOST_COVERS:
            raise CannotScoreError(
                f"more than {MOST_COVERS:,} tokenizations of the bytes",
                fix="score shorter texts, or canonical tokenizations only",
            )
    return [
        (path.ids() if path else (), position)
        for position in range(max(0, len(data) - vocabulary.longest), len(data) + 1)
        if position == len(data) or vocabulary.begins(data[position:])
        for path in paths[position]
    ]


_NONE = Excluded.of(frozenset())


def everything(_last: int | None) -> Excluded:
    """`Follow` of plain sampling: no token is excluded."""
    return _NONE


def canonical(pairs: CanonicalPairs) -> Follow:
    """`Follow` of canonical generation; anything may stand first, behind the prompt."""
    known: dict[int | None, Excluded] = {None: _NONE}

    def follow(last: int | None) -> Excluded:
        if last is None or last in known:
            return known[last]
        return known.setdefault(last, Excluded.of(pairs.forbidden_after(last)))

    return follow
