"""Score one tile of logits: what would the engine have sampled, and how far was the claimed token from it?

For every output position the head answers in logit units:

* `margin`: the smallest movement of logits that makes the claimed token the sampled one (0 when it is);
* `slack`: the smallest movement that makes *any other* token the sampled one. An honest provider whose
  numerics differ by less than the slack must return the winner, so the slack says what a mismatch means.

Both count filter edges (`support.py`), so no margin is infinite. For a race the movement is
T * (winner - claimed); for an inverse CDF it is T times the distance of log-odds from the draw to the
claimed token's interval, which is the tilt of logits that would carry the interval's border to the draw.

Where an engine takes logarithms in coarser arithmetic than ours (`Tolerant`), the claimed token is given the
benefit of both tokens' doubt: margins are what is left, and no movement below that doubt can show.

Source of the score: DiFR, arXiv 2511.20621 section 4.2 (eq. 1) and appendix B.2; temperature scales the
noise, not the logits, so that margins of different temperatures compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.claimed_place import count_above
from auditor.kernels.filtered_race import filtered_race
from auditor.kernels.keyed_noise import KeyedNoise, keyed_noise
from auditor.kernels.keyed_race import Backend, race
from auditor.kernels.mersenne import U32
from auditor.kernels.row_head import RowHeads, row_heads
from auditor.kernels.splitmix import F64, U64
from auditor.reference.inverse_cdf import draw_columns, draw_from_support
from auditor.reference.noise import KeyedScheme, NoiseScheme, Tolerant, UniformScheme
from auditor.reference.sampling import SamplingSpec
from auditor.reference.shaped_head import score_shaped
from auditor.reference.support import claimed_logits, cut_rows, find_support, log_normaliser, on_cpu

# vLLM's v1 sampler raises 0 < T < 0.01 to 0.01 and treats T < 1e-5 as greedy; other engines divide as asked.
_VLLM_LEAST_TEMPERATURE = 0.01
_VLLM_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class RowStats:
    """Per scored position; arrays [R].

    Attributes:
        claimed, winner: int64 token ids.
        margin, slack: float64, logit units, finite and >= 0 (slack is inf when nothing else was possible).
        rank: int64, tokens that beat the claimed one under the noise; -1 for inverse-CDF schemes.
        log_probability: float64, claimed token's log-likelihood at the request's temperature, unfiltered.
        outside: bool, whether the filters exclude the claimed token. edge: float64, by how much (0 inside).
        filtered: bool, whether a filter was on at all.
        top_ids: int64 [R, M] and top_logits: float32 [R, M], the row's largest logits as they were given,
            falling, then by id; M is what `score_rows` was asked for (at most V).
        forced, forbidden, unmodelled: bool, what the request's own rules make of the position
            (`ruled_head.py`): one token was left; the claimed one is excluded; no rule is known here.
    """

    claimed: npt.NDArray[np.int64]
    winner: npt.NDArray[np.int64]
    margin: F64
    slack: F64
    rank: npt.NDArray[np.int64]
    log_probability: F64
    outside: npt.NDArray[np.bool_]
    edge: F64
    filtered: npt.NDArray[np.bool_]
    top_ids: npt.NDArray[np.int64]
    top_logits: npt.NDArray[np.float32]
    forced: npt.NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]
    forbidden: npt.NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]
    unmodelled: npt.NDArray[np.bool_] = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name in ("forced", "forbidden", "unmodelled"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.claimed), np.bool_))

    @property
    def evidence(self) -> npt.NDArray[np.bool_]:
        """Where the token says anything about the provider: neither forced nor unmodelled."""
        return np.asarray(~(self.forced | self.unmodelled))

    @property
    def matched(self) -> npt.NDArray[np.bool_]:
        """Whether the reference would have returned the same token."""
        return np.asarray(self.claimed == self.winner)

    @staticmethod
    def concatenate(parts: list[RowStats]) -> RowStats:
        """Join tiles in order."""
        return RowStats(*(np.concatenate([getattr(p, name) for p in parts]) for name in RowStats.__slots__))

    def rows(self, start: int, stop: int) -> RowStats:
        """A run of positions."""
        return RowStats(*(getattr(self, name)[start:stop] for name in RowStats.__slots__))


NoiseRows = U64 | U32 | F64 | None
TopTokens = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]


def effective_sampling(spec: SamplingSpec, scheme: NoiseScheme) -> SamplingSpec:
    """What the engine makes of the parameters: greedy drops every filter, vLLM floors the temperature."""
    temperature = spec.temperature
    if scheme.filters == "vllm" and 0 < temperature < _VLLM_LEAST_TEMPERATURE:
        temperature = 0.0 if temperature < _VLLM_GREEDY_BELOW else _VLLM_LEAST_TEMPERATURE
    if temperature == 0.0:
        spec = replace(spec, typical_p=1.0, top_n_sigma=0.0, xtc_probability=0.0)
        return replace(spec, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    return replace(spec, temperature=temperature)


def score_rows(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    *,
    top: int = 0,
    backend: Backend = "compiled",
) -> RowStats:
    """Score a tile whose rows share one request's sampling parameters.

    Args:
        logits: float32 [R, V]; on any device for `triton`, else on the CPU.
        claimed: int64 [R], each within [0, V).
        spec: parameters as `effective_sampling` returns them.
        draws: the scheme's noise of these rows: keys uint64 [R] or [R, W] (keyed race), Gumbel rows float64
            [R, V] or, if filters are on, generator states uint32 [R, 625] (sequential race), uniform numbers
            float64 [R] (inverse CDF), with XTC its coins beside them [R, 2], None (greedy).
        top: how many of each row's largest logits to return.
        backend: of the kernels. With `triton` heads of sorted logits come from `torch.topk`; inverse CDFs
            and sequential races are scored on the CPU whatever it says.
    """
    stats = _score(logits, claimed, spec, scheme, draws, top, backend)
    if spec.greedy or not isinstance(scheme, Tolerant):
        return stats
    return _forgiven(stats, cast("KeyedScheme", scheme), scheme, cast("U64", draws), spec.temperature)


def draw_rows(
    logits: torch.Tensor, spec: SamplingSpec, scheme: NoiseScheme, draws: NoiseRows
) -> npt.NDArray[np.int64]:
    """The token each row samples, int64 [R]; arguments as `score_rows` has them."""
    return _score(logits, logits.argmax(dim=1).cpu().numpy(), spec, scheme, draws, 0, "compiled").winner


def _score(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: NoiseRows,
    top: int,
    backend: Backend,
) -> RowStats:
    if spec.greedy or scheme.family == "greedy":
        return _score_greedy(logits, claimed, top, backend)
    if spec.shaped:
        assert draws is not None, "sampling has noise"
        return _score_shaped(logits.cpu(), claimed, spec, scheme, draws, top)
    if scheme.family == "icdf":
        uniform = cast("UniformScheme", scheme)
        return _score_inverse_cdf(logits.cpu(), claimed, spec, uniform, cast("F64", draws), top)
    assert draws is not None, "a race has noise"
    if spec.filtered:
        return _score_filtered_race(logits, claimed, spec, scheme, draws, top, backend)
    if draws.dtype != np.uint64:
        return _score_dense_race(logits.cpu(), claimed, spec, cast("F64", draws), top)
    keyed = cast("KeyedScheme", scheme)
    if backend == "triton" and keyed.noise > KeyedNoise.SPLITMIX_TAIL_SAFE:
        logits, backend = logits.cpu(), "compiled"
    return _score_keyed_race(logits, claimed, spec, keyed, cast("U64", draws), top, backend)


def _forgiven(
    stats: RowStats, keyed: KeyedScheme, tolerant: Tolerant, keys: U64, temperature: float
) -> RowStats:
    """Take from margins what the engine's own rounding of winner's and claimed token's noise may explain."""
    both = np.stack([stats.winner, stats.claimed], axis=1)
    doubt = tolerant.tolerance(keyed_noise(keyed.noise, keys, both)).sum(axis=1) * temperature
    margin = np.maximum(stats.margin - doubt, stats.edge)
    matched = margin == 0.0
    return replace(
        stats,
        margin=margin,
        winner=np.where(matched, stats.claimed, stats.winner),
        rank=np.where(matched, 0, stats.rank),
        slack=np.maximum(stats.slack, doubt),
    )


def _score_keyed_race(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: KeyedScheme,
    keys: U64,
    top: int,
    backend: Backend,
) -> RowStats:
    """Race over the whole vocabulary."""
    out = race(
        logits if backend == "triton" else logits.numpy(),
        keys,
        claimed,
        noise=scheme.noise,
        temperature=spec.temperature,
        top=top,
        backend=backend,
    )
    own = claimed_logits(logits, claimed) / np.float32(spec.temperature)
    return _inside(
        claimed,
        out.winner,
        (out.winner_score - out.claimed_score) * spec.temperature,
        (out.winner_score - out.runner_up_score) * spec.temperature,
        out.rank,
        own - out.log_normaliser,
        (out.top_ids, out.top_logits),
    )


def _inside(
    claimed: npt.NDArray[np.int64],
    winner: npt.NDArray[np.int64],
    margin: F64,
    slack: F64,
    rank: npt.NDArray[np.int64],
    log_probability: F64,
    top: TopTokens,
) -> RowStats:
    """Rows without a filter."""
    none = np.zeros(len(claimed), np.bool_)
    edge = np.zeros(len(claimed))
    return RowStats(claimed, winner, margin, slack, rank, log_probability, none, edge, none.copy(), *top)


def _top_of(heads: RowHeads, top: int) -> TopTokens:
    """The first `top` tokens of heads that are at least that long, or as long as their rows."""
    width = min(top, int(np.diff(heads.start).min(initial=top)))
    place = heads.start[:-1, None] + np.arange(width)
    return heads.ids[place], heads.logits[place]


def _top_tokens(logits: torch.Tensor, top: int, backend: Backend = "compiled") -> TopTokens:
    """Where no pass over the row yields them anyway."""
    return _top_of(row_heads(logits if backend == "triton" else logits.numpy(), (top,), backend=backend), top)


def _score_greedy(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], top: int, backend: Backend
) -> RowStats:
    """The largest logit wins; its lead is the slack. No filter applies, whatever the request says."""
    if backend == "triton":
        own_logit = logits.gather(1, torch.from_numpy(claimed)[:, None].to(logits.device))
        heads = row_heads(logits, (max(2, top),), backend=backend)
        rank = (logits > own_logit).sum(dim=1).cpu().numpy()
    else:
        heads = row_heads(logits.numpy(), (max(2, top),), backend=backend)
        rank = count_above(logits.numpy(), claimed, backend=backend)
    # Equal logits stand by rising id, and engines take the lowest.
    first, second = heads.start[:-1], np.minimum(heads.start[:-1] + 1, heads.start[1:] - 1)
    own = claimed_logits(logits, claimed).astype(np.float64)
    lead = heads.logits[first].astype(np.float64)
    alone = logits.shape[1] == 1
    slack = np.full(len(claimed), np.inf) if alone else lead - heads.logits[second]
    tokens = _top_of(heads, top)
    return _inside(claimed, heads.ids[first], lead - own, slack, rank, own - heads.log_normaliser, tokens)


def _score_dense_race(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], spec: SamplingSpec, noise: F64, top_count: int
) -> RowStats:
    """Race with a full noise row for each position (sequential generators)."""
    scaled = (logits / spec.temperature).double()
    scores = scaled + torch.from_numpy(noise)
    here = torch.arange(len(claimed))
    ids = torch.from_numpy(claimed)
    own = scores[here, ids]
    top = torch.topk(scores, min(2, scores.shape[1]), dim=1)
    lead = top.values[:, 0]
    slack = (lead - top.values[:, 1]) * spec.temperature if scores.shape[1] > 1 else lead + torch.inf
    return _inside(
        claimed,
        top.indices[:, 0].numpy(),
        ((lead - own) * spec.temperature).numpy(),
        slack.numpy(),
        (scores > own[:, None]).sum(dim=1).numpy(),
        (scaled[here, ids] - torch.logsumexp(scaled, dim=1)).numpy(),
        _top_tokens(logits, top_count),
    )


def _claimed_log_probability(
    logits: torch.Tensor, claimed: npt.NDArray[np.int64], temperature: float, normaliser: F64 | None = None
) -> F64:
    """Unfiltered log-likelihood of the claimed tokens.

    `normaliser` is that of the rows at this temperature, worked out here if None.
    """
    if normaliser is None:
        normaliser = log_normaliser(logits, temperature)
    own = claimed_logits(logits, claimed) / np.float32(temperature)
    return np.asarray(own.astype(np.float64) - normaliser)


def _score_filtered_race(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: U64 | U32 | F64,
    top: int,
    backend: Backend,
) -> RowStats:
    """Race among the tokens the filters keep, with the edge's neighbours in view as alternatives."""
    cut = cut_rows(logits, claimed, spec, scheme.filters, least=top, backend=backend)
    keyed = draws.dtype == np.uint64
    noise = cast("KeyedScheme", scheme).noise if keyed else KeyedNoise.SPLITMIX_TAIL_SAFE
    out = filtered_race(cut.rows, spec.temperature, draws, noise=noise, backend=on_cpu(backend))
    # To explain the claim, what beats it is overtaken or cut off, and itself let in.
    outside = cut.claimed_edge < 0
    edge = np.where(outside, -cut.claimed_edge, 0.0)
    margin = np.where(claimed == out.winner, 0.0, np.maximum(out.margin, edge))
    log_probability = _claimed_log_probability(
        logits, claimed, spec.temperature, cut.rows.heads.log_normaliser
    )
    filtered = np.ones(len(claimed), np.bool_)
    tokens = _top_of(cut.rows.heads, top)
    if tokens[0].shape[1] < min(top, logits.shape[1]):
        tokens = _top_tokens(logits, top, backend)
    return RowStats(
        claimed, out.winner, margin, out.slack, out.rank, log_probability, outside, edge, filtered, *tokens
    )


def _score_shaped(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: NoiseScheme,
    draws: U64 | U32 | F64,
    top: int,
) -> RowStats:
    """Filters that keep no prefix."""
    rows = score_shaped(logits.numpy(), claimed, spec, scheme, draws)
    return RowStats(
        claimed,
        rows.winner,
        rows.margin,
        rows.slack,
        rows.rank,
        _claimed_log_probability(logits, claimed, spec.temperature),
        rows.edge < 0,
        np.maximum(-rows.edge, 0.0),
        np.ones(len(claimed), np.bool_),
        *_top_tokens(logits, top),
        unmodelled=rows.unmodelled,
    )


def _score_inverse_cdf(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    scheme: UniformScheme,
    uniforms: F64,
    top: int,
) -> RowStats:
    """Distance of the draw from the claimed token's interval, in log-odds."""
    here = np.arange(len(claimed))
    no_rank = np.full(len(claimed), -1, np.int64)
    log_probability = _claimed_log_probability(logits, claimed, spec.temperature)
    if not spec.filtered:
        column, margin, slack = draw_columns(
            logits.numpy(), claimed, uniforms, spec.temperature, float32_sums=scheme.float32_sums
        )
        return _inside(claimed, column, margin, slack, no_rank, log_probability, _top_tokens(logits, top))
    support = find_support(logits, claimed, spec, scheme.filters)
    # min-p by itself leaves candidates in vocabulary order, and so does a top-k that keeps all in OpenVINO.
    sorts = spec.top_p < 1.0 or (spec.top_k > 0 and scheme.filters == "llama.cpp")
    column, margin, slack = draw_from_support(
        support, uniforms, spec.temperature, by_id=not sorts, float32_sums=scheme.float32_sums
    )
    outside = support.claimed_edge < 0
    edge = np.where(outside, -support.claimed_edge, 0.0)
    winner = support.ids[here, column]
    margin = np.where(winner == claimed, 0.0, np.maximum(margin, edge))
    filtered, tokens = np.ones(len(claimed), np.bool_), _top_tokens(logits, top)
    return RowStats(
        claimed, winner, margin, slack, no_rank, log_probability, outside, edge, filtered, *tokens
    )
