"""Two samples of completions: did one model write both? For logs with text, and no ids or seeds. Pure.

The statistic is the unbiased maximum mean discrepancy with the Hamming kernel, K(x, y) = agreements / L
where both answer the same prompt and 0 otherwise ("Model Equality Testing: Which Model Is This API
Serving?", Gao, Liang and Guestrin, arXiv 2410.20247, section 3; the same number as their package
`model-equality-testing` 0.0.2 computes). Two things are ours:

* One Gram matrix for each prompt serves the statistic and all permutations, which only add its entries up
  in another way.
* Labels are permuted *within* each prompt. The null is that, for each prompt, both sides drew completions
  from one distribution; then labels within a prompt are exchangeable and p = (1 + permutations at least as
  large) / (1 + permutations) is at most alpha with probability at most alpha, exactly, at every sample
  size, whatever the prompts and however differently they are answered. Permuting across prompts, as the
  package does, holds only if both sides also drew the same prompts equally often.

The design should be balanced: as many completions of a prompt on one side as on the other. It is then the
most powerful for its size, and a prompt without completions on both sides adds nothing (it is left out).

**Evidence.** The identity is one of the labellings, and under the null it is no special one. So for any
function f >= 0 of a statistic, f(observed) over the mean of f over the observed and the permuted ones has
expectation 1: an e-value, exactly. Here f grows exponentially, at a few rates (in standard deviations of
all those statistics, which know nothing of the identity); the mean over rates is stated. It cannot exceed
the number of permutations, and reaches a thousand with far fewer of them than a p-value that is turned into
an e-value.

**What the null leaves out.** An honest provider's rounding differs from the reference's, so the two
distributions are never exactly equal. The Hamming kernel sees marginals of places, on which rounding has no
direction, but how often honest bfloat16 is rejected beside a float32 reference has not been measured yet
(`tests/proofs/seed_free.py` can). Draw the reference in the dtype that the provider declares.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from auditor.errors import OptionError
from auditor.kernels.hamming_gram import Backend, hamming_gram

PADDING = -1
_MOST_CHARACTERS = 1000  # of a completion, as in the paper
_BLOCK = 4096  # permutations evaluated together
_TIE = 1e-12
_RATES = (1.0, 2.0, 3.0, 4.0, 5.0)

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Completions:
    """One side: completion i answers prompt `prompts[i]`.

    Attributes:
        prompts: int64 [N], any numbers that both sides share.
        sequences: int32 [N, L], tokens or code points, padded with `PADDING`.
    """

    prompts: npt.NDArray[np.int64]
    sequences: I32


@dataclass(frozen=True, slots=True)
class Equality:
    """Result of the test.

    Attributes:
        statistic: the squared discrepancy, unbiased: about 0 under the null, and may be negative.
        p_value: from permutations within prompts, never 0.
        log_e: log of the e-value, from the same permutations.
        provider, reference: completions used of each side. prompts: how many prompts they answer.
    """

    statistic: float
    p_value: float
    log_e: float
    permutations: int
    provider: int
    reference: int
    prompts: int


def code_points(texts: Sequence[str], most: int = _MOST_CHARACTERS) -> I32:
    """Texts as padded code points, int32 [N, L], cut after `most` characters."""
    length = max(1, *(min(len(t), most) for t in texts)) if texts else 1
    rows = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(rows, texts, strict=True):
        cut = text[:most].encode("utf-32-le", "surrogatepass")
        row[: len(cut) // 4] = np.frombuffer(cut, np.int32)
    return rows


def padded(sequences: Sequence[Sequence[int]], most: int) -> I32:
    """Token ids as padded rows, int32 [N, L], cut after `most` tokens."""
    length = max(1, *(min(len(s), most) for s in sequences)) if sequences else 1
    rows = np.full((len(sequences), length), PADDING, np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: min(len(sequence), most)] = sequence[:most]
    return rows


def model_equality(
    provider: Completions,
    reference: Completions,
    *,
    permutations: int,
    generator: np.random.Generator,
    backend: Backend = "compiled",
) -> Equality:
    """Test whether both sides answered each prompt from one distribution.

    Args:
        permutations: at least 1/alpha - 1, or no p-value can reach alpha.
        generator: of the permutations.

    Raises:
        OptionError: fewer than one permutation, no prompt that both sides answered, or too few
            completions for a discrepancy (each side needs two of one prompt somewhere).
    """
    if permutations < 1:
        raise OptionError(f"{permutations} permutations")
    blocks = _blocks(provider, reference, backend)
    if not blocks:
        raise OptionError("the provider and the reference answered no prompt in common")
    own = sum(int(b.labels.sum()) for b in blocks)
    total = sum(len(b.labels) for b in blocks)
    pairs = _pairs(blocks)
    if min(pairs) == 0:
        raise OptionError("too few completions: each side needs two of one prompt somewhere")
    observed = float(sum(_sums(b, b.labels[:, None].astype(np.float64), pairs)[0] for b in blocks))
    values = np.zeros(permutations)
    for done in range(0, permutations, _BLOCK):
        part = values[done : done + _BLOCK]
        for block in blocks:
            part += _sums(block, _shuffled(block.labels, len(part), generator), pairs)
    # Sums of the same entries in another order may differ in their last bits: such ties count as ties.
    p_value = float((1 + (values >= observed - _TIE).sum()) / (1 + permutations))
    log_e = _log_e(observed, values)
    return Equality(observed, p_value, log_e, permutations, own, total - own, len(blocks))


def _log_e(observed: float, permuted: F64) -> float:
    """Log e-value of the observed statistic among the permuted ones [B]."""
    values = np.concatenate([[observed], permuted])
    spread = values.std()
    if spread <= _TIE:
        return 0.0
    scores = values / spread
    # In a tie the observed one is the smallest, which can only lower it.
    scores[1:] = np.where(np.abs(permuted - observed) <= _TIE, np.maximum(scores[1:], scores[0]), scores[1:])
    ratios = [rate * scores[0] - logsumexp(rate * scores) + np.log(len(scores)) for rate in _RATES]
    return float(logsumexp(ratios) - np.log(len(_RATES)))


@dataclass(frozen=True, slots=True)
class _Block:
    """One prompt: normalised Gram matrix [n, n] with a zero diagonal; which rows are the provider's [n]."""

    gram: F64
    labels: npt.NDArray[np.bool_]


def _blocks(provider: Completions, reference: Completions, backend: Backend) -> list[_Block]:
    length = max(provider.sequences.shape[1], reference.sequences.shape[1])
    sides = [_widened(side.sequences, length) for side in (provider, reference)]
    blocks = []
    for prompt in np.intersect1d(provider.prompts, reference.prompts):
        first, second = (
            rows[side.prompts == prompt] for rows, side in zip(sides, (provider, reference), strict=True)
        )
        rows = np.concatenate([first, second])
        gram = hamming_gram(rows, backend=backend) / length
        np.fill_diagonal(gram, 0.0)
        blocks.append(_Block(gram, np.arange(len(rows)) < len(first)))
    return blocks


def _widened(sequences: I32, length: int) -> I32:
    rows = np.full((len(sequences), length), PADDING, np.int32)
    rows[:, : sequences.shape[1]] = sequences
    return rows


def _pairs(blocks: Sequence[_Block]) -> tuple[int, int, int]:
    """Ordered pairs of distinct completions of one prompt: provider's, mixed (once), reference's."""
    sizes = [(int(b.labels.sum()), int((~b.labels).sum())) for b in blocks]
    return (
        sum(n * (n - 1) for n, _ in sizes),
        sum(n * m for n, m in sizes),
        sum(m * (m - 1) for _, m in sizes),
    )


def _sums(block: _Block, labels: F64, pairs: tuple[int, int, int]) -> F64:
    """Share of the statistic that one prompt adds, for each labelling (columns of `labels` [n, B])."""
    own = (labels * (block.gram @ labels)).sum(axis=0)
    mixed = block.gram.sum(axis=1) @ labels - own
    other = block.gram.sum() - own - 2.0 * mixed
    return np.asarray(own / pairs[0] - 2.0 * mixed / pairs[1] + other / pairs[2])


def _shuffled(labels: npt.NDArray[np.bool_], count: int, generator: np.random.Generator) -> F64:
    """Random labellings with the same numbers on each side, float64 [n, count]."""
    order = generator.random((len(labels), count)).argsort(axis=0)
    return np.asarray(labels[order], np.float64)
