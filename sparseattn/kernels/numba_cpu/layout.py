"""What the kernels read of a part: flat arrays, where each head's begin, and work items. Kept in the part's memo.

A kernel's lanes hold the slots of a row of blocks; it reads the tokens of the columns. For the forward the rows are
queries; for the backward the part is transposed first, and they are keys.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from sparseattn.index_ops import transpose_blocks
from sparseattn.structure import Array, BlockCSR

WORD = 16  # bits of a mask word, never fewer than lanes
SEGMENT = 4096  # a row is cut only if it has more tokens than this ...
SEGMENTS = 128  # ... and more than this share of all
ITEMS = 1024  # neighbouring rows are one work item up to this share of all
LEAST = 2048  # ... and at least up to these pairs
CHUNKS = 64  # owners of dq over all heads, if each gets
CHUNK_PAIRS = 1 << 19  # ... at least these pairs
FEW = 8  # chunks whatever they touch; more only while all together touch each query FEW / 2 times
PIECE = 1 << 24  # bits of masks unpacked at a time
KEPT = 1 << 11  # bytes of masks up to which what is made of them is kept for the next part
MANY = 1 << 18  # bytes of masks from which a compiled loop turns them
NONE = np.empty(0, np.int32)
SHARED = (((1, 1), 0),) * 3  # lead axes and size of what all batch items and heads have in common


class Flat(NamedTuple):
    """A structure as flat arrays. Empty lists: no mask, or slot = token."""

    indptr: Array  # int64
    indices: Array  # int32
    mask_ids: Array  # int32
    masks: Array  # uint16 (n_masks, block_cols, words over block_rows): one row per token that the kernel reads
    spans: Array  # int32 (n_masks, 3): first live token slot, one past the last, whether dead ones lie between
    row_order: Array  # int32
    col_order: Array  # int32


class Places(NamedTuple):
    """Which heads of a call a part is about, and where what it keeps for each of them begins."""

    heads: Array  # int32 (n,)
    at: Array  # int64 (batch, n, 3): in indptr, row_order, col_order
    bundles: Array  # int64 (n_bundles + 1,): heads of one k/v head with equal rows and, if asked, equal columns
    largest: int  # heads of a bundle


class Work(NamedTuple):
    """Work items (first row, row after the last, segment, segments of the row, number of its first), longest first."""

    items: Array  # int64 (n_items, 5)
    n_segments: int  # of all cut rows


class Sums(NamedTuple):
    """For each token the rows of a buffer that belong to it, in the order in which they are added."""

    ptr: Array  # int64 (n_leads, n_tokens + 1)
    rows: Array  # int32
    n_rows: int  # of the buffer


class Chunks(NamedTuple):
    """Owners of dq: each walks some columns of blocks of keys and adds to the blocks of queries it touches."""

    columns: Array  # int64 (n_columns, 3): column, segment, segments of the column
    ptr: Array  # int64 (n_chunks + 1,) into columns
    dq_rows: Array  # int32, for each stored block the block of the dq buffer
    touched: Array  # int64 (n_chunks + 1,) into the blocks of the buffer
    dq: Sums
    dk: Sums | None  # None: each token has one owner, who writes it


def single_rows(part: BlockCSR) -> BlockCSR:
    """The part with its one query as a row of its own: for one query a tile would be idle in all lanes but one."""
    if part.n_q_slots != 1 or part.block_size[0] == 1:
        return part
    masks = None if part.masks is None else part.masks[:, :1]
    return part.memo.get("numba_cpu single", lambda: replace(part, block_size=(1, part.block_size[1]), masks=masks))


def transposed(part: BlockCSR) -> BlockCSR:
    """The part with keys as rows. Kept."""
    return part.memo.get("numba_cpu transposed", lambda: transpose_blocks(part))


def flat(part: BlockCSR) -> Flat:
    """The arrays of a part. Kept."""
    return part.memo.get("numba_cpu flat", lambda: _flat(part))


def _flat(part):
    masked = part.mask_ids is not None and part.mask_ids.any()
    masks, spans = _masks_of(part) if masked else (np.empty(0, np.uint16), NONE)
    return Flat(_flattened(part.indptr, np.int64), _flattened(part.indices, np.int32),
                _flattened(part.mask_ids, np.int32) if masked else NONE, masks, spans,
                _list(part.q_order), _list(part.k_order))


def _flattened(array, dtype):
    return np.ascontiguousarray(array, dtype).reshape(-1)


def _list(order):
    return NONE if order is None else _flattened(order.listing(), np.int32)


def _masks_of(part):
    """`_lane_masks` of a part. One whose ends move, as in decoding, meets the same few again and again."""
    masks, block_k = part.masks.astype("<u4", copy=False), part.block_size[1]
    if masks.nbytes <= KEPT:
        return _kept_lane_masks(masks.tobytes(), masks.shape, block_k)
    return _lane_masks(masks, block_k)


def _lane_masks(packed, block_k):
    """Masks with a row of bits per token slot, uint16, and the live span of each, int32; both flat."""
    n_masks, block_q, _ = packed.shape
    masks, live = np.zeros((n_masks, block_k, -(-block_q // WORD)), "<u2"), np.zeros((n_masks, block_k), bool)
    if packed.nbytes >= MANY:
        from sparseattn.selection.compiled import turn_masks

        masks = masks.view(np.uint16)
        turn_masks(packed.astype(np.uint32, copy=False), masks, live)
    else:
        _turn_few(packed, masks, live)
    spans = np.empty((n_masks, 3), np.int32)
    spans[:, 0], spans[:, 1] = live.argmax(axis=1), block_k - live[:, ::-1].argmax(axis=1)
    spans[:, 2] = live.sum(axis=1) < spans[:, 1] - spans[:, 0]
    return masks.astype(np.uint16, copy=False).reshape(-1), spans.reshape(-1)


def _turn_few(packed, masks, live):
    """What `turn_masks` does, without compiling it."""
    block_q, block_k = packed.shape[1], live.shape[1]
    step, target = max(PIECE // (block_q * block_k), 1), masks.view(np.uint8)
    for at in range(0, len(packed), step):
        bits = np.unpackbits(packed[at:at + step].view(np.uint8), axis=2, count=block_k, bitorder="little")
        words = np.packbits(bits.swapaxes(1, 2), axis=2, bitorder="little")
        target[at:at + step, :, :words.shape[2]] = words
        words.any(axis=2, out=live[at:at + step])


@lru_cache(maxsize=256)
def _kept_lane_masks(octets, shape, block_k):
    return _lane_masks(np.frombuffer(octets, "<u4").reshape(shape), block_k)


def places(part: BlockCSR, batch: int, n_heads: int, n_kv_heads: int, pattern_heads: int, by_rows_only=False) -> Places:
    """Heads, offsets and bundles of a part in a call. Kept. `by_rows_only`: columns may differ within a bundle."""
    key = "numba_cpu places", batch, n_heads, n_kv_heads, pattern_heads, by_rows_only
    return part.memo.get(key, lambda: _places(part, *key[1:]))


def _places(part, batch, n_heads, n_kv_heads, pattern_heads, by_rows_only):
    axes = SHARED  # begins at 0, however long: so a cache of keys that grows finds the same places at each step
    if part.lead != (1, 1):
        orders = [((1, 1), 0) if o is None else (o.lead, o.n_slots) for o in (part.q_order, part.k_order)]
        axes = ((part.indptr.shape[:2], part.n_rows + 1), *orders)
    if part.heads is None:
        return _places_of_all(batch, n_heads, n_kv_heads, axes, by_rows_only)
    count, wanted = len(part.heads), np.arange(n_heads) * pattern_heads // n_heads
    within = np.searchsorted(part.heads, wanted)
    there = np.flatnonzero(np.append(part.heads, -1)[within] == wanted)
    return _places_of(there, within[there], count, batch, there * n_kv_heads // n_heads, axes, by_rows_only)


@lru_cache(maxsize=64)
def _places_of_all(batch, n_heads, n_kv_heads, axes, by_rows_only):
    heads = np.arange(n_heads)
    return _places_of(heads, heads, n_heads, batch, heads * n_kv_heads // n_heads, axes, by_rows_only)


def _places_of(heads, within, count, batch, kv_heads, axes, by_rows_only):
    """Places of some heads, each the one at `within` of the `count` that the part is about."""
    at = np.empty((batch, len(heads), 3), np.int64)
    for i, (lead, size) in enumerate(axes):
        item = np.arange(batch)[:, None] * lead[0] // batch
        at[:, :, i] = (item * lead[1] + within * lead[1] // count) * size
    same = at[:, :, 1:2] if by_rows_only else at
    new = (np.diff(kv_heads) != 0) | (np.diff(same, axis=1) != 0).any(axis=(0, 2))
    bundles = np.concatenate([[0], np.flatnonzero(new) + 1, [len(heads)]]) if len(heads) else np.zeros(1)
    return Places(heads.astype(np.int32), at, bundles.astype(np.int64), int(np.diff(bundles).max(initial=0)))


def row_costs(part: BlockCSR) -> Array:
    """Token slots of each row of blocks, of the head that has most, plus what an empty row costs. Kept."""
    return part.memo.get("numba_cpu costs", lambda: np.diff(part.indptr).max(axis=(0, 1)) * part.block_size[1] + WORD)


def work(part: BlockCSR, copies: int) -> Work:
    """Work items of a part for `copies` heads. Kept. They depend on the problem only, so bits never on the machine."""
    return part.memo.get(("numba_cpu work", copies), lambda: _work(part, copies))


def _work(part, copies):
    if part.n_rows == 1:
        cost = (part.n_blocks if part.indptr.size == 2 else int(np.diff(part.indptr).max())) * part.block_size[1] + WORD
        return _segments_of_one(-(-cost // _longest(copies * cost)))
    costs, block_q = row_costs(part), part.block_size[0]
    total = copies * int(costs.sum())
    n_segments = -(-costs // _longest(total))
    cut = n_segments > 1
    number = np.cumsum(costs) // max(total // ITEMS, LEAST // block_q, 1)
    begins = np.ones(costs.size, bool)
    begins[1:] = (np.diff(number) > 0) | cut[1:] | cut[:-1]
    first = np.flatnonzero(begins)
    stop = np.append(first[1:], costs.size)
    copies_of = n_segments[first]  # 1 where rows are whole
    item = np.repeat(np.arange(first.size), copies_of)
    before = np.cumsum(copies_of) - copies_of
    segments = np.where(copies_of > 1, copies_of, 0)
    segment, base = np.arange(item.size) - before[item], (np.cumsum(segments) - segments)[item]
    items = np.stack([first[item], stop[item], segment, copies_of[item], base], axis=1)
    ends = np.concatenate([[0], np.cumsum(costs)])
    longest = np.argsort(-(ends[items[:, 1]] - ends[items[:, 0]]) / items[:, 3], kind="stable")
    return Work(np.ascontiguousarray(items[longest], np.int64), int(segments.sum()))


def _longest(total):
    """Cost up to which a row is left whole, where all rows and heads cost `total`."""
    return max(SEGMENT, total // SEGMENTS)


@lru_cache(maxsize=64)
def _segments_of_one(n_segments):
    """The work of a part of one row, as each step of decoding has."""
    items = np.empty((n_segments, 5), np.int64)
    items[:] = 0, 1, 0, n_segments, 0
    items[:, 2] = np.arange(n_segments)
    return Work(items, n_segments if n_segments > 1 else 0)


def chunks(part: BlockCSR, copies: int, one_owner: bool) -> Chunks:
    """Owners of dq for a transposed part and `copies` bundles. Kept. `one_owner`: each key slot has one bundle."""
    return part.memo.get(("numba_cpu chunks", copies, one_owner), lambda: _chunks(part, copies, one_owner))


def _chunks(part, copies, one_owner):
    costs, (block_k, block_q) = row_costs(part), part.block_size
    n_chunks = int(max(1, min(CHUNKS // max(copies, 1), int(costs.sum()) * block_k // CHUNK_PAIRS)))
    while True:
        columns, chunk = _columns(costs, n_chunks)
        dq_rows, touched, blocks = _touched(part, columns, chunk, n_chunks)
        if n_chunks <= FEW or blocks.size <= FEW // 2 * -(-part.n_k_slots // block_q):
            break
        n_chunks //= 2  # chunks that all touch most queries would need much memory
    ptr = np.searchsorted(chunk, np.arange(n_chunks + 1))
    dq = _sums(part.k_order, part.n_k_slots, part.shape[1], blocks, block_q)
    direct = one_owner and len(columns) == costs.size and not (part.q_order is not None and part.q_order.repeats)
    dk = None if direct else _sums(part.q_order, part.n_q_slots, part.shape[0], columns[:, 0], block_k)
    return Chunks(np.ascontiguousarray(columns, np.int64), ptr, dq_rows, touched, dq, dk)


def _columns(costs, n_chunks):
    """(column, segment, segments of the column) in order, long ones cut, and the chunk of each, of equal cost."""
    n_segments = -(-costs // max(SEGMENT, int(costs.sum()) // n_chunks))
    column = np.repeat(np.arange(costs.size), n_segments)
    segment = np.arange(column.size) - (np.cumsum(n_segments) - n_segments)[column]
    columns = np.stack([column, segment, n_segments[column]], axis=1)
    share = (costs / n_segments)[column]
    chunk = np.minimum((np.cumsum(share) - share) * n_chunks // max(share.sum(), 1), n_chunks - 1).astype(np.int64)
    return columns, chunk


def _touched(part, columns, chunk, n_chunks):
    """For each stored block its block of the dq buffer; where each chunk's begin; the query block that each is for."""
    column, segment, n_segments = columns.T
    spans = []
    for line in part.indptr.reshape(-1, part.n_rows + 1):
        begin, length = line[column], np.diff(line)[column]
        sizes = begin + length * (segment + 1) // n_segments - (begin + length * segment // n_segments)
        # a lead's blocks lie one after the other, so those of a chunk do too
        ends = line[0] + np.concatenate([[0], np.cumsum(np.bincount(chunk, sizes, n_chunks).astype(np.int64))])
        spans.append(ends)
    n_blocks = -(-part.n_k_slots // part.block_size[1])
    dq_rows, touched, blocks = np.zeros(part.n_blocks, np.int32), [0], []
    for c in range(n_chunks):
        present = np.zeros(n_blocks, bool)
        for ends in spans:
            present[part.indices[ends[c]:ends[c + 1]]] = True
        number = np.cumsum(present, dtype=np.int32) + np.int32(touched[-1] - 1)
        for ends in spans:
            dq_rows[ends[c]:ends[c + 1]] = number[part.indices[ends[c]:ends[c + 1]]]
        blocks.append(np.flatnonzero(present))
        touched.append(touched[-1] + blocks[-1].size)
    return dq_rows, np.array(touched, np.int64), np.concatenate(blocks)


def _sums(order, n_slots, n_tokens, blocks, block):
    """Sums over a buffer made of the given blocks of an order's slots."""
    slots = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    inside = slots < n_slots
    lists = np.arange(n_slots)[None] if order is None else order.listing().reshape(-1, n_slots)
    ptr, rows, total = [], [], 0
    for tokens in lists:
        owner = np.where(inside, tokens[np.where(inside, slots, 0)] if n_slots else -1, -1)
        row = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0):].astype(np.int32)
        counts = np.bincount(owner[row], minlength=n_tokens)
        ptr.append(total + np.concatenate([[0], np.cumsum(counts)]))
        rows.append(row)
        total += row.size
    return Sums(np.array(ptr, np.int64).reshape(-1), np.concatenate(rows), slots.size)
