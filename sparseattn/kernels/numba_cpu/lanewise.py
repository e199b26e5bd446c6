"""Functions of a whole register, lane by lane: exp, tanh, and zeros drawn by chance."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparseattn.kernels.numba_cpu.simd import call, constant, splat_of, vector_pointer

# Minimax polynomials (Remez, relative error) of 2**x on [-0.5, 0.5], lowest power first: error 2e-9 and 3e-18.
_EXP2 = {
    32: (1.0, 0.6931471824645996, 0.24022646248340607, 0.05550328642129898, 0.009618489071726799, 0.0013399930903688073,
         0.0001534581242594868),
    64: (1.0, 0.6931471805599453, 0.24022650695910155, 0.055504108664819925, 0.009618129107588335, 0.001333355814678995,
         0.00015403530462514614, 1.5252733489960805e-05, 1.321543308959463e-06, 1.0178198033328528e-07,
         7.074105626245659e-09, 4.4352809446103363e-10),
}


# e**x of a smaller x is 0: far below what rounds, and far above where products of it would be subnormal, for which
# some processors take a hundred cycles each.
LOWEST = {32: -69.0, 64: -660.0}


def exp_of(builder, value, bits):
    """e**value for value <= 0; exactly 0 below LOWEST, -inf included; NaN passes.

    Adding 1.5 * 2**mantissa + bias rounds x log2(e) to an integer n and leaves n + bias in the low bits: shifted up
    they are 2**n, or 0 where n = -bias. So nothing has to be selected or converted at the end.
    """
    kind = value.type
    integer = ir.VectorType(ir.IntType(bits), kind.count)
    mantissa, bias = (23, 127) if bits == 32 else (52, 1023)
    log2e, rounder = constant(kind, 1.4426950408889634), constant(kind, 1.5 * 2**mantissa + bias)
    nothing = constant(kind, (0.25 - bias) * 0.6931471805599453)  # rounds to n = -bias
    clamped = builder.select(builder.fcmp_ordered("<", value, constant(kind, LOWEST[bits])), nothing, value)
    shifted = call(builder, "fmuladd", clamped, log2e, rounder)
    rest = call(builder, "fmuladd", clamped, log2e, builder.fsub(rounder, shifted))
    coefficients = _EXP2[bits]
    total = constant(kind, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = call(builder, "fmuladd", total, rest, constant(kind, c))
    power = builder.shl(builder.bitcast(shifted, integer), constant(integer, mantissa))
    return builder.fmul(total, builder.bitcast(power, kind))


@intrinsic
def exp(typingctx, x):
    """e**x for x <= 0, lane by lane; see `exp_of`."""
    return x(x), lambda context, builder, sig, args: exp_of(builder, args[0], x.dtype.bitwidth)


# tanh(x) = x + x z R(z) with z = x**2, |x| <= 0.625: interpolated at Chebyshev nodes, relative error 6e-10 and 1e-17.
_TANH_NEAR = 0.625
_TANH = {
    32: (-0.33333333173573004, 0.1333330377437064, -0.05395931111474189, 0.021769338398296936, -0.008345321141153337,
         0.0022943048642769504),
    64: (-0.3333333333333333, 0.13333333333333047, -0.05396825396790218, 0.021869488519230866, -0.008863235108109314,
         0.0035921218130319974, -0.0014557759005870325, 0.00058966312701239, -0.0002375986439279231,
         9.258719129109656e-05, -3.1219223628509665e-05, 6.493991863218935e-06),
}


@intrinsic
def tanh(typingctx, x):
    """Hyperbolic tangent; NaN passes. The exponential is computed only where some lane is far from 0."""

    def codegen(context, builder, sig, args):
        (value,), kind = args, args[0].type
        size = call(builder, "fabs", value)
        square = builder.fmul(value, value)
        coefficients = _TANH[x.dtype.bitwidth]
        total = constant(kind, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            total = call(builder, "fmuladd", total, square, constant(kind, c))
        near = call(builder, "fmuladd", builder.fmul(value, square), total, value)
        is_far = builder.fcmp_ordered(">", size, constant(kind, _TANH_NEAR))
        lanes = ir.IntType(x.lanes)
        some = builder.icmp_unsigned("!=", builder.bitcast(is_far, lanes), lanes(0))
        before = builder.block
        with builder.if_then(some, likely=False):
            decay = exp_of(builder, builder.fmul(size, constant(kind, -2.0)), x.dtype.bitwidth)
            one = constant(kind, 1.0)
            far = builder.fdiv(builder.fsub(one, decay), builder.fadd(one, decay))
            mixed = builder.select(is_far, call(builder, "copysign", far, value), near)
            inside = builder.block
        result = builder.phi(kind)
        result.add_incoming(near, before)
        result.add_incoming(mixed, inside)
        return result

    return x(x), codegen


@intrinsic
def dropped(typingctx, x, words, first, word, limit):
    """x, but 0 in each lane i where murmur3's finaliser of words[first + i] + word, 32 bits, is at most `limit`."""

    def codegen(context, builder, sig, args):
        value, words, first, word, limit = args
        integers = ir.VectorType(ir.IntType(32), x.lanes)

        def low_half(number):
            return splat_of(builder, builder.trunc(number, ir.IntType(32)), x.lanes)

        h = builder.load(vector_pointer(builder, words, first, integers), align=4)
        h = builder.add(h, low_half(word))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
            h = builder.xor(h, builder.lshr(h, constant(integers, shift)))
            h = h if factor is None else builder.mul(h, constant(integers, factor))
        return builder.select(builder.icmp_unsigned(">", h, low_half(limit)), value, constant(value.type, 0.0))

    return x(x, types.CPointer(types.int32), types.intp, types.int64, types.int64), codegen
