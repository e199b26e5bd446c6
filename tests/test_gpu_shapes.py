"""The launch shapes of cupy_raw: they fit into the shared memory of each kind of GPU, and layouts have their rows."""

import itertools

import pytest

from sparseattn import patterns
from sparseattn.kernels.cupy_raw import run, shapes
from sparseattn.kernels.gpu import layout
from sparseattn.kernels.gpu.target import BUCKETS

SMALL, MIDDLE, LARGE = (1024 * kb for kb in (99, 163, 227))  # of compute capability 8.6, 8.9, 12.0; 8.0, 8.7; 9.0, 10.0
KERNELS = "tile_forward", "tile_backward", "row_forward", "row_backward"
# of 99 KB: have no memory for all options, but for most
TIGHT = {("tile_forward", 32, 192), ("tile_backward", 32, 256)}
PLAIN = 1024  # bytes that the text of these declares without options, at most


def all_of(memory, kernel, bits, bucket):
    """(constants, shape) of all tiles of a kernel."""
    for kv in (0, 1):
        for rows in shapes.rows(memory, kernel, bits, bucket, kv):
            constants = {"HEAD_DIM": bucket, "BITS": bits, "ROWS": rows, "KV": kv}
            yield constants, shapes.shape_of(memory, kernel, constants)


@pytest.mark.parametrize("memory", [SMALL, MIDDLE, LARGE])
@pytest.mark.parametrize("kernel", [*KERNELS, "tile_values"])
def test_shapes_fit(kernel, memory):
    for bits, bucket in itertools.product((16, 32), BUCKETS):
        for _, shape in all_of(memory, kernel, bits, bucket):
            is_tight = memory == SMALL and (kernel, bits, bucket) in TIGHT
            assert shape.shared + (PLAIN if is_tight else shape.declared) <= memory
            assert is_tight == (shape.shared + shape.declared > memory)


def blocks(shape):
    """What an SM must have room for."""
    return shape.constants["CTAS"] if shape.constants.get("WARP_ROWS") == 32 else 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_was_measured_is_kept_where_it_fits(kernel):
    """A GPU of 227 KB has the first shape of each kernel; less memory changes only what must."""
    changed = {MIDDLE: 0, SMALL: 0}
    for bits, bucket in itertools.product((16, 32), BUCKETS):
        large = list(all_of(LARGE, kernel, bits, bucket))
        for memory in changed:
            fits = all((shape.shared + shape.declared) * blocks(shape) <= memory for _, shape in large)
            assert (list(all_of(memory, kernel, bits, bucket)) == large) == fits
            changed[memory] += not fits
    backward = kernel == "tile_backward"  # its warps of 32 rows want room for two blocks
    assert 0 < changed[SMALL] < 2 * len(BUCKETS) + backward and changed[MIDDLE] <= 2 + 3 * backward


@pytest.mark.parametrize("kernel, bits, bucket, rows, threads, shared", [
    ("tile_forward", 16, 128, 128, 128, 69632), ("tile_forward", 32, 128, 128, 256, 135168),
    ("tile_backward", 16, 128, 128, 256, 142336), ("tile_backward", 32, 128, 128, 256, 204288),
    ("tile_values", 16, 128, 128, 256, 204800), ("tile_values", 32, 256, 64, 128, 149504),
    ("row_forward", 16, 256, 16, 128, 144384), ("row_backward", 32, 256, 64, 128, 166912)])
def test_shapes_of_large_cards(kernel, bits, bucket, rows, threads, shared):
    constants = {"HEAD_DIM": bucket, "BITS": bits, "ROWS": rows, "KV": 1}
    assert rows in shapes.rows(LARGE, kernel, bits, bucket, 1)
    shape = shapes.shape_of(LARGE, kernel, constants)
    assert (shape.threads, shape.shared) == (threads, shared)


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("bits", [16, 32])
def test_layouts_have_the_rows_of_their_kernels(bits, bucket):
    """Of one pattern on GPUs of each kind, tile by tile and row by row, in both passes."""
    for pattern, is_row in ((patterns.causal(300), False), (patterns.causal(1, 300), True)):
        for memory in (LARGE, SMALL, MIDDLE):
            target = run.target(memory)
            found = [("forward", 0, s) for s in layout.forward_structures(pattern, target, bits, bucket)]
            found += [("backward", kv, s) for kv in (0, 1)
                      for s in layout.backward_structures(pattern, target, bits, bucket, kv)]
            assert len(found) == 3
            for pass_, kv, structure in found:
                kernel = f"{'row' if is_row else 'tile'}_{pass_}"
                assert structure.is_row == is_row
                assert structure.rows in shapes.rows(memory, kernel, bits, bucket, kv)
                assert structure.part.block_size[0] <= structure.rows


def without_room(variants):
    """Those of 16 bits, without what takes memory that few cards have: values of a bias, two blocks for the gradient of
    queries, large tiles for that of an array."""
    return [(name, {key: value for key, value in constants.items() if key != "STAGED"}) for name, constants in variants
            if constants["BITS"] == 16 and name != "tile_values"
            and (name, constants.get("KV")) != ("tile_backward", 0)]


def test_a_small_card_asks_for_kernels_of_its_own():
    large, middle, small = (list(run.variants(memory)) for memory in (LARGE, MIDDLE, SMALL))
    assert without_room(large) == without_room(middle)  # 163 KB are too few for float32 alone
    assert {name for name, _ in small} == {name for name, _ in middle} == {name for name, _ in large}
    assert any(constants.get("ROWS") == 16 for name, constants in small if name == "tile_backward")
