"""From a call to the forward kernels: outputs, scratch memory, one launch a part and one to merge its cut rows."""

from __future__ import annotations

from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.arrays import constants_of, converter, readable, writable
from sparseattn.kernels.gpu.plan import Plan, plan_of
from sparseattn.kernels.gpu.target import bucket_of
from sparseattn.kernels.gpu.terms import shaping
from sparseattn.xp import namespace

NEW, RESUMES, AFTER_SINKS = 0, 1, 2
KEEPS, ONLY_KEEPS = 1, 2  # a float32 sum for the parts that follow; the result of all rows is theirs to write


def forward(target, q, k, v, pattern, scale, out, options):
    """out and lse of a checked call, part after part; later parts go on from what the earlier ones wrote."""
    xp = namespace(q)
    if out is None:
        out = xp.empty(q.shape[:3] + v.shape[3:], q.dtype)
    arrays = {"q": q, "k": k, "v": v, "out": out}
    shaped = shaping(options, scale, pattern, *q.shape[:2])
    has_sinks = options.sinks is not None
    kind = ("forward", target.name, shaped.kind, scale, has_sinks)
    plan = plan_of(pattern, kind, arrays, lambda: _plan(target, arrays, pattern, scale, shaped, has_sinks))
    for name in plan.copied:
        arrays[name] = _passed(name, arrays[name])
    arrays |= shaped.arrays
    arrays["lse"] = lse = xp.empty(q.shape[:3], xp.float32)
    if "out" in plan.begins:
        arrays["out"][...] = 0
    if "lse" in plan.begins:
        lse[...] = options.sinks[:, None] if has_sinks else -xp.inf
    plan.run(xp, arrays)
    if arrays["out"] is not out:
        out[...] = arrays["out"].view(out.dtype)
    return out, lse


def _passed(name, x):
    """An array as the kernels take it: itself, a copy, or for the result another one."""
    return writable(x) if name == "out" else readable(x)


def _plan(target, given, pattern, scale, shaped, has_sinks):
    arrays = {name: _passed(name, x) for name, x in given.items()}
    q, k, v, out = arrays.values()
    bits, bucket, convert = 8 * q.itemsize, bucket_of(q.shape[3], v.shape[3]), converter(q)
    walks = [walk for structure in layout.forward_structures(pattern, target, bits, bucket)
             for walk in layout.walks(pattern, structure, *q.shape[:2], k.shape[1], 0, convert)]
    # the last part writes all rows where one does: those before it then write only what they found
    walks = sorted((walk for walk in walks if walk.n_places and walk.n_items), key=lambda walk: walk.covers)
    covers_first, covers_last = (bool(walks) and walks[at].covers for at in (0, -1))
    several, narrow = len(walks) > 1, bits == 16
    plan = Plan(target, arrays)
    plan.copied = tuple(name for name, x in given.items() if arrays[name] is not x)
    # a sink is a part that was attended before: one key of its score and no value
    adds_to_nothing = has_sinks and several and not covers_first
    plan.begins = ("out",) * (not covers_last or adds_to_nothing) + ("lse",) * (has_sinks or not covers_first)
    carry = "out"
    if narrow:
        carry = plan.memory("carry", out.shape, zeros=adds_to_nothing) if several else None
    constants = {**constants_of(bits, bucket, q, k, v, out), **shaped.constants}
    for i, walk in enumerate(walks):
        resumes = RESUMES if i else AFTER_SINKS if has_sinks else NEW
        keeps = (ONLY_KEEPS if covers_last else KEEPS) if narrow and i + 1 < len(walks) else 0
        _launch(plan, i, constants, walk, arrays, scale, shaped, resumes, keeps, carry)
    return plan


def _launch(plan, number, constants, walk, arrays, scale, shaped, resumes, keeps, carry):
    """A part, and the merge of what it cut."""
    q, k, v, _ = arrays.values()
    part, t = walk.structure.part, walk.tables
    rows, is_row = walk.structure.rows, walk.structure.is_row
    n_partial = walk.n_places * walk.n_slots
    pieces = (plan.memory(f"part_out {number}", (n_partial, rows, v.shape[3])),
              plan.memory(f"part_lse {number}", (n_partial, rows)))
    sizes = q.shape[3], v.shape[3], q.shape[1], q.shape[2], k.shape[2]
    results = resumes, keeps, walk.n_slots, "out", carry, "lse", *pieces
    start = "q", "k", "v", t.x_order, t.y_order, walk.places, walk.items, t.indices, t.mask_ids, t.masks
    between = (part.block_size[1], part.n_k_slots) if is_row else (t.live,)
    turns = () if is_row else shaped.turns(walk.n_places, q.shape[0])
    plan.launch("row_forward" if is_row else "tile_forward", {**constants, "ROWS": rows}, (walk.n_items, walk.n_places),
                (*start, *between, *sizes, scale, *shaped.arguments(0), *results, *turns))
    if walk.n_groups:
        plan.launch("merge", {**constants, "ROWS": rows, "BY_HEADS": int(is_row)}, (walk.n_groups, walk.n_places),
                    (walk.groups, walk.group_at, walk.places, t.x_order, v.shape[3], q.shape[1], q.shape[2], rows,
                     *results))
