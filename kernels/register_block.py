"""A block of a matrix product whose sums stay in vector registers, for loops compiled by numba.

LLVM does not see that sums over an array may stay in registers, so the compiled block is written in its own
language. A sum takes its products in order, each by one fused multiply-add: it has the same bits whatever
rows and columns are computed beside it, and on every processor.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

F32 = npt.NDArray[np.float32]

ROWS, COLUMNS = 6, 16
"""Of a block: its sums fill 12 of the 16 vector registers that x86 has before AVX-512."""

_INDEX, _VECTOR = ir.IntType(64), ir.VectorType(ir.FloatType(), COLUMNS)
_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), [0] * COLUMNS)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
_FMA = ir.FunctionType(_VECTOR, [_VECTOR] * 3)


def set_product(a: F32, b: F32, out: F32) -> None:
    """Set `out` to `a @ b`; nothing is checked.

    Args:
        a: float32 [ROWS, count], count at least 1. b: float32 [count, COLUMNS]. out: float32 [ROWS, COLUMNS].
            Views will do whose last dimension is contiguous.
    """
    out[:] = a @ b


def add_product(a: F32, b: F32, out: F32) -> None:
    """Add `a @ b` to `out`, as `set_product` takes them."""
    out += a @ b


# What stands above is what they mean; this is what a compiled loop calls.
@overload(set_product, inline="always")
def _compiled_set(a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    def block(a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        _set(a, b, out)

    return block


@overload(add_product, inline="always")
def _compiled_add(a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    def block(a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        _add(a, b, out)

    return block


@intrinsic
def _set(_typing, a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return types.void(a, b, out), partial(_product, fresh=True)


@intrinsic
def _add(_typing, a, b, out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return types.void(a, b, out), partial(_product, fresh=False)


def _product(context: Any, build: ir.IRBuilder, signature: Any, arguments: Any, *, fresh: bool) -> ir.Value:
    (a, count), (b, _), (out, _) = (
        _rows(context, build, kind, array) for kind, array in zip(signature.args, arguments, strict=True)
    )
    fma = cgutils.get_or_insert_function(build.module, _FMA, f"llvm.fma.v{COLUMNS}f32")
    lefts, places = ([rows(_INDEX(r)) for r in range(ROWS)] for rows in (a, out))
    before, loop, after = build.block, build.append_basic_block("k"), build.append_basic_block("stored")
    sums = [ir.Constant(_VECTOR, None) if fresh else _loaded(build, place) for place in places]
    build.branch(loop)

    build.position_at_end(loop)
    k = build.phi(_INDEX)
    k.add_incoming(_INDEX(0), before)
    running = [build.phi(_VECTOR) for _ in range(ROWS)]
    right = _loaded(build, b(k))
    for left, so_far, own in zip(lefts, sums, running, strict=True):
        own.add_incoming(so_far, before)
        alone = build.insert_element(_UNDEFINED, build.load(build.gep(left, [k])), ir.IntType(32)(0))
        added = build.call(fma, (build.shuffle_vector(alone, _UNDEFINED, _FIRST), right, own))
        own.add_incoming(added, loop)
    following = build.add(k, _INDEX(1))
    k.add_incoming(following, loop)
    build.cbranch(build.icmp_signed("<", following, count), loop, after)

    build.position_at_end(after)
    for place, own in zip(places, running, strict=True):
        build.store(own.incomings[1][0], build.bitcast(place, _VECTOR.as_pointer()), align=4)
    return context.get_dummy_value()


def _rows(context: Any, build: ir.IRBuilder, kind: Any, array: ir.Value) -> tuple[Any, ir.Value]:
    """Where a row begins, as a function of its number, and how long it is."""
    fields = context.make_array(kind)(context, build, array)
    start, stride = fields.data, build.extract_value(fields.strides, 0)
    length = build.extract_value(fields.shape, 1)

    def row(number: ir.Value) -> ir.Value:
        return cgutils.pointer_add(build, start, build.mul(number, stride))

    return row, length


def _loaded(build: ir.IRBuilder, place: ir.Value) -> ir.Value:
    return build.load(build.bitcast(place, _VECTOR.as_pointer()), align=4)
