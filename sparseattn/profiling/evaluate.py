"""How well patterns stand in for dense attention on the sampled rows: mass captured, and error of the output.

Nothing is computed but the pairs that a pattern has in these rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparseattn import patterns
from sparseattn.attention import attend
from sparseattn.pattern import Pattern
from sparseattn.profiling import costs, families
from sparseattn.profiling.rows import Asked, readable
from sparseattn.selection.sharing import for_each
from sparseattn.xp import device_of, namespace, on_cpu

ITEM = 32  # rows of a work item


@dataclass(frozen=True)
class Inputs:
    """What candidates are judged on: NumPy arrays with four axes, v or None, what was asked of the rows, their
    logarithms of sums (batch, n_heads, n_rows), and dense outputs (batch, n_heads, n_rows, v_head_dim) or None."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray | None
    asked: Asked
    lse: np.ndarray
    dense: np.ndarray | None


@dataclass(frozen=True)
class Judged:
    """Of one candidate: recall, the part of it that is key 0's, and kept keys (batch, n_heads, n_rows); with values the
    error of each row over its norm, the cosine of the angle between both outputs (batch, n_heads, n_rows), and over all
    rows the error in the Frobenius norm and in that of absolute values (batch, n_heads); what it costs."""

    recall: np.ndarray
    first: np.ndarray
    kept: np.ndarray
    row_error: np.ndarray | None
    cosine: np.ndarray | None
    output_error: np.ndarray | None
    l1_error: np.ndarray | None
    cost: costs.Cost


def dense_outputs(q, k, v, asked) -> np.ndarray:
    """Outputs of dense attention (batch, n_heads, n_rows, v_head_dim) on the rows."""
    own, pattern = q[:, :, namespace(q).asarray(asked.rows)], of_rows(asked)
    if device_of(q) != "cpu":
        pattern = pattern.to(q.device)
    return on_cpu(attend(own, k, v, pattern, scale=asked.scale))


def of_rows(asked) -> Pattern:
    """The keys that each row may see."""
    stops = np.stack([asked.stops(item) for item in range(asked.is_open.shape[0])])
    shared = stops[:1] if (stops == stops[0]).all() else stops
    pattern = Pattern.from_ranges(np.zeros_like(shared)[:, None], shared[:, None], asked.is_open.shape[1])
    return pattern if asked.is_open.all() else pattern & patterns.padding(asked.is_open, n_queries=asked.rows.size)


def judge(candidate, inputs: Inputs) -> Judged:
    """Build a candidate and judge it. One that looks at q and k, or has lists for each head, is built for the heads of
    one k/v head at a time, so that no more than these is held."""
    q, k, asked = inputs.q, inputs.k, inputs.asked
    n_heads, n_kv_heads = q.shape[1], k.shape[1]
    apart = candidate.family in families.DYNAMIC or any(name in candidate.options for name in families.PER_HEAD)
    groups = np.arange(n_heads).reshape(n_kv_heads if apart else 1, -1)
    shape = (q.shape[0], n_heads, asked.rows.size)
    mass, kept = np.zeros((2, *shape)), np.zeros(shape, np.int64)
    out = None if inputs.dense is None else np.zeros(inputs.dense.shape)
    found = []
    if candidate.family == "dense":
        return _dense(candidate, inputs)
    for number, heads in enumerate(groups):
        own_q = q[:, heads[0] : heads[-1] + 1]
        own_k, own_v = (x if x is None or not apart else x[:, number : number + 1] for x in (k, inputs.v))
        built = candidate.of_heads(heads.tolist(), n_heads) if apart else candidate
        pattern = built.build(own_q, own_k, asked.causal, asked.scale)
        check(candidate.name, pattern, own_q, own_k)
        found.append(costs.of(pattern, built, own_q, own_k, own_v))
        for b in range(q.shape[0]):
            for h in heads:
                where = (b if pattern.batch > 1 else 0, (h - heads[0]) * pattern.n_heads // heads.size)
                walk_head(inputs, pattern, where, b, h, mass[:, b, h], kept[b, h], None if out is None else out[b, h])
    cost = costs.Cost(*(np.concatenate([getattr(c, name) for c in found]) for name in ("kept", "stored", "seconds")))
    if out is not None:
        out /= np.where(mass[0] > 0, mass[0], 1.0)[..., None]
    return compared(mass, kept, out, inputs, cost)


def _dense(candidate, inputs):
    """Dense attention stands in for itself."""
    asked = inputs.asked
    kept = np.broadcast_to(np.stack([asked.n_open(b) for b in range(len(inputs.lse))])[:, None], inputs.lse.shape)
    first = np.exp(first_scores(inputs.q, inputs.k, asked) - inputs.lse)
    cost = costs.of_whole(inputs.q, inputs.k, inputs.v, asked.causal)
    out = None if inputs.dense is None else inputs.dense.astype(float)
    return compared(np.stack([np.ones(inputs.lse.shape), first]), kept, out, inputs, cost)


def first_scores(q, k, asked):
    """Scores of the rows with key 0, (batch, n_heads, n_rows), -inf where that is padding."""
    xp, group = namespace(q), q.shape[1] // k.shape[1]
    first = k[:, xp.arange(q.shape[1]) // group, 0].astype(np.float64)
    rows = q[:, :, xp.asarray(asked.rows)].astype(np.float64)
    scores = asked.scale * on_cpu((rows * first[:, :, None]).sum(axis=3))
    return np.where(asked.is_open[:, :1, None], scores, -np.inf)


def check(name, pattern, q, k):
    """Refuse a pattern of other tokens, heads or batch items."""
    fits = {"tokens": pattern.shape == (q.shape[2], k.shape[2]), "heads": q.shape[1] % pattern.n_heads == 0,
            "batch items": pattern.batch in (1, q.shape[0])}
    for what, right in fits.items():
        if not right:
            raise ValueError(f"candidate {name!r} is a pattern with shape {pattern.shape}, {pattern.n_heads} heads and "
                             f"batch {pattern.batch}, whose {what} do not fit q {q.shape} and k {k.shape}")


def walk_head(inputs, pattern, where, b, h, mass, kept, out):
    """Add one head's mass, keys and outputs of all parts, in work items of some rows."""
    from sparseattn.profiling.walk import walk

    asked, kv_head = inputs.asked, h * inputs.k.shape[1] // inputs.q.shape[1]
    q = readable(inputs.q[b, h][asked.rows], asked.is_asked[b])
    k = readable(inputs.k[b, kv_head], asked.is_open[b])
    v = k[:, :0] if out is None else readable(inputs.v[b, kv_head], asked.is_open[b])
    out = np.zeros((q.shape[0], 0)) if out is None else out
    parts = [arrays for arrays in (_arrays(part, pattern, *where, asked.rows) for part in pattern.tiles()) if arrays]
    stops, is_open, lse = asked.stops(b), asked.is_open[b], inputs.lse[b, h]

    def item(first):
        rows = slice(first, first + ITEM)
        for slots, *arrays in parts:
            walk(q[rows], k, v, asked.scale, lse[rows], stops[rows], is_open, slots[rows], *arrays, mass[0, rows],
                 mass[1, rows], kept[rows], out[rows])

    for_each(item, range(0, q.shape[0], ITEM))


def _arrays(part, pattern, item, head, rows):
    """What `walk` reads of a part for one batch item and head of its pattern; None where it is about other heads."""
    heads = np.arange(pattern.n_heads) if part.heads is None else part.heads
    at = int(np.searchsorted(heads, head))
    if at == heads.size or heads[at] != head:
        return None

    def own(x):
        return x[item if x.shape[0] > 1 else 0, at * x.shape[1] // heads.size]

    slots = rows if part.q_order is None else own(part.q_order.inverse())[rows].astype(np.int64)
    masked = part.mask_ids is not None
    order = np.empty(0, np.int32) if part.k_order is None else np.ascontiguousarray(own(part.k_order.listing()))
    return (slots, np.ascontiguousarray(own(part.indptr)), part.indices,
            part.mask_ids if masked else np.empty(0, np.int32),
            part.masks if masked else np.empty((0, 1, 1), np.uint32), order, (*part.block_size, part.n_k_slots))


def compared(mass, kept, out, inputs, cost):
    """What mass (2, batch, n_heads, n_rows), all and that of key 0, and outputs say beside dense ones. Rows without a
    key count nowhere."""
    there = inputs.asked.is_asked[:, None] & np.isfinite(inputs.lse)
    recall, first = np.where(there, np.minimum(mass, 1.0), np.nan)
    if out is None:
        return Judged(recall, first, kept, None, None, None, None, cost)
    dense = np.where(there[..., None], inputs.dense, 0).astype(float)
    error = out - dense
    norms = [np.linalg.norm(x, axis=-1) for x in (error, out, dense)]
    with np.errstate(invalid="ignore", divide="ignore"):
        row_error = np.where(there, norms[0] / norms[2], np.nan)
        cosine = np.where(there, (out * dense).sum(axis=-1) / (norms[1] * norms[2]), np.nan)
        output_error = np.sqrt((norms[0] ** 2).sum(axis=-1) / (norms[2] ** 2).sum(axis=-1))
        l1_error = np.abs(error).sum(axis=(2, 3)) / np.abs(dense).sum(axis=(2, 3))
    return Judged(recall, first, kept, row_error, cosine, output_error, l1_error, cost)
