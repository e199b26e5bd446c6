"""From a call to the backward kernels: delta, a walk for dq, one for dk and dv, the sums of cut rows, and a walk for an
array that heads or batch items share."""

from __future__ import annotations

import math

from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.arrays import constants_of, converter, readable
from sparseattn.kernels.gpu.plan import Plan, contiguous_steps, plan_of
from sparseattn.kernels.gpu.summed import Summed, grain_bits, has_walk, of_walk
from sparseattn.kernels.gpu.target import bucket_of
from sparseattn.kernels.gpu.terms import shaping
from sparseattn.xp import namespace

# by kv: stationary arrays, moving arrays, results, and what each result is the gradient of
SIDES = ((("q", "dout"), ("k", "v"), ("dq",), ("q",)), (("k", "v"), ("q", "dout"), ("dk", "dv"), ("k", "v")))


def backward(target, dout, q, k, v, out, lse, pattern, scale, dlse, options):
    """dq, dk, dv, dvalues, dsinks of a checked call."""
    xp = namespace(q)
    arrays = {"dout": dout, "q": q, "k": k, "v": v, "out": out}
    shaped = shaping(options, scale, pattern, *q.shape[:2])
    summed = Summed(options, shaped)
    kind = ("backward", target.name, shaped.kind, scale, options.sinks is not None)
    plan = plan_of(pattern, kind, arrays, lambda: _plan(target, arrays, pattern, scale, shaped, summed.constants()))
    for name in plan.copied:
        arrays[name] = readable(arrays[name])
    stats = xp.empty((*q.shape[:3], 2), xp.float32)
    arrays.update(lse=xp.ascontiguousarray(lse), dlse=None if dlse is None else xp.ascontiguousarray(dlse), stats=stats,
                  **shaped.arrays, **summed.begun(xp, lse.shape))
    for name, (like, wide, zeros) in plan.begins.items():
        arrays[name] = (xp.zeros if zeros else xp.empty)(arrays[like].shape, xp.float32 if wide else q.dtype)
    plan.run(xp, arrays)
    dq, dk, dv = (arrays[name].astype(q.dtype, copy=False) for name in ("dq", "dk", "dv"))
    dvalues = summed.bias.finish(arrays["sums"], arrays["grain"]) if summed.bias else None
    dsinks = summed.sinks.finish(arrays["lse"], stats[..., 1]) if summed.sinks else None
    return dq, dk, dv, dvalues, dsinks


def _plan(target, given, pattern, scale, shaped, summed):
    arrays = {name: readable(x) for name, x in given.items()}
    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    bits, bucket = 8 * q.itemsize, bucket_of(q.shape[3], v.shape[3])
    constants = {**constants_of(bits, bucket, *arrays.values()), **shaped.constants, **summed}
    plan = Plan(target, arrays)
    plan.copied = tuple(name for name, x in given.items() if arrays[name] is not x)
    plan.begins = {}
    batch, n_heads = q.shape[:2]

    def over_rows(kernel, x, before_sizes, after_sizes):
        sizes = arrays[x].shape
        if math.prod(sizes):
            plan.launch(kernel, constants, (sizes[2], sizes[0] * sizes[1]), (*before_sizes, *sizes, *after_sizes))

    unit = 1.0 if shaped.constants["SHAPED"] else scale
    over_rows("row_dots", "dout", ("dout", "out", "lse", "dlse"), (unit, "stats"))
    if any(summed.values()):
        squares, n_rows = plan.memory("longest", (2,), zeros=True), math.prod(arrays["dout"].shape[:3])
        for place, x in enumerate(("dout", "v")):
            over_rows("longest", x, (x,), (squares, place))
        plan.launch_once("grain", constants, (1, 1),
                         (squares, "dlse", n_rows, shaped.draws[1], grain_bits(n_rows), "grain"))
    for kv in (0, 1):
        structures = layout.backward_structures(pattern, target, bits, bucket, kv)
        walks = [walk for structure in structures for walk in layout.walks(
                     pattern, structure, batch, n_heads, k.shape[1], kv, converter(q))]
        # the last walk writes all rows where one does: those before it then add in float32 elsewhere
        walks = sorted((walk for walk in walks if walk.n_places and walk.n_items), key=lambda walk: walk.covers)
        _add_walks(plan, kv, walks, constants, arrays, scale, shaped)
        if not kv and summed["ROW_SUMS"]:
            over_rows("deltas", "dout", ("lse", "dlse", "sinks", "row_sums", "grain"), ("stats",))
    if has_walk(constants["BIAS"], constants["BIAS_GRAD"]):
        for structure in layout.backward_structures(pattern, target, bits, bucket, 0):
            if not structure.is_row:
                sizes = batch, n_heads, k.shape[1]
                walk = layout.shared_walk(pattern, structure, *sizes, shaped.bias.shared, converter(q))
                _add_shared(plan, walk, constants, arrays, scale, shaped)
    return plan


def _add_walks(plan, kv, walks, constants, arrays, scale, shaped):
    """The walks of one face, and what its results begin as."""
    *_, results, likes = SIDES[kv]
    covers_first, covers_last = (bool(walks) and walks[at].covers for at in (0, -1))
    several, narrow = len(walks) > 1, arrays["q"].itemsize == 2
    wide = not narrow or several and not covers_last
    carries = results if several else (None,) * len(results)
    for name, like in zip(results, likes):
        plan.begins[name] = like, wide, not covers_last or several and not narrow and not covers_first
        plan.steps[name] = contiguous_steps(arrays[like].shape)
    if several and not wide:
        carries = [plan.memory(f"{name} so far", arrays[like].shape, zeros=not covers_first)
                   for name, like in zip(results, likes)]
    for i, walk in enumerate(walks):
        last = i + 1 == len(walks)
        exact = {**constants, "KV": kv, "OUT32": int(wide or not last)}
        adds = int(several and (i > 0 or not covers_first))
        _launch(plan, f"{i} {kv}", kv, walk, exact, arrays, scale, shaped, adds, results if last else carries, carries)


def _launch(plan, number, kv, walk, constants, arrays, scale, shaped, adds, outs, carries):
    """A walk, and the sums of what it cut."""
    x, y, _, likes = SIDES[kv]
    part, t = walk.structure.part, walk.tables
    rows, is_row = walk.structure.rows, walk.structure.is_row
    pieces = [plan.memory(f"{name} {number}", (walk.n_places * walk.n_slots, rows, arrays[like].shape[3]))
              for name, like in zip(SIDES[kv][2], likes)]
    constants = {**constants, "ROWS": rows, "BIAS_GRAD": of_walk(constants["BIAS"], constants["BIAS_GRAD"], kv, is_row),
                 "ROW_SUMS": 0 if kv else constants["ROW_SUMS"]}
    blocks = (*part.block_size, part.n_q_slots, part.n_k_slots) if is_row else (t.live,)
    sizes = (arrays[x[0]].shape[3], arrays[x[1]].shape[3], arrays["q"].shape[1], arrays[x[0]].shape[2],
             arrays[y[0]].shape[2])
    sums = [name if constants[key] else None for name, key in (("sums", "BIAS_GRAD"), ("row_sums", "ROW_SUMS"))]
    grain = "grain" if any(sums) else None
    turns = () if is_row else shaped.turns(walk.n_places, arrays["q"].shape[0])
    plan.launch("row_backward" if is_row else "tile_backward", constants, (walk.n_items, walk.n_places),
                (*x, *y, "stats", t.x_order, t.y_order, walk.places, walk.items, t.indices, t.mask_ids, t.masks,
                 *blocks, *sizes, scale, *shaped.arguments(kv), *sums, grain, adds, walk.n_slots, *_pair(outs),
                 *_pair(carries), *_pair(pieces), *turns))
    if walk.n_groups:
        constants = {**constants, "BY_HEADS": int(is_row and not kv)}
        for out, carry, like, piece in zip(outs, carries, likes, pieces):
            plan.launch("sum_slots", constants, (walk.n_groups, walk.n_places),
                        (walk.groups, walk.group_at, walk.places, t.x_order, arrays[like].shape[3],
                         arrays[x[0]].shape[2], rows, adds, walk.n_slots, out, carry, piece))


def _add_shared(plan, walk, constants, arrays, scale, shaped):
    """The walk over queries that adds up the gradient of values that places share."""
    t = walk.tables
    sizes = (arrays["q"].shape[3], arrays["v"].shape[3], *arrays["q"].shape[1:3], arrays["k"].shape[2])
    if walk.n_items and walk.n_groups:
        plan.launch("tile_values", {**constants, "ROWS": walk.structure.rows}, (walk.n_items, walk.n_groups),
                    ("q", "dout", "k", "v", "stats", t.x_order, t.y_order, walk.groups, walk.places, walk.items,
                     t.indices, t.mask_ids, t.masks, t.live, *sizes, scale, *shaped.arguments(0), "sums", "grain"))


def _pair(names):
    return (*names, None)[:2]
