"""What opened blocks are worth where the weights are at hand: replay by seed, and likelihood.

The only tests that see another request's reasoning or a small model's: both are honest text, but not what
this model draws here from this seed. A replay needs the seed and all before the block (`audit verify`);
without either the likelihood of what was opened is one more score for `audit check --honest` to calibrate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.sampling import SamplingSpec

F64 = npt.NDArray[np.float64]

MARGIN_CLIP = 10.0
"""Logits beyond which a token that was not drawn counts no more: one rare token must not outweigh a block."""


@dataclass(frozen=True, slots=True)
class BlockScores:
    """One response's replay.

    Attributes:
        margins: mean clipped margin of each block, logits; 0 where every token is the one that the seed
            draws.
        log_probabilities: mean log-probability of each block's tokens, nats.
    """

    margins: F64
    log_probabilities: F64

    @property
    def suspicion(self) -> float:
        """Mean clipped margin of the worst block: filler need not fill all of them."""
        return float(self.margins.max())


def replay_blocks(runner: Runner, requests: Sequence[Request], block: int) -> Iterator[BlockScores]:
    """Replay requests by their seeds; their outputs begin with the first hidden token."""
    for request, rows in zip(requests, runner.score(requests), strict=True):
        starts = np.arange(0, len(request.output), block)
        sizes = np.diff(np.append(starts, len(request.output)))
        clipped = np.minimum(rows.margin, MARGIN_CLIP)
        yield BlockScores(
            np.add.reduceat(clipped, starts) / sizes,
            np.add.reduceat(rows.log_probability, starts) / sizes,
        )


def least_log_probability(
    runner: Runner, prompt: tuple[int, ...], runs: Sequence[tuple[int, ...]], block: int
) -> float:
    """Mean log-probability of the unlikeliest opened block, nats a token.

    Args:
        runs: neighbouring opened blocks joined. A run is taken after the prompt alone, which is exact for the
            first one and a score to calibrate for others; within a run every token follows those before it.
    """
    # Likelihoods do not hang on the noise.
    scheme = noise_scheme("gumbel-pos-v1")
    requests = [Request(prompt, run, SamplingSpec(), 0, scheme) for run in runs]
    return min(float(scores.log_probabilities.min()) for scores in replay_blocks(runner, requests, block))
