"""Which tokens a request's filters allow, and how far each is from the filter's edge.

Engines cut the support with top-k, top-p and min-p in different orders. In every order the tokens kept
are a prefix of the row sorted by falling logit, so one sort describes the support. A hard cut would turn
a rounding error at the edge into an infinite margin; instead each token carries a signed *edge cost* in
logit units: how much logits would have to move to put it out (positive, inside) or in (negative,
outside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from auditor.kernels.claimed_place import odds_above
from auditor.kernels.filter_edges import Filters, claimed_edges, cut_heads, filter_edges
from auditor.kernels.filtered_race import FilteredRows
from auditor.kernels.row_head import Backend, RowHeads, row_heads
from auditor.kernels.splitmix import F64
from auditor.reference.noise import FilterOrder
from auditor.reference.sampling import SamplingSpec

# Tokens just outside the edge that stay in view as alternatives an honest provider may have drawn.
_BEYOND_EDGE = 8
_HEADS = (96, 1024)
# Where longer heads are needed, logits stand so close that honest noise reaches past many: all within this
# distance (of logits / temperature) stay in view.
_FLAT_VIEW = 0.25


@dataclass(frozen=True, slots=True)
class Support:
    """The head of each row in order of falling logit, cut after the last token that can matter.

    Rows with fewer tokens in view than C are filled up with excluded ones.

    Attributes:
        ids: int64 [R, C] token ids. logits: float64 [R, C], raw (before temperature).
        kept: int64 [R], how many leading tokens the filters keep (at least 1).
        edge: float64 [R, C], signed edge cost in logit units; >= 0 inside, < 0 outside.
        claimed_column: int64 [R], where the claimed token stands, or -1 when it is not in view.
        claimed_edge: float64 [R], signed edge cost of the claimed token wherever it stands.
        log_normaliser: float64 [R], of the whole row in the units that the filters see.
    """

    ids: npt.NDArray[np.int64]
    logits: F64
    kept: npt.NDArray[np.int64]
    edge: F64
    claimed_column: npt.NDArray[np.int64]
    claimed_edge: F64
    log_normaliser: F64


@dataclass(frozen=True, slots=True)
class CutRows:
    """What `Support` says, row after row and without the edge costs of tokens nobody asked for.

    Attributes:
        rows: sorted heads, cuts, tokens in view. claimed_column, claimed_edge: as `Support` has them.
    """

    rows: FilteredRows
    claimed_column: npt.NDArray[np.int64]
    claimed_edge: F64


def find_support(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    order: FilterOrder,
    *,
    backend: Backend = "compiled",
) -> Support:
    """Apply the filters of `spec` in an engine's order.

    Args:
        logits: float32 [R, V], raw.
        claimed: int64 [R].
        order: `vllm` divides by T, then min-p, top-k, top-p; `transformers` divides by T, then top-k,
            top-p, min-p; `llama.cpp` runs top-k, top-p, min-p on unscaled logits.
    """
    cut = cut_rows(logits, claimed, spec, order, backend=backend)
    rows, heads = cut.rows, cut.rows.heads
    _, edge = filter_edges(heads, rows.filters, backend=on_cpu(backend))
    column = np.arange(rows.columns.max(initial=0))
    in_view = column < rows.columns[:, None]
    place = (heads.start[:-1, None] + column)[in_view]

    def filled(values: npt.NDArray[Any], filler: float) -> npt.NDArray[Any]:
        wide = np.full(in_view.shape, filler, values.dtype)
        wide[in_view] = values[place]
        return wide

    return Support(
        filled(heads.ids, 0),
        filled(heads.logits.astype(np.float64), float(np.finfo(np.float32).min)),
        rows.cuts.kept,
        filled(edge * rows.filters.scale, -float(np.finfo(np.float64).max)),
        cut.claimed_column,
        cut.claimed_edge,
        heads.log_normaliser,
    )


def cut_rows(
    logits: torch.Tensor,
    claimed: npt.NDArray[np.int64],
    spec: SamplingSpec,
    order: FilterOrder,
    *,
    least: int = 0,
    backend: Backend = "compiled",
) -> CutRows:
    """As `find_support`; under top-k no head is shorter than `least` (or its row), which changes no view."""
    scale = float(spec.temperature) if order != "llama.cpp" else 1.0
    vocabulary, by_vllm = logits.shape[1], order == "vllm"
    filters = Filters(vocabulary, int(spec.top_k), float(spec.top_p), float(spec.min_p), by_vllm, scale)
    heads = _long_enough(logits, filters, least, backend)
    cuts = cut_heads(heads, filters)
    column, edge = claimed_edges(heads, cuts, filters, claimed)
    # Deep in the tail 1 - (mass before) is rounding, so whoever claims an outsider gets its tail added up.
    hidden = np.flatnonzero((column < 0) | ((edge < 0) & _only_top_p(filters)))
    if len(hidden):
        last_kept = heads.logits[heads.start[hidden] + cuts.kept[hidden] - 1]
        z = logits[torch.from_numpy(hidden).to(logits.device)].float().cpu().numpy()
        edge[hidden] = _edge_outside(z, claimed[hidden], last_kept, filters, on_cpu(backend))
    longest = max(_HEADS[-1], filters.top_k + _BEYOND_EDGE, least)
    columns = _in_view(np.diff(heads.start), cuts.kept, longest)
    column = np.where(column < columns, column, -1)
    rows = FilteredRows(heads, filters, cuts, columns, claimed, claimed_logits(logits, claimed))
    return CutRows(rows, column, edge * scale)


def backend_of(logits: torch.Tensor) -> Backend:
    """The kernels' backend for logits where they lie: Triton's on an NVIDIA or AMD GPU."""
    return "triton" if logits.device.type == "cuda" else "compiled"


def on_cpu(backend: Backend) -> Literal["reference", "compiled"]:
    """The backend for what is done on the CPU in any case."""
    return "reference" if backend == "reference" else "compiled"


def claimed_logits(logits: torch.Tensor, claimed: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The claimed tokens' own logits, float32 [R]."""
    own = logits.gather(1, torch.from_numpy(claimed)[:, None].to(logits.device))[:, 0]
    return np.asarray(own.float().cpu().numpy())


def _long_enough(logits: torch.Tensor, filters: Filters, least: int, backend: Backend) -> RowHeads:
    """Heads that hold every token kept, and those just outside."""
    z = logits if backend == "triton" else logits.numpy()
    if 0 < filters.top_k < filters.vocabulary:
        length = max(filters.top_k + _BEYOND_EDGE, least)
        return row_heads(z, (length,), temperature=filters.scale, backend=backend)
    reach = max(0.0, -float(np.log(filters.min_p))) if filters.min_p > 0.0 else -1.0
    # vLLM's nucleus is a share of what min-p leaves, so all of that must be in view.
    by_mass = filters.top_p < 1.0 and not (filters.min_p_first and filters.min_p > 0.0)
    return row_heads(
        z,
        _HEADS,
        temperature=filters.scale,
        mass=max(filters.top_p, 1e-9) if by_mass else 0.0,
        reach=reach,
        beyond=_BEYOND_EDGE,
        margin=_FLAT_VIEW,
        backend=backend,
    )


def _only_top_p(filters: Filters) -> bool:
    return filters.top_p < 1.0 and filters.top_k <= 0 and filters.min_p <= 0.0


def _in_view(
    lengths: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], longest: int
) -> npt.NDArray[np.int64]:
    """How many tokens of each head are in view: rows with heads of one fixed length see equally far."""
    columns = lengths.copy()
    for length in np.unique(lengths[lengths <= longest]):
        alike = lengths == length
        columns[alike] = min(length, kept[alike].max() + _BEYOND_EDGE)
    return columns


def _edge_outside(
    z: npt.NDArray[np.float32],
    claimed: npt.NDArray[np.int64],
    last_kept: npt.NDArray[np.float32],
    filters: Filters,
    backend: Literal["reference", "compiled"],
) -> F64:
    """Signed edge cost, in logits / scale, of claimed tokens that the filters exclude."""
    scale = np.float32(filters.scale)
    own = z[np.arange(len(claimed)), claimed]
    distance = (last_kept / scale).astype(np.float64) - (own / scale).astype(np.float64)
    if _only_top_p(filters):
        odds = odds_above(z, claimed, temperature=filters.scale, backend=backend)
        distance = np.minimum(distance, odds - np.log(filters.top_p) + np.log1p(-filters.top_p))
    return np.asarray(-np.maximum(distance, np.finfo(np.float64).tiny))


def log_normaliser(logits: torch.Tensor, temperature: float) -> F64:
    """Log of the summed exponentials of `logits / temperature`, float64 [R]; only the sum is in float64."""
    return row_heads(logits.numpy(), (0,), temperature=temperature).log_normaliser
