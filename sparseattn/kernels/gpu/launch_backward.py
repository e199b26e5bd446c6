"""From a call to the backward kernels: delta, a walk for dq, one for dk and dv, and the sums of cut rows."""

from __future__ import annotations

from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.arrays import constants_of, converter, readable
from sparseattn.kernels.gpu.target import bucket_of
from sparseattn.kernels.gpu.terms import BiasGradient, shaping
from sparseattn.xp import namespace


def backward(target, dout, q, k, v, out, lse, pattern, scale, dlse, options):
    """dq, dk, dv, dvalues, dsinks of a checked call."""
    xp, (batch, n_heads, n_queries, head_dim), v_dim = namespace(q), q.shape, v.shape[3]
    dout, q, k, v, out = (readable(x) for x in (dout, q, k, v, out))
    bits, bucket = 8 * q.itemsize, bucket_of(head_dim, v_dim)
    constants = constants_of(bits, bucket, dout, q, k, v, out)
    stats = xp.empty((batch, n_heads, n_queries, 2), xp.float32)
    if stats.size:
        target.run("row_dots", constants, (batch * n_heads * n_queries,),
                   (dout, out, xp.ascontiguousarray(lse), None if dlse is None else xp.ascontiguousarray(dlse), batch,
                    n_heads, n_queries, v_dim, stats))
    shaped = shaping(options, scale, batch, n_heads, n_queries, k.shape[2])
    constants.update(shaped.constants)
    gradient = None
    if shaped.bias is not None:
        gradient = BiasGradient(options.bias, shaped.bias, dout, v, stats, shaped.draws[1])
    call = _Call(target, constants, pattern, bits, bucket, stats, scale, shaped, gradient)
    dq, = call.walk(0, (q, dout), (k, v), (q,))
    dk, dv = call.walk(1, (k, v), (q, dout), (k, v))
    dvalues = None if gradient is None else gradient.finish()
    return dq, dk, dv, dvalues, _dsinks(options.sinks, lse, stats)


def _dsinks(sinks, lse, stats):
    """A sink has no value: what reaches its score is -delta. lse of -inf: nothing was attended, sink included."""
    if sinks is None:
        return None
    xp = namespace(lse)
    shares = xp.exp(xp.where(lse == -xp.inf, -xp.inf, sinks[:, None] - xp.where(lse == -xp.inf, 0, lse)))
    return -(shares * stats[..., 1]).sum(axis=(0, 2), dtype=xp.float64).astype(sinks.dtype)


class _Call:
    """What both walks of a call have in common."""

    def __init__(self, target, constants, pattern, bits, bucket, stats, scale, shaped, gradient):
        self.target, self.constants, self.pattern, self.bits, self.bucket = target, constants, pattern, bits, bucket
        self.stats, self.scale, self.shaped, self.gradient = stats, scale, shaped, gradient

    def walk(self, kv, x, y, like):
        """The gradients of the arrays `like`, from all parts, with x as stationary rows and y as moving ones."""
        xp, whole, convert = namespace(x[0]), self.pattern.to("cpu"), converter(x[0])
        q, k = (y[0], x[0]) if kv else (x[0], y[0])
        structures = layout.backward_structures(whole, self.target, self.bits, self.bucket, kv)
        walks = [walk for structure in structures for walk in layout.walks(
                     self.pattern, structure, q.shape[0], q.shape[1], k.shape[1], kv, convert)]
        walks = [walk for walk in walks if walk.n_places and walk.n_items]
        if not walks:
            return tuple(xp.zeros(a.shape, a.dtype) for a in like)
        several, covers = len(walks) > 1, walks[0].covers
        dtype = xp.float32 if several else like[0].dtype
        results = tuple((xp.empty if covers else xp.zeros)(a.shape, dtype) for a in like)
        for i, walk in enumerate(walks):
            self._run(kv, walk, x, y, q.shape[1], int(several and (i > 0 or not covers)), results)
        return tuple(r.astype(a.dtype, copy=False) for r, a in zip(results, like))

    def _run(self, kv, walk, x, y, n_heads, adds, results):
        xp, part, t = namespace(x[0]), walk.structure.part, walk.tables
        rows, is_row = walk.structure.rows, walk.structure.is_row
        n_partial = walk.n_places * walk.n_slots
        parts = [xp.empty((n_partial, rows, a.shape[3]), xp.float32) for a in results]
        constants = {**self.constants, "ROWS": rows, "KV": kv, "OUT32": int(results[0].itemsize == 4), "BIAS_GRAD": 0}
        sums = None, None
        if self.gradient is not None and not kv:
            constants["BIAS_GRAD"] = self.shaped.bias.gradient
            sums = self.gradient.sums, self.gradient.grain
        blocks = (*part.block_size, part.n_q_slots, part.n_k_slots) if is_row else (t.live, t.exists)
        sizes = x[0].shape[3], x[1].shape[3], n_heads, x[0].shape[2], y[0].shape[2]
        outs = (*results, None)[:2], (*parts, None)[:2]
        self.target.run("row_backward" if is_row else "tile_backward", constants, (walk.n_items, walk.n_places),
                        (*x, *y, self.stats, t.x_order, t.y_order, walk.places, walk.items, t.indices, t.mask_ids,
                         t.masks, *blocks, *sizes, self.scale, *self.shaped.arguments(kv), *sums, adds, walk.n_slots,
                         *outs[0], *outs[1]))
        if walk.n_groups:
            constants["BY_HEADS"] = int(is_row and not kv)
            for result, piece in zip(results, parts):
                self.target.run("sum_slots", constants, (walk.n_groups, walk.n_places),
                                (walk.groups, walk.group_at, walk.places, t.x_order, result.shape[3], x[0].shape[2],
                                 rows, adds, walk.n_slots, result, piece))
