"""The unrolled products in which attention spends nearly all of its time, as vector IR.

tile_matmul   an outer-product register tile: C += A B with A read where it lies by any two strides
dots          scattered rows times a few fixed rows: lanes along head_dim, one accumulator a row, a tree of additions
sum_rows      weighted sums of scattered rows
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparseattn.kernels.numba_cpu.simd import (VECTOR_BITS, call, constant, load_of, splat_of, store_of, vec,
                                               vector_pointer)


@intrinsic(prefer_literal=True)
def tile_matmul(typingctx, c, c_stride, a, a_row, a_step, b, b_stride, n_steps, rows, vecs, add_to):
    """C[r, :] = (C[r, :] if add_to else 0) + sum over t of A[r * a_row + t * a_step] * B[t, :].

    `rows` rows and `vecs` registers of columns, both literals. rows * vecs accumulators stay in registers for the whole
    sum; per step: `vecs` loads of B, `rows` broadcasts of A. So no operand needs a transposed copy except B.
    """
    if not all(isinstance(t, types.Literal) for t in (rows, vecs)):
        return None
    n_rows, n_vecs = rows.literal_value, vecs.literal_value
    lanes = VECTOR_BITS // c.dtype.bitwidth
    align = c.dtype.bitwidth // 8

    def codegen(context, builder, sig, args):
        c_ptr, c_stride, a_ptr, a_row, a_step, b_ptr, b_stride, n_steps, _, _, add_to = args
        intp = c_stride.type
        kind = ir.VectorType(context.get_value_type(c.dtype), lanes)
        cells = [(r, j) for r in range(n_rows) for j in range(n_vecs)]
        at = {(r, j): builder.add(builder.mul(intp(r), c_stride), intp(j * lanes)) for r, j in cells}
        place = {cell: vector_pointer(builder, c_ptr, at[cell], kind) for cell in cells}
        row_offsets = [builder.mul(intp(r), a_row) for r in range(n_rows)]
        zero = constant(kind, 0.0)
        entry = builder.block
        loop, done, old, store = (builder.append_basic_block(name) for name in ("step", "done", "old", "store"))
        builder.cbranch(builder.icmp_signed(">", n_steps, intp(0)), loop, done)

        builder.position_at_end(loop)
        step = builder.phi(intp)
        sums = {cell: builder.phi(kind) for cell in cells}
        a_here = builder.gep(a_ptr, [builder.mul(step, a_step)])
        b_here = builder.mul(step, b_stride)
        b_vecs = [builder.load(vector_pointer(builder, b_ptr, builder.add(b_here, intp(j * lanes)), kind), align=align)
                  for j in range(n_vecs)]
        new = {}
        for r in range(n_rows):
            scalar = splat_of(builder, builder.load(builder.gep(a_here, [row_offsets[r]])), lanes)
            for j in range(n_vecs):
                new[r, j] = call(builder, "fmuladd", scalar, b_vecs[j], sums[r, j])
        following = builder.add(step, intp(1))
        step.add_incoming(intp(0), entry)
        step.add_incoming(following, loop)
        for cell in cells:
            sums[cell].add_incoming(zero, entry)
            sums[cell].add_incoming(new[cell], loop)
        builder.cbranch(builder.icmp_signed("<", following, n_steps), loop, done)

        builder.position_at_end(done)
        total = {cell: builder.phi(kind) for cell in cells}
        for cell in cells:
            total[cell].add_incoming(zero, entry)
            total[cell].add_incoming(new[cell], loop)
        builder.cbranch(builder.trunc(add_to, ir.IntType(1)), old, store)

        builder.position_at_end(old)  # what is there comes last, so that no sum is one long chain of roundings
        both = {cell: builder.fadd(builder.load(place[cell], align=align), total[cell]) for cell in cells}
        builder.branch(store)

        builder.position_at_end(store)
        for cell in cells:
            final = builder.phi(kind)
            final.add_incoming(total[cell], done)
            final.add_incoming(both[cell], old)
            total[cell] = final
        for cell in cells:
            builder.store(total[cell], place[cell], align=align)
        return context.get_dummy_value()

    intp = types.intp
    return types.void(c, intp, a, intp, intp, b, intp, intp, rows, vecs, types.boolean), codegen


@intrinsic(prefer_literal=True)
def dots(typingctx, s, s_stride, x, x_stride, y, y_stride, tokens, n_vecs, n_rows):
    """s[h, i] = x[h] . y[tokens[i]] for `lanes` tokens i and 1, 2 or 4 rows h. y may be 16-bit storage.

    lanes / n_rows tokens a pass, so that `lanes` accumulators are in flight; a tree of shuffles and additions then
    leaves the sum of token i in lane i.
    """
    if not isinstance(n_rows, types.Literal):
        return None
    n_fixed = n_rows.literal_value
    lanes = vec(s.dtype).lanes
    n_tokens = max(lanes // n_fixed, 1)

    def codegen(context, builder, sig, args):
        s_ptr, s_stride, x_ptr, x_stride, y_ptr, y_stride, tokens_ptr, n_vecs, _ = args
        intp = s_stride.type
        kind = ir.VectorType(context.get_value_type(s.dtype), lanes)
        index = ir.VectorType(ir.IntType(32), lanes)

        def join(rows, w):
            """Neighbours become one register, the w-lane sums of one beside those of the other, until one is left."""
            while len(rows) > 1:
                near = [i - i % (2 * w) + i % w + (lanes if i % (2 * w) >= w else 0) for i in range(lanes)]
                low, high = ir.Constant(index, near), ir.Constant(index, [i + w for i in near])
                rows = [builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
                        for a, b in zip(rows[::2], rows[1::2], strict=True)]
                w *= 2
            return rows[0]

        partial = [[] for _ in range(n_fixed)]
        for first in range(0, lanes, n_tokens):
            bases = []
            for i in range(first, first + n_tokens):
                token = builder.sext(builder.load(builder.gep(tokens_ptr, [intp(i)])), intp)
                bases.append(builder.mul(token, y_stride))
            entry = builder.block
            loop, done = builder.append_basic_block("chunk"), builder.append_basic_block("sum")
            builder.branch(loop)
            builder.position_at_end(loop)
            chunk = builder.phi(intp)
            chunk.add_incoming(intp(0), entry)
            sums = [[builder.phi(kind) for _ in range(n_tokens)] for _ in range(n_fixed)]
            d = builder.mul(chunk, intp(lanes))
            y_vecs = [load_of(builder, y.dtype, y_ptr, builder.add(base, d), lanes) for base in bases]
            new = []
            for h in range(n_fixed):
                x_vec = load_of(builder, x.dtype, x_ptr, builder.add(builder.mul(x_stride, intp(h)), d), lanes)
                new.append([call(builder, "fmuladd", x_vec, y_vec, total)
                            for y_vec, total in zip(y_vecs, sums[h], strict=True)])
            following = builder.add(chunk, intp(1))
            chunk.add_incoming(following, loop)
            for h in range(n_fixed):
                for total, value in zip(sums[h], new[h], strict=True):
                    total.add_incoming(constant(kind, 0.0), entry)
                    total.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, n_vecs), loop, done)
            builder.position_at_end(done)
            for h in range(n_fixed):
                partial[h].append(join(new[h], 1))
        for h in range(n_fixed):
            store_of(builder, s.dtype, s_ptr, builder.mul(s_stride, intp(h)), join(partial[h], n_tokens))
        return context.get_dummy_value()

    intp = types.intp
    return types.void(s, intp, x, intp, y, intp, tokens, intp, n_rows), codegen


@intrinsic(prefer_literal=True)
def sum_rows(typingctx, acc, acc_stride, p, p_stride, y, y_stride, tokens, n, vecs, n_rows):
    """acc[h, :] += sum over i < n of p[h, i] * y[tokens[i], :] for `vecs` registers of columns and `n_rows` rows h."""
    if not (isinstance(vecs, types.Literal) and isinstance(n_rows, types.Literal)):
        return None
    n_vecs, n_sums = vecs.literal_value, n_rows.literal_value
    lanes = vec(acc.dtype).lanes

    def codegen(context, builder, sig, args):
        acc_ptr, acc_stride, p_ptr, p_stride, y_ptr, y_stride, tokens_ptr, n, _, _ = args
        intp = acc_stride.type
        kind = ir.VectorType(context.get_value_type(acc.dtype), lanes)
        cells = [(h, j) for h in range(n_sums) for j in range(n_vecs)]
        place = {(h, j): builder.add(builder.mul(acc_stride, intp(h)), intp(j * lanes)) for h, j in cells}
        start = {c: load_of(builder, acc.dtype, acc_ptr, place[c], lanes) for c in cells}
        entry = builder.block
        loop, done = builder.append_basic_block("row"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", n, intp(0)), loop, done)

        builder.position_at_end(loop)
        i = builder.phi(intp)
        sums = {c: builder.phi(kind) for c in cells}
        token = builder.sext(builder.load(builder.gep(tokens_ptr, [i])), intp)
        base = builder.mul(token, y_stride)
        rows = [load_of(builder, y.dtype, y_ptr, builder.add(base, intp(j * lanes)), lanes) for j in range(n_vecs)]
        new = {}
        for h in range(n_sums):
            weight = builder.load(builder.gep(p_ptr, [builder.add(builder.mul(p_stride, intp(h)), i)]))
            weight = splat_of(builder, weight, lanes)
            for j in range(n_vecs):
                new[h, j] = call(builder, "fmuladd", weight, rows[j], sums[h, j])
        following = builder.add(i, intp(1))
        i.add_incoming(intp(0), entry)
        i.add_incoming(following, loop)
        for c in cells:
            sums[c].add_incoming(start[c], entry)
            sums[c].add_incoming(new[c], loop)
        builder.cbranch(builder.icmp_signed("<", following, n), loop, done)

        builder.position_at_end(done)
        final = {c: builder.phi(kind) for c in cells}
        for c in cells:
            final[c].add_incoming(start[c], entry)
            final[c].add_incoming(new[c], loop)
        for c in cells:
            store_of(builder, acc.dtype, acc_ptr, place[c], final[c])
        return context.get_dummy_value()

    intp = types.intp
    return types.void(acc, intp, p, intp, y, intp, tokens, intp, vecs, n_rows), codegen
