"""What the families over grids promise: their published properties, dense tiles, cheap building, clear refusals."""

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest

import oracle
import sparseattn as sa
from sparseattn import patterns


def pairs(pattern):
    return pattern.to_dense()[0, 0]


@pytest.mark.parametrize("shape", [(9,), (5, 7), (3, 4, 5), (2, 3, 2, 3)])
def test_axes_in_sequence_reach_all(shape):
    reached = np.eye(math.prod(shape), dtype=int)
    for axis in range(len(shape)):
        assert not reached.all() or math.prod(shape) == 1
        reached = pairs(patterns.axial(shape, axis)).astype(int) @ reached
    assert (reached == 1).all()


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5), (70, 3)])
def test_a_union_of_axes_counts_the_token_once(shape):
    union = patterns.axial(shape, range(len(shape))).check()
    assert union.nnz == math.prod(shape) * (sum(shape) - len(shape) + 1)
    apart = [patterns.axial(shape, axis) for axis in range(len(shape))]
    assert np.array_equal(pairs(union), np.any([pairs(p) for p in apart], axis=0))


def test_the_last_axis_lies_in_the_natural_order():
    (part,) = patterns.axial((6, 64), -1).parts
    assert part.q_order is None and part.k_order is None
    (part,) = patterns.axial((64, 6), 0).parts
    assert part.q_order.is_affine and part.q_order == part.k_order


def rolled(shape, window, shift):
    """Swin as published: roll, cut into windows, number the regions that come from one side, mask the rest."""
    windows, regions = np.zeros(shape, int), np.zeros(shape, int)
    for axis, (length, w, s) in enumerate(zip(shape, window, shift)):
        place = np.arange(length)
        spread = [-1 if a == axis else 1 for a in range(len(shape))]
        region = (place >= length - w).astype(int) + (place >= length - s) if s else 0 * place
        windows, regions = windows * length + (place // w).reshape(spread), regions * 3 + region.reshape(spread)
    # token t of the grid sits at t - shift of the rolled one
    back = [np.roll(x, shift, range(len(shape))).ravel() for x in (windows, regions)]
    same = [x[:, None] == x for x in back]
    return np.where(same[1], 0, -100.0), same[0]


@pytest.mark.parametrize("shape, window, shift", [
    ((8, 12), (4, 4), (2, 2)), ((12, 12), (4, 4), (1, 3)), ((14, 21), (7, 7), (3, 3)), ((6, 10), (3, 5), (0, 2)),
    ((24,), (8,), (4,)), ((4, 6, 8), (2, 3, 4), (1, 1, 2)),
])
def test_windows_are_those_of_the_rolled_construction(shape, window, shift):
    added, together = rolled(shape, window, shift)
    pattern = patterns.swin(shape, window=window, shift=shift).check()
    assert np.array_equal(pairs(pattern), together & (added == 0))
    padded = patterns.swin(tuple(n - 1 for n in shape), window=window, shift=shift, pad="attend")
    assert padded.same_pairs(pattern)


def test_a_window_that_covers_an_axis_is_clipped_and_not_shifted():
    assert patterns.swin((5, 6), window=8, shift=4).same_pairs(patterns.dense(30))
    assert patterns.swin((5, 16), window=8, shift=4).same_pairs(patterns.swin((5, 16), window=(5, 8), shift=(0, 4)))
    assert patterns.swin((8, 8), window=8, shift=3, pad="attend").same_pairs(patterns.dense(64))


def test_windows_hold_their_squares():
    sides = [2] + [4] * 6 + [2]  # 28 tokens shifted by 2
    assert patterns.swin((28, 28), window=4, shift=2).nnz == sum(a * a * b * b for a in sides for b in sides)


@pytest.mark.parametrize("shape, window", [((8, 12), 4), ((39, 26), 13), ((50,), 7), ((4, 30), 15), ((9, 9, 9), 3)])
@pytest.mark.parametrize("block_size", [16, (32, 8), 64])
def test_tiles_change_no_pair(shape, window, block_size):
    for build in (lambda size: patterns.swin(shape, window=window, shift=1, block_size=size),
                  lambda size: patterns.swin(shape, window=window, block_size=size),
                  lambda size: patterns.axial(shape, 0, block_size=size),
                  lambda size: patterns.neighborhood(shape, kernel_size=3, block_size=size)):
        tiled = build(block_size).check()
        assert {p.block_size for p in tiled.tiles()} == {(16, 16) if block_size == 16 else
                                                         (64, 64) if block_size == 64 else block_size}
        assert np.array_equal(pairs(tiled), pairs(build(None)))


@pytest.mark.parametrize("kernel, stride, dilation", [(5, 1, 1), (6, 1, 1), (7, 3, 1), (4, 2, 3), (5, 5, 2)])
def test_every_query_sees_as_many_keys(kernel, stride, dilation):
    for shape in ((31,), (23, 30)):
        near = pairs(patterns.neighborhood(shape, kernel_size=kernel, stride=stride, dilation=dilation))
        assert (near.sum(1) == kernel ** len(shape)).all()
    cut = pairs(patterns.sliding_window(31, left=kernel // 2, right=(kernel - 1) // 2))
    assert (cut.sum(1) < kernel).any()


def test_an_even_kernel_has_one_more_key_before():
    near = pairs(patterns.neighborhood((30,), kernel_size=6))
    assert np.flatnonzero(near[15]).tolist() == list(range(12, 18))


def test_a_causal_axis_cuts_at_its_start_and_within_strides():
    near = pairs(patterns.neighborhood((40,), kernel_size=8, stride=4, is_causal=True))
    counts = near.sum(1)
    places_to_the_end = 3 - np.arange(40) % 4
    assert (counts[8:] == (8 - places_to_the_end)[8:]).all()
    assert (counts[:4] == np.arange(1, 5)).all()
    assert np.array_equal(near, near & np.tri(40, dtype=bool))


@pytest.mark.parametrize("shape, side", [((12, 20), 4), ((21,), 7), ((4, 6, 8), 2)])
def test_a_stride_of_the_kernel_gives_windows(shape, side):
    assert patterns.neighborhood(shape, kernel_size=side, stride=side).same_pairs(patterns.swin(shape, window=side))


def test_the_last_window_of_such_strides_is_moved_inside():
    near = pairs(patterns.neighborhood((10,), kernel_size=4, stride=4))
    assert near[8:, 6:].all() and near[4:8, 4:8].all() and near.sum() == 40


def test_the_largest_kernels():
    assert patterns.neighborhood((6, 7), kernel_size=(6, 7)).same_pairs(patterns.dense(42))
    assert patterns.neighborhood((42,), kernel_size=42, is_causal=True).same_pairs(patterns.causal(42))
    assert patterns.neighborhood((1, 1), kernel_size=1).same_pairs(patterns.dense(1))


def test_dilation_groups_have_their_own_length():
    near = pairs(patterns.neighborhood((11,), kernel_size=3, dilation=3))
    # groups 0, 3, 6, 9; 1, 4, 7, 10; 2, 5, 8
    assert [np.flatnonzero(near[i]).tolist() for i in (9, 10, 8, 2)] == [[3, 6, 9], [4, 7, 10], [2, 5, 8], [2, 5, 8]]


def test_random_neighborhoods():
    rng = np.random.default_rng(0)
    for number in range(60):
        shape = tuple(map(int, rng.integers(1, (90, 22, 9)[number % 3], number % 3 + 1)))
        kernel = [int(rng.integers(1, length + 1)) for length in shape]
        options = {"kernel_size": kernel, "stride": [int(rng.integers(1, k + 1)) for k in kernel],
                   "dilation": [int(rng.integers(1, length // k + 1)) for length, k in zip(shape, kernel)],
                   "is_causal": [bool(rng.integers(2)) for _ in shape]}
        pattern = patterns.neighborhood(shape, **options).check()
        mask = oracle.neighborhood(shape, **options)[0, 0]
        assert np.array_equal(pairs(pattern), mask) and pattern.nnz == mask.sum(), (shape, options)


def test_neighborhoods_combine_with_other_patterns():
    near, rows = patterns.neighborhood((12, 14), kernel_size=5), patterns.axial((12, 14), 1)
    assert np.array_equal(pairs(near | rows), pairs(near) | pairs(rows))
    assert np.array_equal(pairs(near & patterns.causal(168)), pairs(near) & np.tri(168, dtype=bool))
    assert np.array_equal(pairs(near.T), pairs(near).T)
    assert np.array_equal(near[:, :, 30:100].to_dense()[0, 0], pairs(near)[30:100])


DENSITIES = [
    (lambda: patterns.axial((128, 128), 0), 1.0), (lambda: patterns.axial((126, 50), 0), 1.0),
    (lambda: patterns.axial((128, 128), [0, 1]), 0.99), (lambda: patterns.axial((127, 67), 0), 0.95),
    (lambda: patterns.axial((67, 127), 1), 0.95), (lambda: patterns.axial((20, 1023), 1), 0.95),
    (lambda: patterns.axial((20, 1024 + 7), 1), 0.89), (lambda: patterns.axial((512, 20), 0, causal_axes=0), 0.94),
    (lambda: patterns.axial((128, 128), 0, causal_axes=0), 0.8), (lambda: patterns.swin((128, 128), window=8), 1.0),
    (lambda: patterns.swin((96, 96), window=3), 1.0), (lambda: patterns.swin((96, 96), window=12), 1.0),
    (lambda: patterns.swin((126, 126), window=7), 1.0), (lambda: patterns.swin((128, 128), window=16, shift=8), 1.0),
    (lambda: patterns.swin((128, 128), window=8, shift=4), 0.93), (lambda: patterns.swin((130, 130), window=13), 0.97),
    (lambda: patterns.neighborhood((64, 64), kernel_size=13), 0.65),
    (lambda: patterns.neighborhood((64, 64), kernel_size=7), 0.38),
    (lambda: patterns.neighborhood((64, 64), kernel_size=13, dilation=4), 0.75),
    (lambda: patterns.neighborhood((16, 32, 32), kernel_size=5), 0.43),
    (lambda: patterns.neighborhood((16384,), kernel_size=257, dilation=8), 0.89),
]


@pytest.mark.parametrize("build, least", DENSITIES)
def test_density_in_tiles(build, least):
    assert build().density_in_tiles >= least


@pytest.mark.parametrize("build", [
    lambda: patterns.axial((512, 256), 0), lambda: patterns.axial((512, 256), [0, 1], causal_axes=0),
    lambda: patterns.swin((512, 256), window=8), lambda: patterns.swin((512, 256), window=7, shift=3),
    lambda: patterns.neighborhood((512, 256), kernel_size=13),
    lambda: patterns.neighborhood((131072,), kernel_size=257),
    lambda: patterns.neighborhood((512, 256), kernel_size=7, dilation=8),
])
def test_large_grids_are_cheap(build):
    start = time.process_time()
    build()
    assert time.process_time() - start < 1
    tracemalloc.start()
    try:
        build()
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


def test_masks_are_shared():
    small, large = (patterns.neighborhood((side, side), kernel_size=13).parts[0] for side in (96, 192))
    assert len(small.masks) == len(large.masks) <= 100 and large.n_blocks > 3 * small.n_blocks


GRADIENTS = ("dqs", "dks", "dvs")


def test_the_sum_of_axes_is_that_of_single_calls(backend):
    shape = (5, 6, 7)
    rng = np.random.default_rng(0)
    qs, ks, vs = ([rng.standard_normal((2, 4 if i == 0 else 2, 210, 8)) for _ in shape] for i in range(3))
    dout = rng.standard_normal((2, 4, 210, 8))
    out, vjp = sa.variants.axial_sum(qs, ks, vs, shape, causal_axes=[1], scale=0.5, backend=backend)
    masks = [oracle.axial(shape, axis, causal_axes=[1] if axis == 1 else ()) for axis in range(3)]
    assert np.allclose(out, sum(oracle.attention(*x, 0.5)[0] for x in zip(qs, ks, vs, masks)), atol=1e-12)
    gradients = vjp(dout)
    assert gradients._fields == GRADIENTS
    for axis, call in enumerate(zip(qs, ks, vs, masks)):
        for got, exact in zip(gradients, oracle.gradients(dout, *call, 0.5)):
            assert np.allclose(got[axis], exact, atol=1e-12)


def test_the_sum_of_axes_keeps_dtype_and_axes(backend):
    x = [np.random.default_rng(0).standard_normal((12, 4)).astype(np.float16)] * 2
    out, vjp = sa.variants.axial_sum(x, x, x, (3, 4), backend=backend)
    assert out.shape == (12, 4) and out.dtype == np.float16
    assert all(g.dtype == np.float16 and g.shape == (12, 4) for g in itertools.chain(*vjp(out)))


X = np.zeros((2, 12, 4), np.float32)

REFUSED = [
    (lambda: patterns.axial(12, 0), TypeError, r"shape is 12; expected the lengths of the grid's axes"),
    (lambda: patterns.axial((3, 0), 0), ValueError, r"shape\[1\] is 0; expected at least 1"),
    (lambda: patterns.axial((1 << 16, 1 << 16), 0), ValueError, r"has 4294967296 tokens; expected fewer than 2\*\*31"),
    (lambda: patterns.axial((3, 4), 2), ValueError, "axes holds 2; expected axes from 0 to 1 of a grid with 2"),
    (lambda: patterns.axial((3, 4), [0, -2]), ValueError, r"axes \(0, -2\) names an axis twice; list each once"),
    (lambda: patterns.axial((3, 4), []), ValueError, "axes is empty; expected at least one axis"),
    (lambda: patterns.axial((3, 4), 1.0), TypeError, "axes is 1.0; expected an axis of the grid, or a list of axes"),
    (lambda: patterns.axial((3, 4), 0, causal_axes=1), ValueError,
     r"causal_axes \(1,\) are not all among axes \(0,\); leave the others out"),
    (lambda: patterns.swin((8, 8), window=0), ValueError, "window is 0; expected at least 1"),
    (lambda: patterns.swin((8, 8), window=4, shift=4), ValueError,
     "shift is 4 along axis 0, where the window is 4; expected 0 <= shift < window"),
    (lambda: patterns.swin((8, 8), window=4, shift=-1), ValueError, "shift is -1; expected at least 0"),
    (lambda: patterns.swin((8, 8), window=4, shift=None), TypeError, "shift is None; expected a whole number"),
    (lambda: patterns.swin((8, 8), window=(4, 4, 4)), ValueError, "window has 3 values but the grid 2 axes; give one"),
    (lambda: patterns.swin((8, 8), window=4, pad="wrap"), ValueError, "pad is 'wrap'; expected \"drop\" or \"attend\""),
    (lambda: patterns.neighborhood((8, 9), kernel_size=3, dilation=(1, 4)), ValueError,
     "kernel_size 3 with dilation 4 needs 12 tokens along axis 1, which has 9; expected kernel_size"),
    (lambda: patterns.neighborhood((8, 9), kernel_size=(5, 3), stride=4), ValueError,
     "stride is 4 along axis 1, where kernel_size is 3; expected stride <= kernel_size"),
    (lambda: patterns.neighborhood((8,), kernel_size=3, is_causal=1), TypeError, "is_causal is 1; expected True or"),
    (lambda: patterns.neighborhood((8,), kernel_size=3.0), TypeError, "kernel_size is float; expected a whole number"),
    (lambda: patterns.neighborhood((8, 8), kernel_size=3, block_size=0), ValueError, "block_size is 0; expected sides"),
    (lambda: sa.variants.axial_sum(X, [X, X], [X, X], (3, 4)), TypeError, "qs is a ndarray; expected a list of arrays"),
    (lambda: sa.variants.axial_sum([X], [X, X], [X, X], (3, 4)), ValueError,
     "qs holds 1 arrays but the grid has 2 axes; give one for each"),
    (lambda: sa.variants.axial_sum([X, X], [X, X], [X, X[..., :2]], (3, 4)), ValueError,
     r"the axes 0 and 1 give results of shapes \(2, 12, 4\) and \(2, 12, 2\), which cannot be added"),
    (lambda: sa.variants.axial_sum(*[[X, X.astype(np.float64)]] * 3, (3, 4)), TypeError,
     r"qs\[1\] has dtype float64 but qs\[0\] float32; compute all axes in one dtype"),
    (lambda: sa.variants.axial_sum([X, X], [X, X], [X, X], (3, 5)), ValueError, "15"),
]


@pytest.mark.parametrize("call, error, message", REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
