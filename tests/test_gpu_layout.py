"""What GPU kernels read of a pattern: every pair of every query head in exactly one place, whatever the walk."""

import numpy as np
import pytest

import families
from sparseattn import patterns
from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.target import ROW_KEYS, Target
from test_options import ranges_of_single_queries

LAYOUTS = [(1, 1), (2, 1), (2, 2), (6, 2)]  # query heads a pattern head, and of them those that share a k/v head


def target(rows, block_y, most_keys=ROW_KEYS):
    return Target("some", block_y, lambda kernel, *_: (most_keys,) if kernel == "row_backward" else rows, None)


def visited(pattern, structures, kv, batch, n_heads, n_kv_heads):
    """How often each (batch item, query head, query, key) is met, and each stationary row written, by all walks."""
    n_queries, n_keys = pattern.shape
    met = np.zeros((batch, n_heads, n_queries, n_keys), np.int64)
    written = np.zeros((batch, n_kv_heads, n_keys) if kv else (batch, n_heads, n_queries), np.int64)
    for structure in structures:
        launches = layout.walks(pattern, structure, batch, n_heads, n_kv_heads, kv, np.asarray)
        for walk in launches:
            assert walk.n_places == len(walk.places) and walk.n_items == max(walk.places[:, 5])
            for place in walk.places:
                visit_place(met, written, walk, place, kv, n_heads // max(n_kv_heads, 1))
        assert kv or len(launches) <= 1
    return met, written


def visit_place(met, written, walk, place, kv, group):
    (batch, x_head, y_head, repeat, first_item, n_items, x_at, y_at), t = place, walk.tables
    part, is_row = walk.structure.part, walk.structure.is_row
    block_x, block_y = part.block_size
    rows = block_x if is_row else walk.structure.rows
    slots_seen = {}
    for row, first, count, slot in walk.items[first_item:first_item + n_items]:
        x = tokens(t.x_order, x_at, row * rows + np.arange(rows), part.n_q_slots)
        if slot < 0 or slot in walk.groups[:, 1]:
            heads = range(x_head, x_head + repeat) if is_row and not kv else [x_head]
            for head in heads:
                written[batch, head, x[x >= 0]] += 1
        if slot >= 0:
            assert slot not in slots_seen and slot < walk.n_slots
            slots_seen[slot] = row
        for entry in range(first, first + count):
            y = tokens(t.y_order, y_at, t.indices[entry] * block_y + np.arange(block_y), part.n_k_slots)
            kept = mask(t, walk.structure, entry, y_at, block_x, block_y) & (x >= 0)[:, None] & (y >= 0)
            i, j = np.nonzero(kept)
            queries, keys = (y[j], x[i]) if kv else (x[i], y[j])
            query_heads = range(y_head, y_head + repeat) if kv else range(x_head, x_head + (repeat if is_row else 1))
            for head in query_heads:
                assert head // group == (x_head if kv else y_head)
                np.add.at(met, (batch, head, queries, keys), 1)
    for row, first_slot, n, _ in [] if walk.groups is None else walk.groups[slice(*np.cumsum(
            walk.group_at[np.flatnonzero((walk.places == place).all(axis=1))[0]]))]:
        assert all(slots_seen[s] == row for s in range(first_slot, first_slot + n))


def visited_for_values(pattern, sizes, shared, batch, n_heads, n_kv_heads):
    """How often each pair is met by the walks that make the gradient of an array with values that places share: rows by
    that over keys, tiles by one of their own."""
    over_keys = layout.backward_structures(pattern, target(*sizes), 16, 64, 1)
    met, _ = visited(pattern, [s for s in over_keys if s.is_row], 1, batch, n_heads, n_kv_heads)
    for structure in layout.backward_structures(pattern, target(*sizes), 16, 64, 0):
        if structure.is_row:
            continue
        walk = layout.shared_walk(pattern, structure, batch, n_heads, n_kv_heads, shared, np.asarray)
        assert walk.n_groups == len(walk.groups) and walk.n_items == max(walk.groups[:, 5])
        t, part = walk.tables, structure.part
        for first_place, n_places, x_at, y_at, first_item, n_items, _, _ in walk.groups:
            places = walk.places[first_place:first_place + n_places]
            assert n_places > 0 and all(len(set(places[:, i])) == 1 for i in (0, 1) if not shared[i])
            changed = [1, *(places[1:, [0, 2]] != places[:-1, [0, 2]]).any(axis=1)]
            assert np.array_equal(places[:, 2], places[:, 1] * n_kv_heads // n_heads)
            assert np.array_equal(places[1:, 3], changed[1:])
            for row, first, count, _ in walk.items[first_item:first_item + n_items]:
                x = tokens(t.x_order, x_at, row * structure.rows + np.arange(structure.rows), part.n_q_slots)
                for entry in range(first, first + count):
                    y = tokens(t.y_order, y_at, t.indices[entry] * sizes[1] + np.arange(sizes[1]), part.n_k_slots)
                    i, j = np.nonzero(mask(t, structure, entry, y_at, *part.block_size) & (x >= 0)[:, None] & (y >= 0))
                    for batch_item, head in places[:, :2]:
                        np.add.at(met, (batch_item, head, x[i], y[j]), 1)
    return met


def tokens(order, at, slots, n):
    return np.where(slots < n, slots, -1) if order is None else order[at + slots]


def mask(t, structure, entry, y_at, block_x, block_y):
    """Bool (block_x, block_y): the pairs of an entry, checked against live."""
    bits = t.masks[t.mask_ids[entry]]
    if structure.is_row:
        if block_x > 1:
            return (bits & 1).astype(bool)[:, None]
        return np.unpackbits(bits.view(np.uint8), bitorder="little")[:block_y].astype(bool)[None]
    kept = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").astype(bool)
    live = np.unpackbits(t.live[t.mask_ids[entry]].view(np.uint8), bitorder="little").astype(bool)
    assert np.array_equal(kept.any(axis=0), live)
    return kept


@pytest.mark.parametrize("sizes", [((128, 64), 64, 64), ((64,), 64, 64), ((32,), 32, 64), ((16,), 64, 16)], ids=str)
@pytest.mark.parametrize("number", range(len(families.TABLE)), ids=[case.name for case in families.TABLE])
def test_every_pair_once(number, sizes):
    case = families.TABLE[number]
    pattern, dense = case.build(), case.mask
    group, share = LAYOUTS[number % len(LAYOUTS)]
    batch = 2 * dense.shape[0] if number % 2 else dense.shape[0]
    n_heads = group * pattern.n_heads
    n_kv_heads = pattern.n_heads if pattern.n_heads > 1 else n_heads // share
    for kv in (None, 0, 1):
        structures = (layout.forward_structures(pattern, target(*sizes), 16, 64) if kv is None else
                      layout.backward_structures(pattern, target(*sizes), 16, 64, kv))
        assert all(s.part.block_size[0 if kv else 1] <= (sizes[2] if kv else ROW_KEYS) for s in structures if s.is_row)
        met, _ = visited(pattern, structures, kv or 0, batch, n_heads, n_kv_heads)
        whole = dense[np.arange(batch) * dense.shape[0] // batch][:, np.arange(n_heads) * dense.shape[1] // n_heads]
        assert np.array_equal(met, whole), ("forward", "dq", "dk dv")[(kv is not None) + (kv or 0)]
    shared = [(True, True), (True, False), (False, True)][number % 3]
    met = visited_for_values(pattern, sizes, shared, batch, n_heads, n_kv_heads)
    assert np.array_equal(met, whole), "values"


def test_ranges_of_single_queries_are_tiles_in_both_faces():
    pattern, dense = ranges_of_single_queries()
    met = visited_for_values(pattern, ((64,), 64, 64), (True, True), 2, 2, 1)
    assert np.array_equal(met, np.broadcast_to(dense, met.shape))


def test_few_items_share_their_places():
    pattern = patterns.causal(100)
    structure, = layout.backward_structures(pattern, target((64,), 64), 16, 64, 0)
    walk = layout.shared_walk(pattern, structure, 3, 7, 7, (True, True), np.asarray)
    assert walk.n_items == 2 and 4 <= len(walk.groups) == -(-21 // layout.LEAST_PLACES)
    assert walk.groups[:, 1].sum() == 21 and np.ptp(walk.groups[:, 1]) <= 1
    met = visited_for_values(pattern, ((64,), 64, 64), (True, True), 3, 7, 7)
    assert np.array_equal(met, np.broadcast_to(pattern.to_dense(), met.shape))


@pytest.mark.parametrize("kv", [0, 1])
def test_long_rows_are_cut(kv, monkeypatch):
    monkeypatch.setattr(layout, "LEAST", 128)
    monkeypatch.setattr(layout, "SHARES", 40)
    pattern = patterns.causal(700)
    structures = layout.backward_structures(pattern, target((64,), 64), 16, 64, kv)
    met, written = visited(pattern, structures, kv, 1, 2, 2)
    walk, = layout.walks(pattern, structures[0], 1, 2, 2, kv, np.asarray)
    assert walk.n_groups > 0 and walk.n_slots > walk.n_groups
    assert np.array_equal(met[0, 0], pattern.to_dense()[0, 0]) and (written == 1).all()


def test_a_walk_that_covers_writes_every_row():
    for pattern, kv, expected in ((patterns.sliding_window(300, left=20), 0, True),
                                  (patterns.sliding_window(300, left=20), 1, True),
                                  (patterns.strided(300, stride=10), 0, True),
                                  (patterns.global_tokens(300, [3]), 0, False)):
        structures = layout.backward_structures(pattern, target((64,), 64), 16, 64, kv)
        walks = [w for s in structures for w in layout.walks(pattern, s, 2, 4, 2, kv, np.asarray)]
        assert all(w.covers for w in walks) is expected
        for structure in structures:
            _, written = visited(pattern, [structure], kv, 2, 4, 2)
            if all(w.covers for w in layout.walks(pattern, structure, 2, 4, 2, kv, np.asarray)):
                assert (written == 1).all()


@pytest.mark.parametrize("n_places, n_items", [(32, 384), (64, 384), (200, 400), (8, 128)])
def test_pieces_of_few_rows_run_at_once(n_places, n_items):
    """12 pieces each of 32 rows: 13 would be 416, of which 20 run when all others have ended. 200 rows: 396 are many
    more than 200."""
    sizes, leads = np.array([[32768 // 64]]), np.zeros(n_places, np.int64)
    assert -(-512 // layout._longest(sizes, leads, 64)) * n_places == n_items
