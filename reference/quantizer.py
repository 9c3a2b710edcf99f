"""Rounding to integers: the one quantizer of deviations and declared caches."""

from __future__ import annotations

from torch import Tensor


def integers(x: Tensor, *, bits: int, group: int | None, steps: float | None = None) -> Tensor:
    """Symmetric round to nearest of [rows, columns], a scale for `group` columns of a row, or for all of `x`.

    A group that does not divide the columns is the whole row. The largest entry of a group lies `steps` steps
    from 0; None for the largest positive integer, 2^(bits - 1) - 1.
    """
    most = 2 ** (bits - 1) - 1
    flat = x.reshape(1, -1) if group is None else grouped(x, group)
    scale = (flat.abs().amax(dim=-1, keepdim=True) / (steps or most)).clamp_min(1e-8)
    grid: Tensor = (flat / scale).round().clamp(-most - 1, most) * scale
    return grid.reshape(x.shape)


def between(x: Tensor, *, bits: int, group: int) -> Tensor:
    """Asymmetric round to nearest of [rows, columns]: 2^bits values from a group's least to its largest."""
    flat = grouped(x, group)
    low, high = flat.amin(dim=-1, keepdim=True), flat.amax(dim=-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    grid: Tensor = ((flat - low) / scale).round() * scale + low
    return grid.reshape(x.shape)


def grouped(x: Tensor, group: int) -> Tensor:
    """[rows, columns] as [rows, groups, group]; one group a row where they do not divide."""
    rows, columns = x.shape
    return x.reshape(rows, -1, group if columns % group == 0 else columns)
