"""Rows of numbers in compiled loops: one number, or vectors of four that the processor works on together.

An array (rows,) has rows of one number; an array (rows, columns) has rows of columns / 4 vectors. The same loop
serves both: numba compiles it once for each. Left to itself it makes no vectors of a loop over four columns, so what
it lacks is written here, in the compiler's own terms: a vector is LLVM's <4 x float>. No bounds are checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

WIDTH = 4
_FLOAT, _INDEX = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_BYTES = ir.IntType(8).as_pointer()
_PREFETCH = ir.FunctionType(ir.VoidType(), [_BYTES, _INDEX, _INDEX, _INDEX])


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"float32x{WIDTH}")


@register_default(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_ROW = {1: types.float32, 2: _Vector()}  # what an array of so many dimensions is read in

# numba calls these functions with types, and what they return with the compiler's builder: nothing to annotate.


@intrinsic
def width(typing, array):  # type: ignore[no-untyped-def]
    """Numbers in a row of the array."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        one = context.get_constant(types.intp, 1)
        shape = make_array(array)(context, builder, args[0]).shape
        return one if array.ndim == 1 else cgutils.unpack_tuple(builder, shape)[1]

    return types.intp(array), code


@intrinsic
def nothing(typing, array):  # type: ignore[no-untyped-def]
    """Zero, as the array is read."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.get_constant_null(signature.return_type)

    return _ROW[array.ndim](array), code


def _address(context, builder, kinds, array, row, column):  # type: ignore[no-untyped-def]
    """Where array[row, column] lies, in a C-contiguous array of float32."""
    of = make_array(kinds[0])(context, builder, array)
    row, column = (
        context.cast(builder, number, kind, types.intp) for number, kind in ((row, kinds[1]), (column, kinds[2]))
    )
    if kinds[0].ndim == 1:
        return builder.gep(of.data, [row])
    place = builder.add(builder.mul(row, cgutils.unpack_tuple(builder, of.shape)[1]), column)
    return builder.bitcast(builder.gep(of.data, [place]), _VECTOR.as_pointer())


@intrinsic
def load(typing, array, row, column):  # type: ignore[no-untyped-def]
    """What is read from array[row] at this column, a multiple of four."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load(_address(context, builder, signature.args, *args), align=4)

    return _ROW[array.ndim](array, row, column), code


@intrinsic
def store(typing, array, row, column, x):  # type: ignore[no-untyped-def]
    """Write x there."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store(args[3], _address(context, builder, signature.args, *args[:3]), align=4)
        return context.get_dummy_value()

    return types.void(array, row, column, x), code


def _spread(builder, number, like):  # type: ignore[no-untyped-def]
    """A number as a row is read: four times."""
    if like == types.float32:
        return number
    empty = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(empty, number, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, empty, ir.Constant(ir.VectorType(_INDEX, WIDTH), [0] * WIDTH))


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
        parts = [builder.extract_element(args[0], ir.Constant(_INDEX, k)) for k in range(WIDTH)]
        return builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))

    return types.float32(a), code


@intrinsic
def fetch(typing, array, row):  # type: ignore[no-untyped-def]
    """Ask memory for array[row], which is read or written soon, and do not wait for it."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        of = make_array(signature.args[0])(context, builder, args[0])
        zero, four, line = (context.get_constant(types.intp, number) for number in (0, 4, 64))
        size = builder.mul(four, cgutils.unpack_tuple(builder, of.shape)[1]) if signature.args[0].ndim == 2 else four
        row = context.cast(builder, args[1], signature.args[1], types.intp)
        start = builder.gep(builder.bitcast(of.data, _BYTES), [builder.mul(row, size)])
        prefetch = cgutils.get_or_insert_function(builder.module, _PREFETCH, "llvm.prefetch.p0i8")
        kind = [ir.Constant(_INDEX, number) for number in (0, 3, 1)]  # to read, into all caches, data
        with cgutils.for_range_slice(builder, zero, size, line) as (offset, _):
            builder.call(prefetch, [builder.gep(start, [offset]), *kind])
        return context.get_dummy_value()

    return types.void(array, row), code
