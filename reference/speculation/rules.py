"""Acceptance rules of speculative decoding, sorted by what a seed still says about the tokens.

* *Synchronised*: every token is the one that plain sampling with the same noise returns (`coupled`: the
  target draws at every node and a draft is kept while it equals the draw; vLLM's early `strict`).
* *Keyed* (`standard`): a draft d is kept iff p(d) > u, where the coin u is a function of seed and position,
  else the noise of that position chooses among the other tokens. With one-hot drafts (an n-gram, or a draft
  model's likeliest token) one token is legal where the draft was logged, and few where it was not.
  `block` judges the drafts of a step together (`block.py`), so it is keyed where they were logged.
* *Lossy, keyed*: `lenient` keeps a draft iff p(d) > u / 2, `typical` iff p(d) > min(0.09, 0.3 exp(-H(p))),
  else as `standard`. Known of our own engine only, and where the drafts were logged: with them one token is
  legal, so a provider that declares such a rule can be held to it. Undeclared they are deviations
  (`deviations/acceptance/`).
* *Distribution-lossless*: tokens follow the model's distribution, but the seed does not decide which (block
  verification without its drafts, generators with a state, drafts that were drawn at random and not logged).
  Only the distribution can be tested.

Everything else is unknown and refused.

vLLM's `block` is an exception: its coins are those of `standard`, by position. A step looks at the coins of
all its drafts, and the next step again at those beyond its end, which by then are known to be high. So tokens
after a rejection do not follow the model's distribution, and without drafts nothing is said of them. Our own
`block` flips fresh coins in each step.

Sources: Leviathan, Kalman, Matias, arXiv 2211.17192, whose appendix has lenience; block verification,
arXiv 2403.10444; typical acceptance, arXiv 2401.10774 (Medusa's defaults); vLLM's
`v1/worker/gpu/spec_decode/rejection_sampler_utils.py` of the releases named (read; `block`'s kernels were run
in Triton's interpreter, `tests/vectors/block_verification.py`; none was recorded on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from auditor.errors import NoiseUnknownError
from auditor.kernels import philox
from auditor.kernels.splitmix import F64, GOLDEN, U64, mix
from auditor.reference.noise import NoiseScheme
from auditor.reference.noise.scheme import positions
from auditor.reference.speculation.admissible import SpeculatedRows
from auditor.reference.speculation.steps import Step

I64 = npt.NDArray[np.int64]

SYNCHRONISED = frozenset({"none", "coupled", "strict"})

LOSSLESS = frozenset({"standard", "block", "target-only", "k-seq"})
"""Rules whose tokens follow the model's distribution; those of them that `find_rule` knows are keyed."""
LOSSY = frozenset({"lenient", "typical"})
"""Rules that are keyed and follow another distribution."""

# First eight bytes of SHA-256 of "gumbel-pos-v1/coin" and of "gumbel-pos-v1/block-coin".
_DOMAIN_COIN = np.uint64(0xBF9604AD9121BDD5)
_DOMAIN_BLOCK_COIN = np.uint64(0xB835B7970166AF6F)
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
        doubt: by how much the engine's log-likelihoods may be rounded, nats.
        by_step: for a rule that judges a step's drafts together: (seed, position of the last token consumed
            before the step, number of drafts) -> float64 [drafts]; None where each draft is judged alone.
        lenience: what coins are multiplied by. typical: (epsilon, delta) of typical acceptance, which flips
            no coin.
    """

    name: str
    versions: tuple[str, ...]
    schemes: str
    coins: Callable[[int, U64], F64]
    doubt: float
    by_step: Callable[[int, int, int], F64] | None = None
    lenience: float = 1.0
    typical: tuple[float, float] | None = None

    @property
    def needs_drafts(self) -> bool:
        """Whether nothing is known of a token where the drafts were not logged."""
        return self.by_step is not None or self.name in LOSSY

    def row_coins(self, seed: int, prompt_tokens: int, start: int, stop: int) -> F64:
        """Coins of output tokens start..stop-1 of a prompt of that length, float64 [stop - start]."""
        return self.lenience * self.coins(seed, positions(prompt_tokens - 1, start, stop))

    def step_coins(self, seed: int, prompt_tokens: int, first: int, drafts: int) -> F64:
        """Coins of a step whose first token is output token `first`, float64 [drafts]."""
        assert self.by_step is not None, "the rule judges drafts one by one"
        return self.by_step(seed, prompt_tokens - 1 + first, drafts)


def _own_coins(seed: int, consumed: U64) -> F64:
    """Coins of `gumbel-pos-v1`: its hash of (seed, position of the sampled token) in a domain apart."""
    with np.errstate(over="ignore"):
        base = mix(np.array([seed & (2**64 - 1)], np.uint64) ^ _DOMAIN_COIN)
        return _uniforms(mix(base + (consumed + np.uint64(2)) * GOLDEN))


def _own_step_coins(seed: int, consumed: int, drafts: int) -> F64:
    """Coins of one step of `gumbel-pos-v1`: of (seed, position of its first token, 1..k), used once."""
    with np.errstate(over="ignore"):
        base = mix(np.array([seed & (2**64 - 1)], np.uint64) ^ _DOMAIN_BLOCK_COIN)
        step = mix(base + np.uint64(consumed + 2) * GOLDEN)
        return _uniforms(mix(step + np.arange(1, drafts + 1, dtype=np.uint64) * GOLDEN))


def _uniforms(words: U64) -> F64:
    numbers = (words >> np.uint64(11)).astype(np.float64)
    return np.asarray(np.minimum((numbers + 0.5) * 2.0**-53, 1.0 - 2.0**-53))


def _triton_rand32(seed: int, consumed: U64) -> F64:
    """Triton's `rand(seed, position)`, zero raised."""
    u = philox.triton_rand(np.array([seed % 2**64], np.uint64), consumed).astype(np.float64)
    return np.maximum(u, np.float64(philox.TRITON_SCALE))


def _triton_step_rand32(seed: int, consumed: int, drafts: int) -> F64:
    """The same numbers, at the positions that the step's rows consume."""
    return _triton_rand32(seed, positions(consumed, 0, drafts))


def _triton_rand64(seed: int, consumed: U64) -> F64:
    """Two words of Triton's `randint4x(seed, position)` as one number."""
    low, high, _, _ = philox.triton_words(np.array([seed % 2**64], np.uint64), consumed)
    u = ((high << np.uint64(32)) | low).astype(np.float64) * 2.0**-64
    return np.clip(u, _TINY_64, 1.0 - 2.0**-53)


_PHILOX32 = ("0.28.0", "0.31.0", "0.32.0")

RULES = (
    SpeculationRule("standard", (), "gumbel-pos-v1", _own_coins, 0.0),
    SpeculationRule("standard", _PHILOX32, "vllm-gpu-v2/", _triton_rand32, _FLOAT32_DOUBT),
    SpeculationRule("standard", ("0.24.0",), "vllm-gpu-v2/", _triton_rand64, _FLOAT32_DOUBT),
    SpeculationRule("lenient", (), "gumbel-pos-v1", _own_coins, 0.0, lenience=0.5),
    SpeculationRule("typical", (), "gumbel-pos-v1", _own_coins, 0.0, typical=(0.09, 0.3)),
    SpeculationRule("block", (), "gumbel-pos-v1", _own_coins, 0.0, _own_step_coins),
    SpeculationRule("block", _PHILOX32, "vllm-gpu-v2/", _triton_rand32, _FLOAT32_DOUBT, _triton_step_rand32),
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
        steps: of a rule that judges drafts together; empty for the others.
    """

    rule: SpeculationRule
    drafts: I64 | None
    steps: tuple[Step, ...] = ()

    def rows(self, seed: int, prompt_tokens: int, start: int, stop: int) -> SpeculatedRows:
        """Coins and drafts of output tokens start..stop-1."""
        coins = self.rule.row_coins(seed, prompt_tokens, start, stop)
        drafts = None if self.drafts is None else self.drafts[start:stop]
        return SpeculatedRows(coins, drafts, self.rule.doubt, self.rule.typical)
