# ruff: noqa: ANN001, N803 - kernels take pointers and compile-time constants, named as Triton does
"""The race of `keyed_race` on a GPU: kernels and launchers only; `keyed_race` is what callers use.

`race_logits` streams over rows of logits that a matrix product left behind (many rows: prefill).
`race_product` multiplies few rows of hidden states by the head and races each tile of logits where it lies,
so that they are never written (decode). Both cut the vocabulary among programs; `Partials` are joined by
`keyed_race`.

As on the CPU, float64 logarithms are taken only in blocks in which a token passes the bound on its noise;
`-ln(1 - u)` is summed as a series for small u, because not every backend of Triton has `log1p`. Weights and
their sums within a block are float32.

Needs Triton. With TRITON_INTERPRET=1, set before Triton is first imported, it runs on the CPU, slowly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from auditor.kernels.splitmix_triton import token_words

_BLOCK, _TILE_TOKENS, _TILE_WIDTH = 1024, 128, 64
# Programs to start where no GPU says how many it runs at once.
_PROGRAMS = 3


class Partials(NamedTuple):
    """What P programs found in their parts of R rows, [R, P] each; the claimed token takes part in each.

    Attributes:
        best, second: float64, the two highest scores. best_id: int64. above: int64, how many beat the claim.
        top: float32, largest logit / temperature. total: float64, summed exponentials beside it.
        claimed: float64 [R], the claimed token's score.
    """

    best: torch.Tensor
    second: torch.Tensor
    best_id: torch.Tensor
    above: torch.Tensor
    top: torch.Tensor
    total: torch.Tensor
    claimed: torch.Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _gumbel(words, TAIL_SAFE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """`splitmix.gumbel` of the words' 53 bits, float64."""
    u = ((words >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2**-53
    if TAIL_SAFE:
        # -ln(1 - u) = u (1 + u/2 + u**2/3 + ...), which for u below 1/128 is exact with nine terms.
        series = u / 9.0 + 1.0 / 8.0
        series = series * u + 1.0 / 7.0
        series = series * u + 1.0 / 6.0
        series = series * u + 1.0 / 5.0
        series = series * u + 1.0 / 4.0
        series = series * u + 1.0 / 3.0
        series = series * u + 1.0 / 2.0
        series = series * u + 1.0
        # The last grid point, at which u rounds to 1, is held at the double below.
        inner = tl.where(u < 0.0078125, series * u, -tl.log(tl.maximum(1.0 - u, 1.1102230246251565e-16)))
        return -tl.log(inner)
    inner = -tl.log(u)
    return tl.where(inner <= 0.0, float("inf"), -tl.log(tl.where(inner <= 0.0, 1.0, inner)))


@triton.jit  # type: ignore[untyped-decorator]
def _advance(x, tokens, row, state, TAIL_SAFE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """The state of rows after a block of tokens.

    `x` float32 [rows, tokens] is logits / temperature, -inf where there is none; `row` is keys uint64,
    claimed ids int64 and their scores float64; `state` is as `Partials` has it.
    """
    keys, claimed, score = row
    best, second, best_id, above, top, total = state
    new_top = tl.maximum(top, tl.max(x, axis=1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp(x - shift[:, None])
    total = total * tl.exp((top - shift).to(tl.float64)) + tl.sum(weights, axis=1).to(tl.float64)
    words = token_words(keys[:, None], tokens[None, :])
    leading = ((words if TAIL_SAFE else words ^ 0xFFFFFFFFFFFFFFFF) >> 33).to(tl.int32).to(tl.float32)
    # The bound of `keyed_race.bound`, wider since a GPU's exponential is coarser. Beyond a gap of 45 a weight
    # that matters could underflow: then all pass.
    gap = (shift.to(tl.float64) - tl.minimum(second, score)).to(tl.float32)
    factor = tl.exp(tl.minimum(gap, 45.0)) * 1.001 * 2147483648.0
    passes = (leading < factor[:, None] * weights) | (gap > 45.0)[:, None]
    passes = passes & (x > float("-inf")) & (tokens[None, :] != claimed[:, None])
    if tl.max(tl.max(passes.to(tl.int32), axis=1), axis=0) > 0:
        scores = tl.where(passes, x.to(tl.float64) + _gumbel(words, TAIL_SAFE), float("-inf"))
        above += tl.sum((scores > score[:, None]).to(tl.int64), axis=1)
        first = tl.max(scores, axis=1)
        ids = tokens[None, :] + tl.zeros(x.shape, tl.int64)
        first_id = tl.min(tl.where(scores == first[:, None], ids, 0x7FFFFFFFFFFFFFFF), axis=1)
        next_first = tl.max(tl.where(ids == first_id[:, None], float("-inf"), scores), axis=1)
        leads = (first > best) | ((first == best) & (first_id < best_id))
        second = tl.maximum(tl.where(leads, best, second), tl.where(leads, next_first, first))
        best_id = tl.where(leads, first_id, best_id)
        best = tl.maximum(best, first)
    return best, second, best_id, above, new_top, total


@triton.jit
def _start(score, y):  # type: ignore[no-untyped-def]  # noqa: ANN202
    """The state before any block: the claimed token leads."""
    none = y * 0
    nothing = none.to(tl.float64) + float("-inf")
    return score, nothing, y, none, nothing.to(tl.float32), none.to(tl.float64)


@triton.jit
def _store(partials, place, state, mask):  # type: ignore[no-untyped-def]  # noqa: ANN202
    for i in tl.static_range(6):
        tl.store(partials[i] + place, state[i], mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _race_logits(  # type: ignore[no-untyped-def]  # noqa: ANN202
    logits,
    keys,
    claimed,
    partials,
    scores,
    vocabulary,
    stride,
    temperature,
    TAIL_SAFE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (r, p) of (R, P): row r, every P-th block of its tokens."""
    r, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    one = tl.arange(0, 1)
    key = tl.load(keys + r + one).to(tl.uint64, bitcast=True)
    y = tl.load(claimed + r + one)
    own = tl.math.div_rn(tl.load(logits + r * stride + y).to(tl.float32), temperature)
    score = own.to(tl.float64) + _gumbel(token_words(key, y), TAIL_SAFE)
    state = _start(score, y)
    for start in range(part * BLOCK, vocabulary, parts * BLOCK):
        tokens = (start + tl.arange(0, BLOCK)).to(tl.int64)
        z = tl.load(logits + r * stride + tokens, mask=tokens < vocabulary, other=float("-inf"))
        x = tl.math.div_rn(z.to(tl.float32), temperature)
        state = _advance(x[None, :], tokens, (key, y, score), state, TAIL_SAFE)
    if part == 0:
        tl.store(scores + r + one, score)
    _store(partials, r * parts + part + one, state, one == 0)


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]  # noqa: ANN202
    hidden, head, r, tokens, rows, vocabulary, WIDTH: tl.constexpr, STEP: tl.constexpr, UPCAST: tl.constexpr
):
    """Logits float32 [r, tokens] of a tile, each summed over the width in order."""
    z = tl.zeros((r.shape[0], tokens.shape[0]), tl.float32)
    for start in range(0, WIDTH, STEP):
        w = start + tl.arange(0, STEP)
        inside = w < WIDTH
        left, right = (r < rows)[:, None] & inside[None, :], (tokens < vocabulary)[None, :] & inside[:, None]
        a = tl.load(hidden + r[:, None] * WIDTH + w[None, :], mask=left, other=0.0)
        b = tl.load(head + tokens[None, :] * WIDTH + w[:, None], mask=right, other=0.0)
        if UPCAST:  # Triton's interpreter cannot multiply bfloat16
            a, b = a.to(tl.float32), b.to(tl.float32)
        z = tl.dot(a, b, z, input_precision="ieee")
    return z


@triton.jit  # type: ignore[untyped-decorator]
def _race_product(  # type: ignore[no-untyped-def]  # noqa: ANN202
    hidden,
    head,
    keys,
    claimed,
    scores,
    partials,
    rows,
    vocabulary,
    temperature,
    WIDTH: tl.constexpr,
    TAIL_SAFE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    STEP: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Program p of P: all rows, every P-th tile of the head's tokens."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    r = tl.arange(0, ROWS)
    here = r < rows
    key = tl.load(keys + r, mask=here, other=0).to(tl.uint64, bitcast=True)
    y = tl.load(claimed + r, mask=here, other=0)
    score = tl.load(scores + r, mask=here, other=0.0)
    state = _start(score, y)
    for start in range(part * TOKENS, vocabulary, parts * TOKENS):
        tokens = (start + tl.arange(0, TOKENS)).to(tl.int64)
        z = _tile(hidden, head, r, tokens, rows, vocabulary, WIDTH, STEP, UPCAST)
        exists = here[:, None] & (tokens < vocabulary)[None, :]
        x = tl.where(exists, tl.math.div_rn(z, temperature), float("-inf"))
        state = _advance(x, tokens, (key, y, score), state, TAIL_SAFE)
    _store(partials, r * parts + part, state, here)


def _new_partials(rows: int, parts: int, device: torch.device) -> Partials:
    def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return Partials(
        empty(torch.float64, rows, parts),
        empty(torch.float64, rows, parts),
        empty(torch.int64, rows, parts),
        empty(torch.int64, rows, parts),
        empty(torch.float32, rows, parts),
        empty(torch.float64, rows, parts),
        empty(torch.float64, rows),
    )


def _programs(device: torch.device) -> int:
    """How many programs keep the device busy."""
    if device.type != "cuda":
        return _PROGRAMS
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


def race_logits(
    logits: torch.Tensor, keys: torch.Tensor, claimed: torch.Tensor, *, tail_safe: bool, temperature: float
) -> Partials:
    """Race rows of logits.

    Args:
        logits: [R, V] of any float dtype, rows contiguous. keys: int64 [R], the bits of uint64 keys.
        claimed: int64 [R]. All on one device.
    """
    rows, vocabulary = logits.shape
    parts = max(1, min(triton.cdiv(_programs(logits.device), max(rows, 1)), triton.cdiv(vocabulary, _BLOCK)))
    partials = _new_partials(rows, parts, logits.device)
    if rows:
        _race_logits[rows, parts](
            logits,
            keys,
            claimed,
            tuple(partials[:6]),
            partials.claimed,
            vocabulary,
            logits.stride(0),
            temperature,
            TAIL_SAFE=tail_safe,
            BLOCK=_BLOCK,
        )
    return partials


def race_product(
    hidden: torch.Tensor,
    head: torch.Tensor,
    keys: torch.Tensor,
    claimed: torch.Tensor,
    scores: torch.Tensor,
    *,
    tail_safe: bool,
    temperature: float,
) -> Partials:
    """Race rows of `hidden @ head.T` without writing them.

    Args:
        hidden: [R, H], R at most 32. head: [V, H], of the same dtype; both contiguous.
        keys: int64 [R], the bits of uint64 keys. claimed: int64 [R]. scores: float64 [R], the claims'.
    """
    (rows, width), vocabulary = hidden.shape, len(head)
    parts = max(1, min(_programs(hidden.device), triton.cdiv(vocabulary, _TILE_TOKENS)))
    partials = _new_partials(rows, parts, hidden.device)._replace(claimed=scores)
    if rows:
        _race_product[(parts,)](
            hidden,
            head,
            keys,
            claimed,
            scores,
            tuple(partials[:6]),
            rows,
            vocabulary,
            temperature,
            WIDTH=width,
            TAIL_SAFE=tail_safe,
            ROWS=16 if rows <= 16 else 32,
            TOKENS=_TILE_TOKENS,
            STEP=_TILE_WIDTH,
            UPCAST=hidden.device.type == "cpu",
        )
    return partials
