"""Rows of numbers in compiled loops: one number, or vectors that the processor works on together.

An array (rows,) has rows of one number, (rows, columns) rows of columns / 4 vectors of four, (rows, columns / 8, 8)
rows of vectors of eight. The same loop serves them all: numba compiles it once for each that it meets. Left to
itself it makes no vectors of a loop over so few columns, so what it lacks is written here, in the compiler's own
terms: a vector is LLVM's <4 x float> or <8 x float>. No bounds are checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(32)
_BYTES = ir.IntType(8).as_pointer()
_PREFETCH = ir.FunctionType(ir.VoidType(), [_BYTES, _INDEX, _INDEX, _INDEX])


class _Vector(types.Type):
    def __init__(self, lanes: int) -> None:
        super().__init__(name=f"float32x{lanes}")
        self.lanes = lanes


@register_default(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.lanes))


_ROW = {1: types.float32, 2: _Vector(4), 3: _Vector(8)}  # what an array of so many dimensions is read in

# numba calls these functions with types, and what they return with the compiler's builder: nothing to annotate.


def _columns(context, builder, kind, array):  # type: ignore[no-untyped-def]
    """Numbers in a row of the array."""
    shape = cgutils.unpack_tuple(builder, make_array(kind)(context, builder, array).shape)
    product = context.get_constant(types.intp, 1)
    for size in shape[1:]:
        product = builder.mul(product, size)
    return product


@intrinsic
def width(typing, array):  # type: ignore[no-untyped-def]
    """Vectors in a row of the array, or its one number."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        columns = _columns(context, builder, array, args[0])
        return (
            columns
            if array.ndim == 1
            else builder.udiv(columns, context.get_constant(types.intp, _ROW[array.ndim].lanes))
        )

    return types.intp(array), code


@intrinsic
def nothing(typing, array):  # type: ignore[no-untyped-def]
    """Zero, as the array is read."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.get_constant_null(signature.return_type)

    return _ROW[array.ndim](array), code


def _address(context, builder, kinds, array, row, k):  # type: ignore[no-untyped-def]
    """Where vector k of array[row] lies, in a C-contiguous array of float32."""
    start = make_array(kinds[0])(context, builder, array).data
    row, k = (context.cast(builder, number, kind, types.intp) for number, kind in ((row, kinds[1]), (k, kinds[2])))
    if kinds[0].ndim == 1:
        return builder.gep(start, [row])
    vector = _ROW[kinds[0].ndim]
    first = builder.mul(row, _columns(context, builder, kinds[0], array))
    place = builder.add(first, builder.mul(k, context.get_constant(types.intp, vector.lanes)))
    return builder.bitcast(builder.gep(start, [place]), context.get_value_type(vector).as_pointer())


@intrinsic
def load(typing, array, row, k):  # type: ignore[no-untyped-def]
    """Vector k of array[row]."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(_address(context, builder, signature.args, *args), align=4)

    return _ROW[array.ndim](array, row, k), code


@intrinsic
def store(typing, array, row, k, x):  # type: ignore[no-untyped-def]
    """Write x there."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[3], _address(context, builder, signature.args, *args[:3]), align=4)
        return context.get_dummy_value()

    return types.void(array, row, k, x), code


def _spread(builder, number, like):  # type: ignore[no-untyped-def]
    """A number as a row is read: once for every lane."""
    if like == types.float32:
        return number
    empty = ir.Constant(ir.VectorType(_FLOAT, like.lanes), ir.Undefined)
    one = builder.insert_element(empty, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INDEX, like.lanes), [0] * like.lanes))


@intrinsic
def plus(typing, a, w, b):  # type: ignore[no-untyped-def]
    """A + w b, with a number w: one operation where the processor has it."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        product = builder.fmul(_spread(builder, args[1], b), args[2], flags=("contract",))
        return builder.fadd(args[0], product, flags=("contract",))

    return a(a, types.float32, b), code


@intrinsic
def less(typing, a, w):  # type: ignore[no-untyped-def]
    """A - w, with a number w."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fsub(args[0], _spread(builder, args[1], a))

    return a(a, types.float32), code


@intrinsic
def times(typing, a, b):  # type: ignore[no-untyped-def]
    """The products of a and b, number by number."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fmul(*args)

    return a(a, b), code


@intrinsic
def total(typing, a):  # type: ignore[no-untyped-def]
    """The sum of the numbers in a."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if a == types.float32:
            return args[0]
        parts = [builder.extract_element(args[0], ir.Constant(_INDEX, k)) for k in range(a.lanes)]
        while len(parts) > 1:
            parts = [builder.fadd(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return types.float32(a), code


@intrinsic
def fetch(typing, array, row):  # type: ignore[no-untyped-def]
    """Ask memory for array[row], which is read or written soon, and do not wait for it.

    Nothing for rows of one number: a line of the cache has 16 of them, and to ask takes longer than they save.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if array.ndim > 1:
            zero, four, line = (context.get_constant(types.intp, number) for number in (0, 4, 64))
            size = builder.mul(four, _columns(context, builder, array, args[0]))
            row = context.cast(builder, args[1], signature.args[1], types.intp)
            data = builder.bitcast(make_array(array)(context, builder, args[0]).data, _BYTES)
            start = builder.gep(data, [builder.mul(row, size)])
            prefetch = cgutils.get_or_insert_function(builder.module, _PREFETCH, "llvm.prefetch.p0i8")
            kind = [ir.Constant(_INDEX, number) for number in (0, 3, 1)]  # to read, into all caches, data
            with cgutils.for_range_slice(builder, zero, size, line) as (offset, _):
                builder.call(prefetch, [builder.gep(start, [offset]), *kind])
        return context.get_dummy_value()

    return types.void(array, row), code
