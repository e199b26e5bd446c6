"""PART numbers at a time, or a pair, in float64 whatever memory holds: for sums that LLVM makes no good loop of."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparseattn.kernels.numba_cpu.simd import VecType, call, load_of, splat_of, vector_pointer

PART = 16
WIDE = VecType(types.float64, PART)
_KIND = ir.VectorType(ir.DoubleType(), PART)


@intrinsic
def widen(typingctx, pointer, offset):
    """PART numbers from element `offset` on."""

    def codegen(context, builder, sig, args):
        value = load_of(builder, pointer.dtype, *args, PART)
        return value if value.type == _KIND else builder.fpext(value, _KIND)

    return WIDE(pointer, types.intp), codegen


@intrinsic
def alike(typingctx, number):
    """PART times the same number."""
    return WIDE(types.float64), lambda context, builder, sig, args: splat_of(builder, args[0], PART)


@intrinsic
def counted(typingctx, first):
    """first, first + 1, ..."""

    def codegen(context, builder, sig, args):
        return builder.fadd(splat_of(builder, args[0], PART), ir.Constant(_KIND, [float(i) for i in range(PART)]))

    return WIDE(types.float64), codegen


@intrinsic
def size_of(typingctx, x):
    """Their absolute values."""
    return x(x), lambda context, builder, sig, args: call(builder, "fabs", args[0])


@intrinsic
def sum_of(typingctx, x):
    """The sum of halves, of their halves, ..."""

    def codegen(context, builder, sig, args):
        value = args[0]
        while value.type.count > 1:
            half = value.type.count // 2
            low, high = (builder.shuffle_vector(value, value, ir.Constant(
                ir.VectorType(ir.IntType(32), half), list(range(first, first + half)))) for first in (0, half))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.IntType(32)(0))

    return types.float64(x), codegen


@intrinsic
def tally(typingctx, pairs, at, number):
    """Add (1, number) to the pair `at` of the memory `pairs`."""

    def codegen(context, builder, sig, args):
        to, at, value = args
        kind = ir.VectorType(ir.DoubleType(), 2)
        place = vector_pointer(builder, to, builder.shl(at, at.type(1)), kind)
        value = value if value.type == kind.element else builder.fpext(value, kind.element)
        both = builder.insert_element(ir.Constant(kind, [1.0, 0.0]), value, ir.IntType(32)(1))
        builder.store(builder.fadd(builder.load(place, align=8), both), place, align=8)
        return context.get_dummy_value()

    return types.void(pairs, types.intp, number), codegen
