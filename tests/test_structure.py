"""The structure itself: orders, tiles, what is shared, and the cost of building at a million tokens."""

import threading
import time
import tracemalloc

import numpy as np
import pytest

from sparseattn import Pattern, patterns
from sparseattn.index_ops import masks
from sparseattn.structure import BlockCSR, Memo, Order, Ranges

MILLION = 1 << 20


def test_affine_order_lists_its_tokens():
    by_residue = Order.affine((10,), ((0, 3, 1), (0, 4, 3)))
    assert by_residue.listing().ravel().tolist() == [0, 3, 6, 9, 1, 4, 7, -1, 2, 5, 8, -1]
    patches = Order.affine((3, 4), ((0, 2, 2), (1, 2, 2), (0, 2, 1), (1, 2, 1)))
    assert patches.listing().ravel().tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, -1, -1, 10, 11, -1, -1]
    shifted = Order.affine((5,), ((0, 6, 1),), (-2,))
    assert shifted.listing().ravel().tolist() == [-1, -1, 0, 1, 2, 3]
    assert shifted.inverse().ravel().tolist() == [2, 3, 4, 5, -1]


def test_order_identity():
    a, b = Order.affine((8,), ((0, 2, 1), (0, 4, 2))), Order.affine((8,), ((0, 2, 1), (0, 4, 2)))
    assert a == b and hash(a) == hash(b) and a != Order.listed(np.arange(8), 8)
    assert Order.listed([3, 1, -1, 3], 4).repeats and not Order.listed([3, 1, -1, -1], 4).repeats
    assert Order.listed([3, 1, -1, 3], 4).occurrence().tolist() == [[[0, 0, 0, 1]]]


@pytest.mark.parametrize("block_k", [1, 7, 31, 32, 33, 64, 100])
def test_masks_pack_and_unpack(block_k):
    bits = np.random.default_rng(block_k).random((5, 3, block_k)) < 0.5
    packed = masks.pack(bits)
    assert packed.dtype == np.uint32 and packed.shape == (5, 3, -(-block_k // 32))
    assert np.array_equal(masks.unpack(packed, block_k), bits)
    assert np.array_equal(masks.count_bits(packed), bits.sum(axis=(1, 2)))
    assert packed[0, 0, 0] & 1 == bits[0, 0, 0]


def test_distinct_rows():
    rows = np.random.default_rng(0).integers(0, 2, (500, 3, 2))
    first, which = masks.distinct(rows)
    assert len(first) == len(np.unique(rows.reshape(500, -1), axis=0))
    assert np.array_equal(rows[first][which], rows)


def test_regular_patterns_share_masks():
    """One mask for a causal diagonal of any length, two for a window (masks[0] is the full one); whole blocks have
    none."""
    causal, = patterns.causal(1024, block_size=64).tiles()
    assert len(causal.masks) == 2 and causal.n_blocks == 16 * 17 // 2
    ragged, = patterns.causal(1000, block_size=64).tiles()
    assert len(ragged.masks) == 3 and ragged.n_blocks == 16 * 17 // 2
    window, = patterns.sliding_window(1024, left=255, block_size=64).tiles()
    assert len(window.masks) == 3
    dense, = patterns.dense(100, 70, block_size=32).tiles()
    assert dense.mask_ids is None and dense.n_blocks == 4 * 3


def test_ranges_stay_ranges():
    n = 320
    pattern = (patterns.sliding_window(n, left=20) & patterns.padding(np.arange(n)[None] < 250)) | patterns.causal(n)
    assert all(isinstance(p, Ranges) for p in pattern.parts)
    blocks = patterns.bigbird(n, block_size=32) & patterns.causal(n)
    part, = blocks.parts
    assert isinstance(part, BlockCSR)
    assert len(part.masks) == 2  # the diagonal's alone


def test_regular_beats_irregular():
    """In its order a scattered pattern fills its tiles."""
    n = 4096
    assert patterns.strided(n, stride=64, factor="column").density_in_tiles > 0.45
    assert patterns.sliding_window(n, left=63, right=64, dilation=8).density_in_tiles > 0.6
    assert patterns.strided(n, stride=64, factor="column").reblock(32).tiles()[0].n_blocks < n * n // 64 // 32 // 32 * 2


def test_buckets_of_long_numbers():
    """Short ones are sorted another way."""
    classes = np.random.default_rng(0).integers(-1, 5, 90)
    for factor in (7000, 70_000, 2**40):
        assert Pattern.from_buckets(classes * factor, classes * factor) == Pattern.from_buckets(classes, classes)


def test_global_tokens_are_gathered():
    n = 2048
    tiles = patterns.global_tokens(n, np.arange(0, n, 64)).tiles()
    assert sum(t.n_blocks for t in tiles) <= 2 * (n // 32)


def test_a_limit_on_masks_is_named():
    from sparseattn.index_ops import cells

    with pytest.raises(ValueError, match=r"different masks of 64 x 64 pairs.*over the limit"):
        cells.refuse_too_many_masks(10**7, (64, 64))


def test_memo_is_made_once_by_many_threads():
    memo, made = Memo(), []

    def make():
        time.sleep(0.01)
        made.append(1)
        return object()

    found = []
    threads = [threading.Thread(target=lambda: found.append(memo.get("key", make))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(made) == 1 and len(set(map(id, found))) == 1


def _cost(build):
    """Seconds and peak megabytes of a build."""
    start = time.perf_counter()
    build()
    seconds = time.perf_counter() - start
    tracemalloc.start()
    build()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return seconds, peak


def _window():
    return patterns.sliding_window(MILLION, left=256, right=255)


def _with_globals():
    return _window() | patterns.global_tokens(MILLION, np.arange(0, MILLION, MILLION // 64))


def _composed():
    return _with_globals() & patterns.causal(MILLION) & patterns.padding(np.arange(MILLION)[None] < MILLION - 1000)


BARS = [(_window, 0.3, 20), (_with_globals, 0.5, 100), (_composed, 1.0, 100)]


@pytest.mark.parametrize(("build", "seconds", "megabytes"), BARS)
def test_a_million_tokens(build, seconds, megabytes):
    took, peak = min(_cost(build) for _ in range(2))
    assert took < seconds
    assert peak < megabytes


def test_slicing_a_long_pattern_touches_the_kept_blocks():
    pattern = patterns.bigbird(131072, n_random=2)
    took, _ = min(_cost(lambda: pattern[..., 65536:65600, :]) for _ in range(3))
    assert took < 0.1
    part = pattern[..., 65536:65600, :]
    assert np.array_equal(part.to_dense()[0, 0], _rows_of(pattern, 65536, 65600))


def _rows_of(pattern, first, last):
    """Rows of a block pattern in the natural order, read off its structure."""
    part, = pattern.parts
    dense = np.zeros((last - first, pattern.shape[1]), bool)
    for row in range(first // 64, last // 64):
        for col in part.indices[part.indptr[0, 0, row] : part.indptr[0, 0, row + 1]]:
            dense[row * 64 - first : row * 64 + 64 - first, col * 64 : col * 64 + 64] = True
    return dense


def test_check_names_the_broken_rule():
    good = patterns.bigbird(256, block_size=32).parts[0]
    broken = BlockCSR(good.shape, good.block_size, good.indptr, good.indices[::-1].copy())
    with pytest.raises(ValueError, match="part 0 of the pattern: indices must rise within a row"):
        Pattern.from_parts([broken], good.shape).check()
    twice = Pattern((patterns.causal(9).parts[0], patterns.dense(9).parts[0]), (9, 9))
    with pytest.raises(ValueError, match="parts 0 and 1 of the pattern share pairs"):
        twice.check()
    with pytest.raises(ValueError, match="has shape"):
        Pattern((patterns.causal(9).parts[0],), (9, 8)).check()
