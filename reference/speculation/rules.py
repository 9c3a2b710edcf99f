"""Acceptance rules of speculative decoding, sorted by what a seed still says about the tokens.

* *Synchronised*: every token is the one that plain sampling with the same noise returns (`coupled`: the
  target draws at every node and a draft is kept while it equals the draw; vLLM's early `strict`).
* *Keyed* (`standard`): a draft d is kept iff p(d) > u, where the coin u is a function of seed and position,
  else the noise of that position chooses among the other tokens. With one-hot drafts (an n-gram, or a draft
  model's likeliest token) one token is legal where the draft was logged, and few where it was not.
* *Distribution-lossless*: tokens follow the model's distribution, but the seed does not decide which
  (block verification, generators with a state, drafts that were drawn at random and not logged). Only the
  distribution can be tested.

Everything else is unknown and refused.

Sources: Leviathan, Kalman, Matias, arXiv 2211.17192; block verification, arXiv 2403.10444; vLLM's
`v1/worker/gpu/spec_decode/rejection_sampler_utils.py` of the releases named (read, not run: no GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.errors import NoiseUnknownError, TraceFieldError
from auditor.kernels import philox
from auditor.kernels.splitmix import F64, GOLDEN, U64, mix
from auditor.reference.noise import NoiseScheme
from auditor.reference.noise.scheme import positions
from auditor.reference.speculation.admissible import SpeculatedRows

I64 = npt.NDArray[np.int64]

NO_DRAFT = -1
"""In place of a draft: the token came from plain sampling (a bonus token, or a step without drafts)."""

SYNCHRONISED = frozenset({"none", "coupled", "strict"})

LOSSLESS = frozenset({"standard", "block", "target-only", "k-seq"})
"""Rules whose tokens follow the model's distribution; those of them that `find_rule` knows are keyed."""

# First eight bytes of SHA-256 of "gumbel-pos-v1/coin".
_DOMAIN_COIN = np.uint64(0xBF9604AD9121BDD5)
_TINY_64 = 2.2250738585072014e-308
# Float32 log-likelihoods of a row: a few units in the last place of numbers near 30.
_FLOAT32_DOUBT = 2.0**-18


@dataclass(frozen=True, slots=True)
class SpeculationRule:
    """A keyed rule with one-hot drafts.

    Attributes:
        name: what a trace declares in `speculation.rule`.
        versions: releases of the scheme's engine that flip these coins; empty for schemes of no engine.
        schemes: names of noise schemes begin so.
        coins: (seed, absolute positions uint64 of the last token consumed) -> uniform float64 in (0, 1).
        doubt: by how much the engine's log-likelihoods may be rounded.
    """

    name: str
    versions: tuple[str, ...]
    schemes: str
    coins: Callable[[int, U64], F64]
    doubt: float

    def row_coins(self, seed: int, prompt_tokens: int, start: int, stop: int) -> F64:
        """Coins of output tokens start..stop-1 of a prompt of that length, float64 [stop - start]."""
        return self.coins(seed, positions(prompt_tokens - 1, start, stop))


def _own_coins(seed: int, consumed: U64) -> F64:
    """Coins of `gumbel-pos-v1`: its hash of (seed, position of the sampled token) in a domain apart."""
    with np.errstate(over="ignore"):
        base = mix(np.array([seed & (2**64 - 1)], np.uint64) ^ _DOMAIN_COIN)
        words = mix(base + (consumed + np.uint64(2)) * GOLDEN) >> np.uint64(11)
    return np.asarray(np.minimum((words.astype(np.float64) + 0.5) * 2.0**-53, 1.0 - 2.0**-53))


def _triton_rand32(seed: int, consumed: U64) -> F64:
    """Triton's `rand(seed, position)`, zero raised."""
    u = philox.triton_rand(np.array([seed % 2**64], np.uint64), consumed).astype(np.float64)
    return np.maximum(u, np.float64(philox.TRITON_SCALE))


def _triton_rand64(seed: int, consumed: U64) -> F64:
    """Two words of Triton's `randint4x(seed, position)` as one number."""
    low, high, _, _ = philox.triton_words(np.array([seed % 2**64], np.uint64), consumed)
    u = ((high << np.uint64(32)) | low).astype(np.float64) * 2.0**-64
    return np.clip(u, _TINY_64, 1.0 - 2.0**-53)


RULES = (
    SpeculationRule("standard", (), "gumbel-pos-v1", _own_coins, 0.0),
    SpeculationRule(
        "standard", ("0.28.0", "0.31.0", "0.32.0"), "vllm-gpu-v2/", _triton_rand32, _FLOAT32_DOUBT
    ),
    SpeculationRule("standard", ("0.24.0",), "vllm-gpu-v2/", _triton_rand64, _FLOAT32_DOUBT),
)


def is_synchronised(rule: str) -> bool:
    """Whether tokens under a rule are those of plain sampling."""
    return rule in SYNCHRONISED


def find_rule(name: str, scheme: NoiseScheme, version: str | None, *, where: str = "") -> SpeculationRule:
    """The keyed rule that an engine follows.

    Raises:
        NoiseUnknownError: its coins are not known for this scheme and release.
    """
    for rule in RULES:
        known = not rule.versions or version in rule.versions
        if rule.name == name and scheme.name.startswith(rule.schemes) and known:
            return rule
    raise NoiseUnknownError(
        f"the coins of speculation rule {name!r} are not known for {scheme.name} in release {version}",
        where=where,
    )


@dataclass(frozen=True, slots=True)
class Speculated:
    """One request's speculation.

    Attributes:
        drafts: int64 [output tokens], the draft judged at each, `NO_DRAFT` where none was; None when the log
            does not say.
    """

    rule: SpeculationRule
    drafts: I64 | None

    def rows(self, seed: int, prompt_tokens: int, start: int, stop: int) -> SpeculatedRows:
        """Coins and drafts of output tokens start..stop-1."""
        coins = self.rule.row_coins(seed, prompt_tokens, start, stop)
        drafts = None if self.drafts is None else self.drafts[start:stop]
        return SpeculatedRows(coins, drafts, self.rule.doubt)


def drafts_of_steps(steps: Sequence[Sequence[int]], output: Sequence[int], *, where: str = "") -> I64:
    """The draft that was judged at each output token.

    Every step proposes drafts, keeps some from the front, and adds one token of its own, which never is the
    draft it replaces: so where a step ends is read off the output.

    Args:
        steps: ids proposed by each step, empty for a step without drafts.

    Raises:
        TraceFieldError: the steps make more or fewer tokens than were logged.
    """
    judged: list[int] = []
    for number, step in enumerate(steps):
        if len(judged) >= len(output):
            raise TraceFieldError(
                f"field speculation.draft_token_ids: step {number} begins after the last of "
                f"{len(output)} output tokens",
                where=where,
            )
        for draft in step:
            judged.append(draft)
            if len(judged) > len(output) or output[len(judged) - 1] != draft:
                break
        else:
            judged.append(NO_DRAFT)
    if len(judged) < len(output):
        raise TraceFieldError(
            f"field speculation.draft_token_ids: {len(steps)} steps make {len(judged)} tokens, "
            f"{len(output)} were logged",
            where=where,
            fix="log one list of drafts for each step, empty ones too",
        )
    return np.array(judged[: len(output)], np.int64)
