"""From a call to the forward kernels: outputs, scratch memory, one launch a part and one to merge its cut rows."""

from __future__ import annotations

from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.arrays import constants_of, converter, readable, writable
from sparseattn.kernels.gpu.target import bucket_of
from sparseattn.kernels.gpu.terms import shaping
from sparseattn.xp import namespace

NEW, RESUMES, AFTER_SINKS = 0, 1, 2


def forward(target, q, k, v, pattern, scale, out, options):
    """out and lse of a checked call, part after part; later parts go on from what the earlier ones wrote."""
    xp, (batch, n_heads, n_queries, head_dim), v_dim = namespace(q), q.shape, v.shape[3]
    if out is None:
        out = xp.empty((batch, n_heads, n_queries, v_dim), q.dtype)
    lse = xp.empty((batch, n_heads, n_queries), xp.float32)
    bits, bucket = 8 * q.itemsize, bucket_of(head_dim, v_dim)
    whole, convert = pattern.to("cpu"), converter(q)
    walks = [walk for structure in layout.forward_structures(whole, target, bits, bucket)
             for walk in layout.walks(pattern, structure, batch, n_heads, k.shape[1], 0, convert)]
    walks = [walk for walk in walks if walk.n_places and walk.n_items]
    q, k, v, to = readable(q), readable(k), readable(v), writable(out)
    state = NEW
    if options.sinks is not None or not walks or not walks[0].covers:
        to[...] = 0
        lse[...] = -xp.inf if options.sinks is None else options.sinks[:, None]
        # a sink is a part that was attended before: one key of this score and no value
        state = NEW if options.sinks is None else AFTER_SINKS
    narrow = bits == 16
    carry = to if not narrow else xp.zeros(out.shape, xp.float32) if len(walks) > 1 else None
    shaped = shaping(options, scale, batch, n_heads, n_queries, k.shape[2])
    constants = {**constants_of(bits, bucket, q, k, v, to), **shaped.constants}
    for i, walk in enumerate(walks):
        keeps = int(narrow and i + 1 < len(walks))
        _run(target, constants, walk, q, k, v, scale, shaped.arguments(0), RESUMES if i else state, keeps, to, carry,
             lse)
    if to is not out:
        out[...] = to.view(out.dtype)
    return out, lse


def _run(target, constants, walk, q, k, v, scale, shaped, resumes, keeps, out, carry, lse):
    """Launch a part, and the merge of what it cut."""
    xp, part, t = namespace(q), walk.structure.part, walk.tables
    rows, is_row = walk.structure.rows, walk.structure.is_row
    n_partial = walk.n_places * walk.n_slots
    part_out = xp.empty((n_partial, rows, v.shape[3]), xp.float32)
    part_lse = xp.empty((n_partial, rows), xp.float32)
    sizes = q.shape[3], v.shape[3], q.shape[1], q.shape[2], k.shape[2]
    results = resumes, keeps, walk.n_slots, out, carry, lse, part_out, part_lse
    start = q, k, v, t.x_order, t.y_order, walk.places, walk.items, t.indices, t.mask_ids, t.masks
    between = (part.block_size[1], part.n_k_slots) if is_row else (t.live, t.exists)
    target.run("row_forward" if is_row else "tile_forward", {**constants, "ROWS": rows},
               (walk.n_items, walk.n_places), (*start, *between, *sizes, scale, *shaped, *results))
    if walk.n_groups:
        target.run("merge", {**constants, "ROWS": rows, "BY_HEADS": int(is_row)}, (walk.n_groups, walk.n_places),
                   (walk.groups, walk.group_at, walk.places, t.x_order, v.shape[3], q.shape[1], q.shape[2], rows,
                    *results))
