"""What the kernels read of a pattern: its structures in the kernels' tiles, work items, places. Kept on the pattern.

Made on the CPU of a pattern from there, then moved; of one that was made on a GPU, by array functions, there. A thread
block owns a stationary tile and walks the moving rows of its entries: queries and keys for the forward and dq, keys and
queries for dk and dv.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sparseattn.index_ops.algebra import as_tiles, by_order, count_blocks, one_structure
from sparseattn.index_ops.blocks import reblock, recut
from sparseattn.index_ops.cells import pruned
from sparseattn.index_ops.masks import any_query
from sparseattn.index_ops.sorting import repeated, stable_order
from sparseattn.index_ops.tiles import cells_of, cut
from sparseattn.kernels.gpu.target import ROW, ROW_KEYS
from sparseattn.pattern.devices import home, working_on
from sparseattn.structure import Array, BlockCSR, Ranges
from sparseattn.xp import library, namespace, on_cpu

SHARES = 396  # a row is cut if it has more than this share of all blocks: three work items each on a GPU of today
LEAST_PLACES = 4  # places that a thread block has at least where several share those of an item
TALL = 12  # rows whose items come one after the other: a GPU works on about as many rows as columns at a time
LEAST = 2048  # moving rows that a piece of a cut row has at least
THIN = 1.25  # smaller tiles are taken where larger ones would hold more than this many times their pairs


class Structure(NamedTuple):
    """A part as one kernel walks it, on the CPU or the call's device."""

    part: BlockCSR  # rows are stationary
    is_row: bool  # for the row kernels
    rows: int  # of a stationary tile


class Tables(NamedTuple):
    """A structure's arrays on the device; see the kernels for their meaning."""

    x_order: Array | None
    y_order: Array | None
    indices: Array
    mask_ids: Array
    masks: Array
    live: Array


class Walk(NamedTuple):
    """One launch over a structure in a call of some batch and head counts."""

    structure: Structure
    tables: Tables
    places: Array
    items: Array
    n_places: int
    n_items: int  # most of a place
    n_slots: int  # partial tiles of a place, most
    groups: Array | None
    group_at: Array | None
    n_groups: int
    covers: bool  # writes every row of the stationary heads it is about, which are all


class SharedWalk(NamedTuple):
    """A launch over a structure in tiles that takes places with the same pairs and values of a bias together.

    places: batch item, head, k/v head, whether that or the batch item is not the one of the place before. groups: first
    place, number of them, x_at, y_at, first item, number of them, 0, 0. items: row, first entry, entries, 0.
    """

    structure: Structure
    tables: Tables
    places: Array
    groups: Array
    items: Array
    n_groups: int
    n_items: int  # most of a group


def forward_structures(pattern, target, bits, bucket) -> tuple[Structure, ...]:
    """The parts with queries as rows. Kept."""
    return _kept(home(pattern), target.rows("tile_forward", bits, bucket, 0), ROW_KEYS, target.block_y, 0)


def backward_structures(pattern, target, bits, bucket, kv) -> tuple[Structure, ...]:
    """The parts with queries (kv = 0) or keys (kv = 1) as rows. Kept."""
    most_keys = target.rows("row_backward", bits, bucket, kv)[0] if kv else ROW_KEYS
    rows = target.rows("tile_backward", bits, bucket, kv)
    return _kept(home(pattern), rows, most_keys, target.block_y, kv)


def prepare(pattern, target, backward):
    """Make ahead the structures for the usual dtype and head_dim."""
    forward_structures(pattern, target, 16, 128)
    for kv in (0, 1) if backward else ():
        backward_structures(pattern, target, 16, 128, kv)


def _kept(pattern, *sizes):
    """The structures of a pattern, where it lies; `sizes`: rows and most_keys that tiles may have, block_y, kv."""
    with working_on(pattern):
        return pattern.memo.get(("gpu structures", *sizes), lambda: _structures(pattern, *sizes))


def _structures(pattern, rows, most_keys, block_y, turned):
    parts = _turned(pattern).parts if turned else pattern.parts
    groups = [[part] for part in parts] if pattern.memo.get("repeats", lambda: False) else [parts]
    return tuple(found for group in groups
                 for found in _joined(group, pattern.n_heads, rows, most_keys, block_y, turned))


def _turned(pattern):
    """The pattern of (key, query) pairs. Ranges that ask for blocks of one query are tiles in it too, as they are in
    the pattern: the gradient of values that pairs share has a walk over queries for tiles, not for rows."""
    parts = tuple(replace(p, block_size=None) if isinstance(p, Ranges) and p.block_size and p.block_size[0] == 1 else p
                  for p in pattern.parts)
    return pattern.T if all(a is b for a, b in zip(parts, pattern.parts)) else replace(pattern, parts=parts).T


def _joined(parts, n_heads, rows, most_keys, block_y, turned):
    """The structures of parts that may be joined where their orders are equal."""
    single = [p for p in parts if _is_single(p, turned)]
    others = [p for p in parts if not _is_single(p, turned)]
    found = []
    for group in by_order(others):
        size = _best(group, rows, block_y)
        part = one_structure([_in_blocks(p, (size, block_y)) for p in group], n_heads)
        found.append(Structure(part, False, size))
    for part in _single_tiles(single, n_heads, most_keys, turned):
        size = part.block_size[0] if turned else ROW
        found.append(Structure(part, True, ROW if size <= ROW else ROW_KEYS))
    return found


def _is_single(part, turned):
    """Whether the queries of a part are taken one by one."""
    n_queries = part.n_k_slots if turned else part.n_q_slots
    if n_queries == 1:
        return True
    return not isinstance(part, Ranges) and part.block_size[1 if turned else 0] == 1


def _single_tiles(parts, n_heads, most_keys, turned):
    """Parts in blocks of one query; those of the same order and block size joined."""
    cut = []
    for part in parts:
        size = most_keys if isinstance(part, Ranges) else min(part.block_size[0 if turned else 1], most_keys)
        cut.append(_in_blocks(part, (size, 1) if turned else (1, size)))
    return as_tiles(cut, n_heads) if len({p.block_size for p in cut}) < 2 else tuple(cut)


def _in_blocks(part, size):
    """A part in blocks of this size; on a GPU masks are not compared."""
    if isinstance(part, Ranges):
        return cut(part, size) if library(part.starts) == "numpy" else pruned(cells_of(part, size))
    if library(part.indptr) == "numpy" or part.block_size == size:
        return reblock(part, size)
    return pruned(recut(part, size))


def _best(parts, rows, block_y):
    """The rows of the tiles that waste least: fewer only where more would hold many pairs for nothing."""
    best, least = 0, 0
    for size in rows:
        slots = size * sum(count_blocks(p, (size, block_y)) for p in parts)
        if not best or parts[0].n_q_slots <= size or least > THIN * slots:
            best, least = size, slots
    return best


def tables(pattern, structure, convert) -> Tables:
    """The arrays of a structure moved by `convert`. Kept on the pattern."""
    return pattern.memo.get(("gpu tables", id(structure)), lambda: _tables(structure, convert))


def _tables(structure, convert):
    part = structure.part
    block_x, block_y = part.block_size
    masked, xp = part.mask_ids is not None, namespace(part.indices)
    mask_ids = part.mask_ids if masked else xp.zeros(part.n_blocks, np.int32)
    masks = part.masks if masked else xp.full((1, block_x, -(-block_y // 32)), 0xFFFFFFFF, np.uint32)
    x_order = _list(part.q_order, structure.rows if not structure.is_row else block_x)
    y_order = _list(part.k_order, block_y)
    if structure.is_row:
        masks = masks[:, 0] if block_x == 1 else masks[:, :, 0]
        live = xp.zeros((1, 1), np.uint32)
    else:
        live = any_query(masks)
    arrays = x_order, y_order, part.indices, mask_ids, masks, live
    dtypes = 4 * (np.int32,) + 2 * (np.uint32,)
    return Tables(*(None if x is None else convert(xp.ascontiguousarray(x, dtype)) for x, dtype in zip(arrays, dtypes)))


def _list(order, block):
    """The tokens of an order, each list filled up with nobody to whole blocks; flat. None: slot = token."""
    return None if order is None else order.filled(block).reshape(-1)


def walks(pattern, structure, batch, n_heads, n_kv_heads, kv, convert) -> tuple[Walk, ...]:
    """The launches over a structure in a call of these sizes. Kept on the pattern.

    More than one only for dk and dv where the query heads of a k/v head differ in structure: they are added in turn.
    """
    key = "gpu walks", id(structure), batch, n_heads, n_kv_heads
    return pattern.memo.get(key, lambda: _walks(pattern, structure, batch, n_heads, n_kv_heads, kv, convert))


def _walks(pattern, structure, batch, n_heads, n_kv_heads, kv, convert):
    part = structure.part
    found = _places(structure, batch, n_heads, n_kv_heads, pattern.n_heads, kv)
    # tiles have few rows, faster to go through on the CPU than to ask a GPU some fifty times
    rows = part if structure.is_row else replace(part, indptr=on_cpu(part.indptr))
    rounds = found[:, 8]
    launches = []
    for number in range(rounds.max(initial=-1) + 1):
        chosen = found[rounds == number]
        reached = len(chosen) if kv or not structure.is_row else chosen[:, 3].sum()
        covers = (part.heads is None and reached == batch * (n_kv_heads if kv else n_heads)
                  and (part.q_order is None or part.q_order.is_onto))
        launches.append(_walk(pattern, structure, chosen, _work(rows, chosen[:, 9]), covers, convert))
    return tuple(launches)


def _walk(pattern, structure, places, work, covers, convert):
    items, first, counts, groups, group_first, group_counts, n_slots = work
    lead = places[:, 9]
    table = places[:, :8].astype(np.int32)
    table[:, 4], table[:, 5] = first[lead], counts[lead]
    group_at = np.stack([group_first[lead], group_counts[lead]], axis=1).astype(np.int32)
    n_groups = int(group_counts[lead].max(initial=0))
    return Walk(structure, tables(pattern, structure, convert), convert(table), convert(items), len(table),
                int(counts[lead].max(initial=0)), n_slots, convert(groups) if n_groups else None,
                convert(group_at) if n_groups else None, n_groups, covers)


def shared_walk(pattern, structure, batch, n_heads, n_kv_heads, shared, convert) -> SharedWalk:
    """The walk over a structure in tiles for values that batch items share, heads, or both. Kept on the pattern."""
    key = "gpu shared walk", id(structure), batch, n_heads, n_kv_heads, shared
    return pattern.memo.get(key, lambda: _shared_walk(pattern, structure, batch, n_heads, n_kv_heads, shared, convert))


def _shared_walk(pattern, structure, batch, n_heads, n_kv_heads, shared, convert):
    part = structure.part
    found = _places(structure, batch, n_heads, n_kv_heads, pattern.n_heads, 0)
    alike = found[:, [0, 1, 6, 7, 9]]  # batch item, head, x_at, y_at, lead
    alike[:, :2][:, np.array(shared)] = 0
    kinds, group = np.unique(alike, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    items, first, counts = _entry_pairs(on_cpu(part.indptr).reshape(-1, part.n_rows + 1))
    n_places, lead = np.bincount(group.ravel(), minlength=len(kinds)), kinds[:, 4]
    # where there are few items, several thread blocks share the places of one
    pieces = np.clip(-(-SHARES // max(counts[lead].sum(), 1)), 1, -(-n_places // LEAST_PLACES))
    kind = repeated(pieces)
    number = np.arange(kind.size) - (np.cumsum(pieces) - pieces)[kind]
    begin = n_places[kind] * number // pieces[kind]
    length = n_places[kind] * (number + 1) // pieces[kind] - begin
    groups = np.zeros((kind.size, 8), np.int32)
    groups[:, 0], groups[:, 1] = (np.cumsum(n_places) - n_places)[kind] + begin, length
    groups[:, 2:4], groups[:, 4], groups[:, 5] = kinds[kind, 2:4], first[lead[kind]], counts[lead[kind]]
    places = np.zeros((len(found), 4), np.int32)
    places[:, :3] = found[order, :3]
    places[:, 3] = np.diff(places[:, [0, 2]], axis=0, prepend=-1).any(axis=1)
    return SharedWalk(structure, tables(pattern, structure, convert), convert(places), convert(groups), convert(items),
                      len(groups), int(groups[:, 5].max(initial=0)))


def _entry_pairs(lines):
    """(items, first, counts by lead): the entries of each row, two by two; `lines`: where rows of each lead begin."""
    sizes = np.diff(lines, axis=1)
    pairs = -(-sizes // 2)
    line = repeated(pairs.ravel())
    number = np.arange(line.size) - (np.cumsum(pairs) - pairs.ravel())[line]
    lead, row = np.divmod(line, max(sizes.shape[1], 1))
    first, count = lines[:, :-1].ravel()[line] + 2 * number, np.minimum(sizes.ravel()[line] - 2 * number, 2)
    items = np.stack([row, first, count, 0 * row], axis=1).astype(np.int32)
    counts = pairs.sum(axis=1)
    return items[np.lexsort((row, number, row // TALL, lead))], np.cumsum(counts) - counts, counts


def _places(structure, batch, n_heads, n_kv_heads, pattern_heads, kv):
    """int64 (n_places, 10): batch item, x_head, y_head, repeat, 0, 0, x_at, y_at, round, lead of the structure."""
    part = structure.part
    heads, within, count = _heads_of(part, n_heads, pattern_heads)
    if not len(heads):
        return np.empty((0, 10), np.int64)
    sizes = (1, _slots(part.q_order, structure.rows if not structure.is_row else part.block_size[0]),
             _slots(part.k_order, part.block_size[1]))
    leads = (part.indptr.shape[:2], *((1, 1) if o is None else o.lead for o in (part.q_order, part.k_order)))
    at = np.empty((batch, len(heads), 3), np.int64)  # lead, x_at, y_at
    for i, (lead, size) in enumerate(zip(leads, sizes)):
        item = np.arange(batch)[:, None] * lead[0] // batch
        at[:, :, i] = (item * lead[1] + within * lead[1] // count) * size
    kv_heads = heads * n_kv_heads // n_heads
    joins = kv or structure.is_row
    bundles = _bundles(kv_heads, at, ROW if structure.is_row and not kv else n_heads) if joins else (
        np.arange(len(heads)), np.ones(len(heads), np.int64))
    first, repeat = bundles
    rounds = np.zeros(len(first), np.int64)
    if kv:
        owner = kv_heads[first]
        rounds = np.arange(len(first)) - np.searchsorted(owner, owner)
    rows = np.empty((batch, len(first), 10), np.int64)
    rows[:, :, 0] = np.arange(batch)[:, None]
    rows[:, :, 1] = kv_heads[first] if kv else heads[first]
    rows[:, :, 2] = heads[first] if kv else kv_heads[first]
    rows[:, :, 3], rows[:, :, 4:6], rows[:, :, 8] = repeat, 0, rounds
    rows[:, :, 6], rows[:, :, 7], rows[:, :, 9] = at[:, first, 1], at[:, first, 2], at[:, first, 0]
    return rows.reshape(-1, 10)


def _slots(order, block):
    return 0 if order is None else -(-order.n_slots // block) * block


def _heads_of(part, n_heads, pattern_heads):
    """(heads of the call that a part is about, which of the part's each one is, how many the part has)."""
    if part.heads is None:
        return np.arange(n_heads), np.arange(n_heads), n_heads
    wanted = np.arange(n_heads) * pattern_heads // n_heads
    within = np.searchsorted(part.heads, wanted)
    there = np.flatnonzero(np.append(part.heads, -1)[within] == wanted)
    return there, within[there], len(part.heads)


def _bundles(kv_heads, at, most):
    """(first, size) of runs of at most `most` neighbouring heads of one k/v head with equal structure and orders."""
    same = (np.diff(kv_heads) == 0) & (np.diff(at, axis=1) == 0).all(axis=(0, 2))
    run = np.concatenate([[0], np.cumsum(~same)])
    first_of_run = np.searchsorted(run, run)
    number = np.arange(len(kv_heads)) - first_of_run
    first = np.flatnonzero(number % most == 0)
    return first, np.diff(np.append(first, len(kv_heads)))


def _work(part, used_leads):
    """(items, first, counts, groups, first, counts, slots) by lead of the structure; longest items first. Items and
    groups lie where the part does, the rest is on the CPU."""
    xp, block_y, n_rows = namespace(part.indptr), part.block_size[1], part.n_rows
    lines = part.indptr.reshape(-1, n_rows + 1)
    sizes = xp.diff(lines, axis=1)
    longest = _longest(sizes, used_leads, block_y)
    pieces = xp.maximum(-(-sizes // longest), 1)
    cut = pieces > 1
    slots = xp.where(cut, pieces, 0)
    first_slot = xp.cumsum(slots, axis=1) - slots
    n, size = pieces.ravel(), sizes.ravel()
    line = repeated(n)
    number = xp.arange(line.size) - (xp.cumsum(n) - n)[line]
    begin = size[line] * number // n[line]
    length = size[line] * (number + 1) // n[line] - begin
    slot = xp.where(cut.ravel()[line], first_slot.ravel()[line] + number, -1)
    counts = pieces.sum(axis=1)
    items = xp.stack([line % max(n_rows, 1), lines[:, :-1].ravel()[line] + begin, length, slot], axis=1)
    items = items[stable_order(longest - length, longest + 1, counts)].astype(np.int32)
    which = xp.flatnonzero(cut)
    groups = xp.stack([which % max(n_rows, 1), first_slot.ravel()[which], n[which], 0 * which], axis=1)
    n_slots = int(slots.sum(axis=1).max()) if slots.size else 0
    counts, group_counts = on_cpu(counts), on_cpu(cut.sum(axis=1))
    first, first_group = (np.cumsum(x) - x for x in (counts, group_counts))
    return items, first, counts, groups.astype(np.int32), first_group, group_counts, n_slots


def _longest(sizes, used_leads, block_y):
    """Blocks that a piece of a row has at most, of rows with `sizes` blocks (leads, n_rows). Where all pieces nearly
    run at once they are made longer until they do: a few more would take as long again as all others."""
    total = int(on_cpu(sizes.sum(axis=1))[used_leads].sum())
    longest = max(LEAST // block_y, -(-total // SHARES), 1)
    if len(used_leads) * sizes.shape[1] > SHARES:
        return longest
    rows, longer = on_cpu(sizes)[used_leads], longest
    while (-(-rows // longer)).sum() > SHARES:
        longer += 1
    return longer if (-(-rows // longer)).sum() > 7 / 8 * SHARES else longest
