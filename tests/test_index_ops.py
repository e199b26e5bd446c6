"""Sorting, repeating and counting of block structures, alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_pattern

import strict_cupy
from sparseattn.index_ops.algebra import as_blocks, count_blocks
from sparseattn.index_ops.cells import pointers
from sparseattn.index_ops.masks import between, pack, unpack
from sparseattn.index_ops.sorting import repeated, stable_order
from sparseattn.structure import Ranges


@pytest.mark.parametrize("bound", [1, 10, 1 << 16, 70_000, 1 << 31, 1 << 40])
def test_pieces_are_sorted_stably(bound, monkeypatch):
    rng = np.random.default_rng(0)
    numbers = rng.choice(rng.integers(0, bound, 40), 500)  # many are equal
    sizes = np.array([0, 200, 1, 0, 299])
    ends = np.cumsum(sizes)
    wanted = np.concatenate([end - size + np.argsort(numbers[end - size : end], kind="stable")
                             for size, end in zip(sizes, ends)])
    assert np.array_equal(stable_order(numbers, bound, sizes), wanted)
    cupy = strict_cupy.install(monkeypatch)
    assert np.array_equal(stable_order(cupy.asarray(numbers), bound, cupy.asarray(sizes)).get(), wanted)


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [3], [0, 2, 0, 0, 5, 1, 0]], ids=str)
def test_repeated(counts, monkeypatch):
    counts = np.array(counts, np.int64)
    wanted = np.repeat(np.arange(counts.size), counts)
    assert np.array_equal(repeated(counts), wanted)
    assert np.array_equal(repeated(strict_cupy.install(monkeypatch).asarray(counts)).get(), wanted)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 4), (2, 1, 0)])
def test_pointers(shape):
    counts = np.random.default_rng(0).integers(0, 3, shape)
    found, total = pointers(counts), 0
    assert found.dtype == np.int64 and found.shape == (*shape[:2], shape[2] + 1)
    for b, h in np.ndindex(shape[:2]):
        for row in range(shape[2]):
            assert found[b, h, row] == total
            total += counts[b, h, row]
            assert found[b, h, row + 1] == total


@pytest.mark.parametrize("block_k", [1, 7, 32, 40, 64, 100])
def test_bits(block_k):
    bits = np.random.default_rng(0).random((3, 5, block_k)) < 0.5
    for view in (bits, bits.swapaxes(0, 1)):
        words = pack(view)
        assert words.dtype == np.uint32 and words.shape == (*view.shape[:2], -(-block_k // 32))
        assert [int(w) for w in words[0, 0]] == [sum(1 << i for i in range(32) if 32 * n + i < block_k
                                                     and view[0, 0, 32 * n + i]) for n in range(words.shape[2])]
        assert np.array_equal(unpack(words, block_k), view)
    first, last = np.sort(np.random.default_rng(1).integers(0, block_k + 1, (2, 3, 5)), axis=0)
    place = np.arange(block_k)
    wanted = (place >= first[..., None]) & (place < last[..., None])
    assert np.array_equal(between(first, last, -(-block_k // 32)), pack(wanted))


@settings(max_examples=60)
@given(any_pattern(), st.sampled_from([(1, 32), (8, 32), (16, 64), (32, 32), (64, 64), (24, 40)]))
def test_blocks_are_counted_before_they_are_made(pattern, size):
    for part in pattern.parts:
        counted, made = count_blocks(part, size), as_blocks(part, size).n_blocks
        assert counted >= made if isinstance(part, Ranges) or part.q_order or part.k_order else counted == made
