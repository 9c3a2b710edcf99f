"""More ways to make weights cheaper: coarser grids, missing entries, other people's rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from auditor.reference.deviations.base import Deviation
from auditor.reference.deviations.weights import float8_rows, int4_groups, projections, symmetric
from auditor.reference.loading import ReferenceModel
from auditor.reference.quantizer import grouped

Change = Callable[[ReferenceModel, ReferenceModel | None], ReferenceModel]

# Quantiles of a normal distribution, as bitsandbytes ships them; and the values of a 4-bit float (e2m1).
_NF4 = torch.tensor([
    -1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0,
])  # fmt: skip
_FP4 = torch.tensor([-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]) / 6.0


def levels(weight: Tensor, *, table: Tensor, group: int = 64) -> Tensor:
    """Nearest of a table's values times the largest of each group (nf4, fp4)."""
    flat = grouped(weight, group)
    scale = flat.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8)
    middles = (table[1:] + table[:-1]) / 2
    return (table[torch.bucketize(flat / scale, middles)] * scale).reshape(weight.shape)


def two_of_four(weight: Tensor) -> Tensor:
    """2:4 sparsity: of four neighbours in a row, the two smallest are 0."""
    flat = weight.reshape(-1, 4)
    keep = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.abs().topk(2, dim=1).indices, value=True)
    return (flat * keep).reshape(weight.shape)


def magnitude_pruned(weight: Tensor, *, share: float) -> Tensor:
    """The smallest `share` of a matrix is 0."""
    kept = weight.abs() > weight.abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
    return weight * kept


def low_rank_update(weight: Tensor, *, rank: int, size: float) -> Tensor:
    """A fine-tune's shape: a random update of a rank, `size` of the matrix in norm (LoRA merged in)."""
    generator = torch.Generator().manual_seed(weight.shape[0] * 7 + weight.shape[1])
    rows, columns = weight.shape
    update = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    return weight.add(update, alpha=float(size * weight.norm() / update.norm()))


def rank_limited(weight: Tensor, *, share: float) -> Tensor:
    """The best approximation with `share` of the ranks."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = max(1, int(share * len(values)))
    return torch.matmul(left[:, :kept] * values[:kept], right[:kept])


def error_fed_back(weight: Tensor, *, bits: int = 4, group: int = 64) -> Tensor:
    """GPTQ's column order with an identity Hessian smoothed over neighbours: errors go to the next column."""
    scales = (grouped(weight, group).abs().amax(dim=-1) / (2 ** (bits - 1) - 0.5)).clamp_min(1e-8)
    width = weight.shape[1] // scales.shape[1]
    left, out = weight.clone(), torch.empty_like(weight)
    for column in range(weight.shape[1]):
        scale = scales[:, column // width]
        out[:, column] = (left[:, column] / scale).round().clamp(
            -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        ) * scale
        if column + 1 < weight.shape[1]:
            left[:, column + 1] += 0.1 * (left[:, column] - out[:, column])
    return out


def _embeddings_rebuilt(share: float) -> Change:
    """A share of the embedding rows becomes the mean of three like rows (a transplanted tokenizer)."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if not name.endswith("embed_tokens.weight"):
            return tensor
        wide = tensor.float()
        unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-8)
        chosen = torch.randperm(len(wide), generator=torch.Generator().manual_seed(1))
        chosen = chosen[: int(share * len(wide))]
        like = (unit[chosen] @ unit.T).scatter_(1, chosen[:, None], -1.0)
        near = like.topk(3, dim=1)
        weights = torch.softmax(near.values / 0.3, dim=1)
        rebuilt = wide.clone()
        rebuilt[chosen] = (wide[near.indices] * weights[..., None]).sum(dim=1)
        return rebuilt.to(tensor.dtype)

    return lambda model, _other: model.replace(weights=change)


def _one_matrix(suffix: str, change: Callable[[Tensor], Tensor]) -> Change:
    def apply(name: str, tensor: Tensor) -> Tensor:
        return change(tensor.float()).to(tensor.dtype) if name.endswith(suffix) else tensor

    return lambda model, _other: model.replace(weights=apply)


def _bit_flipped(weight: Tensor) -> Tensor:
    """One exponent bit of one entry of the first down projection: a memory error nobody checked for."""
    flipped = weight.clone()
    place = int(weight.abs().flatten().median(dim=0).indices)
    flipped.view(-1)[place] = weight.view(-1)[place] * 2.0**8
    return flipped


def _rounding(name: str, gain: str, source: str, change: Callable[[Tensor], Tensor]) -> Deviation:
    return Deviation(name=f"weights/{name}", gain=gain, source=source, model=projections(change))


_BASE = "round to nearest; Frantar et al., GPTQ, arXiv 2210.17323 (baseline)"
_QUARTER = "a quarter of the weight memory of bf16"

DEVIATIONS = (
    _rounding(
        "int8-tensor", "half the memory, one scale a matrix", _BASE, partial(symmetric, bits=8, group=None)
    ),
    _rounding("int4-g32", _QUARTER, _BASE, partial(int4_groups, group=32)),
    _rounding("int4-g128", _QUARTER, _BASE, partial(int4_groups, group=128)),
    _rounding("int4-fed-back", _QUARTER, "errors go to the next column, after GPTQ", error_fed_back),
    _rounding("int3-g64", "three sixteenths of the memory", _BASE, partial(symmetric, bits=3, group=64)),
    _rounding("int2-g64", "an eighth of the memory", _BASE, partial(symmetric, bits=2, group=64)),
    _rounding("nf4", _QUARTER, "Dettmers et al., QLoRA, arXiv 2305.14314", partial(levels, table=_NF4)),
    _rounding("fp4", _QUARTER, "e2m1, group 64; OCP microscaling formats", partial(levels, table=_FP4)),
    _rounding(
        "fp8-e5m2",
        "half the weight memory",
        "Micikevicius et al., arXiv 2209.05433",
        partial(float8_rows, dtype=torch.float8_e5m2),
    ),
    _rounding(
        "sparse-2:4", "the sparse tensor cores' doubled rate", "Mishra et al., arXiv 2104.08378", two_of_four
    ),
    *(
        _rounding(
            f"pruned-{share:.0%}",
            "smaller files, faster sparse kernels",
            "magnitude pruning; Han et al., arXiv 1506.02626",
            partial(magnitude_pruned, share=share),
        )
        for share in (0.1, 0.3, 0.5)
    ),
    *(
        _rounding(
            f"low-rank-{share:.0%}",
            "fewer multiplications",
            "truncated singular values",
            partial(rank_limited, share=share),
        )
        for share in (0.9, 0.5)
    ),
    *(
        _rounding(
            f"fine-tuned-{size:.0%}",
            "another version under the old name",
            "Hu et al., LoRA, arXiv 2106.09685: rank 4, merged",
            partial(low_rank_update, rank=4, size=size),
        )
        for size in (0.01, 0.05)
    ),
    *(
        Deviation(
            name=f"weights/embeddings-rebuilt-{share:.0%}",
            gain="a transplanted tokenizer: fewer tokens for the same text",
            source="TokenAdapt, arXiv 2505.09738 (rows from like rows, T 0.3, k 3)",
            model=_embeddings_rebuilt(share),
        )
        for share in (0.05, 0.25)
    ),
    Deviation(
        name="weights/one-layer-int4",
        gain="a layer's memory, hardly seen",
        source="mixed-precision recipes leave out sensitive layers",
        model=_one_matrix("layers.2.mlp.down_proj.weight", int4_groups),
    ),
    Deviation(
        name="weights/bit-flip",
        gain="none: a fault nobody checked for",
        source="silent data corruption; Dixit et al., arXiv 2102.11245",
        model=_one_matrix("layers.0.mlp.down_proj.weight", _bit_flipped),
    ),
)
