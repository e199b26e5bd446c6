"""Vector registers for Numba: a few intrinsics that emit LLVM vector IR.

`vec(float32)` is a Numba type held in one SIMD register (16, 8 or 4 lanes, whatever the host has). The operations below
are its whole vocabulary; kernels built from them read like scalar Numba code. Memory is a bare pointer (`data(array)`,
moved by `shift`) and an element offset: nothing is counted, and a step is compiled once whatever an array's layout.
"""

import functools
import platform

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic


def _vector_bits():
    # Numba keys its disk cache by CPU name and features, so a width chosen here never meets a foreign cache entry.
    features = config.CPU_FEATURES
    if features is None:
        features = llvmlite.binding.get_host_cpu_features().flatten()
    features = features.split(",")
    return 512 if "+avx512f" in features else 256 if "+avx2" in features else 128


VECTOR_BITS = _vector_bits()
# 16 accumulators + 4 operands need 32 registers (AVX-512, NEON); AVX2 and SSE have 16. 8 in flight hide FMA latency.
MANY_REGISTERS = VECTOR_BITS == 512 or platform.machine().lower() in ("arm64", "aarch64")


class VecType(types.Type):
    """`lanes` numbers of `dtype` in one register."""

    def __init__(self, dtype, lanes):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"vec({dtype}, {lanes})")


@register_default(VecType)
class VecModel(models.PrimitiveModel):
    """A register is an LLVM vector and nothing else."""

    def __init__(self, dmm, fe_type):
        element = dmm.lookup(fe_type.dtype).get_value_type()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


def vec(dtype):
    """The register type for numbers of `dtype`."""
    return VecType(dtype, VECTOR_BITS // dtype.bitwidth)


# 16-bit storage travels as integers: uint16 holds float16, int16 holds bfloat16. Registers hold float32 or float64.
def computed(dtype):
    """The Numba type in which numbers stored as `dtype` are computed."""
    return types.float64 if dtype == types.float64 else types.float32


def splat_of(builder, scalar, lanes):
    """The scalar in every lane."""
    empty = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    one = builder.insert_element(empty, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def constant(vector_type, value):
    """A vector with `value` in every lane."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def call(builder, name, *args):
    """Call an LLVM intrinsic on vectors of the first argument's type, e.g. llvm.fmuladd.v8f32."""
    kind = args[0].type
    suffix = {"float": "f32", "double": "f64"}[str(kind.element)]
    signature = ir.FunctionType(kind, [a.type for a in args])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{kind.count}{suffix}")
    return builder.call(function, args)


def vector_pointer(builder, pointer, offset, vector_type):
    """The address of a vector `offset` elements after `pointer`."""
    return builder.bitcast(builder.gep(pointer, [offset]), vector_type.as_pointer())


def _widen(builder, bits, dtype, kind):
    if dtype == types.uint16:
        return builder.fpext(bits, kind)
    wide = ir.VectorType(ir.IntType(32), kind.count)
    return builder.bitcast(builder.shl(builder.zext(bits, wide), constant(wide, 16)), kind)


def _narrow(builder, value, dtype):
    if dtype == types.uint16:
        return builder.fptrunc(value, ir.VectorType(ir.HalfType(), value.type.count))
    wide = ir.VectorType(ir.IntType(32), value.type.count)
    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))  # round half to even
    rounded = builder.add(bits, builder.add(odd, constant(wide, 0x7FFF)))
    quiet = builder.select(builder.fcmp_unordered("uno", value, value), constant(wide, 0x7FC00000), rounded)
    return builder.trunc(builder.lshr(quiet, constant(wide, 16)), ir.VectorType(ir.IntType(16), value.type.count))


def _memory_element(dtype):
    return {types.uint16: ir.HalfType(), types.int16: ir.IntType(16), types.float32: ir.FloatType(),
            types.float64: ir.DoubleType()}[dtype]


def load_of(builder, dtype, pointer, offset, lanes):
    """`lanes` numbers stored as `dtype`, widened to what they are computed in."""
    kind = ir.VectorType(_memory_element(computed(dtype)), lanes)
    stored = ir.VectorType(_memory_element(dtype), lanes)
    value = builder.load(vector_pointer(builder, pointer, offset, stored), align=dtype.bitwidth // 8)
    return value if stored == kind else _widen(builder, value, dtype, kind)


def store_of(builder, dtype, pointer, offset, value):
    """The reverse of load_of."""
    if dtype.bitwidth == 16:
        value = _narrow(builder, value, dtype)
    builder.store(value, vector_pointer(builder, pointer, offset, value.type), align=dtype.bitwidth // 8)


@intrinsic
def data(typingctx, array):
    """The address of the array's first element."""

    def codegen(context, builder, sig, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def shift(typingctx, pointer, offset):
    """The pointer moved by `offset` elements."""
    return pointer(pointer, types.intp), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


@intrinsic
def as_computed(typingctx, pointer):
    """The same address for numbers of the computing dtype. Only to be read where storage and computing agree."""
    out = types.CPointer(computed(pointer.dtype))

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(out))

    return out(pointer), codegen


@intrinsic
def load(typingctx, pointer, offset):
    """One register from element `offset` on, unaligned, widened."""
    out = vec(computed(pointer.dtype))
    return out(pointer, types.intp), lambda context, builder, sig, args: load_of(
        builder, pointer.dtype, *args, out.lanes)


@intrinsic
def store(typingctx, pointer, offset, value):
    """The reverse of load; 16-bit storage is rounded to nearest even."""

    def codegen(context, builder, sig, args):
        store_of(builder, pointer.dtype, *args)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), codegen


@intrinsic
def get(typingctx, pointer, offset):
    """One number as float32 or float64, for what is left over after whole registers."""

    def codegen(context, builder, sig, args):
        return builder.extract_element(load_of(builder, pointer.dtype, *args, 1), ir.IntType(32)(0))

    return computed(pointer.dtype)(pointer, types.intp), codegen


@intrinsic
def put(typingctx, pointer, offset, value):
    """The reverse of get."""

    def codegen(context, builder, sig, args):
        store_of(builder, pointer.dtype, args[0], args[1], splat_of(builder, args[2], 1))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, computed(pointer.dtype)), codegen


@intrinsic
def lanes_of(typingctx, pointer):
    """Lanes of a register that holds this memory's numbers; a compile-time constant."""
    n = vec(computed(pointer.dtype)).lanes
    return types.intp(pointer), lambda context, builder, sig, args: context.get_constant(types.intp, n)


@intrinsic
def transpose(typingctx, to, to_offset, to_stride, source, offset, stride):
    """Transpose one lanes x lanes square of float32 or float64 in registers."""
    n = vec(source.dtype).lanes

    def codegen(context, builder, sig, args):
        intp = args[2].type

        def row(base, step, i):
            return builder.add(base, builder.mul(step, intp(i)))

        rows = [load_of(builder, source.dtype, args[3], row(args[4], args[5], i), n) for i in range(n)]
        index = ir.VectorType(ir.IntType(32), n)
        low = ir.Constant(index, [i // 2 + (i % 2) * n for i in range(n)])
        high = ir.Constant(index, [n // 2 + i // 2 + (i % 2) * n for i in range(n)])
        # log2(n) perfect shuffles of the list of rows transpose it
        for _ in range(n.bit_length() - 1):
            rows = [builder.shuffle_vector(rows[i], rows[i + n // 2], half) for i in range(n // 2) for half in (low,
                                                                                                                high)]
        for i in range(n):
            store_of(builder, to.dtype, args[0], row(args[1], args[2], i), rows[i])
        return context.get_dummy_value()

    return types.void(to, types.intp, types.intp, source, types.intp, types.intp), codegen


@intrinsic
def splat(typingctx, like, scalar):
    """The scalar in every lane of a register for numbers of the memory `like`."""
    number = computed(like.dtype)
    out = vec(number)
    return out(like, number), lambda context, builder, sig, args: splat_of(builder, args[1], out.lanes)


def _binary(emit):
    def typer(typingctx, a, b):
        return a(a, b), lambda context, builder, sig, args: emit(builder, *args)

    return intrinsic(typer)


add = _binary(lambda builder, a, b: builder.fadd(a, b))
sub = _binary(lambda builder, a, b: builder.fsub(a, b))
mul = _binary(lambda builder, a, b: builder.fmul(a, b))
# compare and select, not llvm.maxnum: one instruction; a NaN in `a` gives `b` for maximum, itself for minimum
maximum = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
minimum = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a))


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once where the host can."""
    return a(a, b, c), lambda context, builder, sig, args: call(builder, "fmuladd", *args)


def _across(emit):
    def typer(typingctx, x):
        def codegen(context, builder, sig, args):
            lanes = [builder.extract_element(args[0], ir.IntType(32)(i)) for i in range(x.lanes)]
            return functools.reduce(lambda a, b: emit(builder, a, b), lanes)

        return x.dtype(x), codegen

    return intrinsic(typer)


# over the lanes of one register, in their order
sum_of_lanes = _across(lambda builder, a, b: builder.fadd(a, b))
top_of_lanes = _across(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


@intrinsic
def where_equal(typingctx, x, y, a, b):
    """Lane by lane a where x == y, else b."""
    return a(x, y, a, b), lambda context, builder, sig, args: builder.select(
        builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])


@intrinsic
def where_bits(typingctx, bits, a, b):
    """Lane i is a's where bit i of the integer is set, else b's."""

    def codegen(context, builder, sig, args):
        low = args[0]
        if low.type.width > a.lanes:
            low = builder.trunc(low, ir.IntType(a.lanes))
        return builder.select(builder.bitcast(low, ir.VectorType(ir.IntType(1), a.lanes)), args[1], args[2])

    return a(bits, a, b), codegen


@intrinsic
def reverse(typingctx, x):
    """The lanes in the opposite order."""
    backwards = ir.Constant(ir.VectorType(ir.IntType(32), x.lanes), list(range(x.lanes))[::-1])
    return x(x), lambda context, builder, sig, args: builder.shuffle_vector(args[0], args[0], backwards)


@intrinsic
def slide(typingctx, x):
    """Every lane but the first one place down, and 0 in the last."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, [0.0] * x.lanes)
        further = ir.Constant(ir.VectorType(ir.IntType(32), x.lanes), list(range(1, x.lanes + 1)))
        return builder.shuffle_vector(args[0], zero, further)

    return x(x), codegen


@intrinsic
def first_lane(typingctx, x):
    """The number in the first lane."""
    return x.dtype(x), lambda context, builder, sig, args: builder.extract_element(args[0], ir.IntType(32)(0))


@intrinsic
def fetch_add(typingctx, pointer, amount):
    """Atomically pointer[0] += amount; returns the old value. What was written before is seen by who adds after."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", *args, "acq_rel")

    return types.int64(pointer, types.int64), codegen


@intrinsic
def prefetch(typingctx, pointer, offset):
    """Ask for the cache line of one element, to be read soon."""

    def codegen(context, builder, sig, args):
        address = builder.bitcast(builder.gep(*args[:1], [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32]), "llvm.prefetch.p0")
        builder.call(function, [address, i32(0), i32(2), i32(1)])
        return context.get_dummy_value()

    return types.void(pointer, types.intp), codegen
