"""The launch table: which constants, threads and shared memory each kernel is launched with."""

from __future__ import annotations

import functools
import itertools

from sparseattn.kernels.cupy_raw import shapes
from sparseattn.kernels.gpu.summed import has_walk, of_walk
from sparseattn.kernels.gpu.target import BUCKETS, Target
from sparseattn.kernels.gpu.terms import BY_CLIPPED, BY_CODE, BY_LABEL, BY_SUM, BY_TABLE, BY_VALUE, OWN_VALUE

SHAPING = "SHAPED", "SOFTCAP", "BIAS", "CODE64", "DROPOUT"
# the constants that each file reads, beside those of its shape
CONSTANTS = {
    "tile_forward": ("HEAD_DIM", "BITS", "FP16", "WIDE", "ROWS", *SHAPING),
    "row_forward": ("HEAD_DIM", "BITS", "FP16", "WIDE", *SHAPING),
    "merge": ("HEAD_DIM", "BITS", "FP16", "WIDE", "BY_HEADS"),
    "row_dots": ("HEAD_DIM", "BITS", "FP16", "WIDE"),
    "longest": ("HEAD_DIM", "BITS", "FP16", "WIDE"),
    "grain": ("HEAD_DIM", "BITS"),
    "deltas": ("HEAD_DIM", "BITS"),
    "tile_backward": ("HEAD_DIM", "BITS", "FP16", "WIDE", "ROWS", "KV", "OUT32", "BIAS_GRAD", "ROW_SUMS", *SHAPING),
    "tile_values": ("HEAD_DIM", "BITS", "FP16", "WIDE", "ROWS", "BIAS_GRAD", *SHAPING),
    "row_backward": ("HEAD_DIM", "BITS", "FP16", "WIDE", "ROWS", "KV", "OUT32", "BIAS_GRAD", "ROW_SUMS", *SHAPING),
    "sum_slots": ("HEAD_DIM", "BITS", "FP16", "WIDE", "OUT32", "BY_HEADS"),
}


def bind(memory, name, constants, grid, arguments, steps):
    """The function of the arrays of a call that launches a kernel on the current stream of the current device, which
    allows a thread block `memory` bytes of shared memory."""
    from sparseattn.kernels.cupy_raw import module

    own = tuple([constants[key] for key in CONSTANTS[name]])
    made, threads, shared, slices = _prepared(memory, name, own, module.current_device())
    return module.Launch(made, _whole_grid(name, grid, threads, slices), threads, shared, arguments, steps)


@functools.cache
def _prepared(memory, name, values, device):
    """(kernel, threads, bytes of shared memory, slices of the output columns)."""
    from sparseattn.kernels.cupy_raw import module

    constants = dict(zip(CONSTANTS[name], values))
    shape = shapes.shape_of(memory, name, constants)
    made = module.kernel(name, tuple({**constants, **shape.constants}.items()), shape.shared, device)
    return made, shape.threads, shape.shared, shape.slices


def _whole_grid(name, grid, threads, slices):
    if name in ("row_dots", "longest"):
        return -(-grid[0] // (threads // 2)), grid[1], 1
    if name == "deltas":
        return -(-grid[0] // threads), grid[1], 1
    return grid[0], grid[1], slices


def variants(memory):
    """(file, all constants) of every kernel that a call can ask for where a thread block is allowed so many bytes."""
    for name, keys in CONSTANTS.items():
        for values in itertools.product(*(_choices(key) for key in keys)):
            constants = dict(zip(keys, values))
            if _is_asked_for(memory, name, constants):
                yield name, {**constants, **shapes.shape_of(memory, name, constants).constants}


def _choices(key):
    several = {"HEAD_DIM": BUCKETS, "BITS": (16, 32), "BIAS": range(5), "BIAS_GRAD": range(4),
               "ROWS": (16, 32, 64, 128)}
    return several.get(key, (0, 1))


def _is_asked_for(memory, name, c):
    """Whether a launch can have these constants together."""
    if c["BITS"] == 32 and (c.get("FP16") or not c.get("OUT32", 1)):
        return False
    if "ROWS" in c and c["ROWS"] not in shapes.rows(memory, name, c["BITS"], c["HEAD_DIM"], c.get("KV", 0)):
        return False
    if (c.get("BIAS") or c.get("SOFTCAP")) and not c["SHAPED"]:
        return False
    if c.get("CODE64") and c["BIAS"] not in (BY_CODE, BY_LABEL) or c.get("ROW_SUMS") and c["KV"]:
        return False
    if name == "tile_values":
        return has_walk(c["BIAS"], c["BIAS_GRAD"])
    if not name.endswith("backward"):
        return True
    sums = {0: (0,), BY_CODE: (OWN_VALUE, BY_VALUE), BY_LABEL: (BY_VALUE,), BY_TABLE: (BY_SUM,), BY_CLIPPED: (BY_SUM,)}
    found = {of_walk(c["BIAS"], gradient, c["KV"], name == "row_backward") for gradient in sums[c["BIAS"]]}
    return c["BIAS_GRAD"] in found and (c["KV"] or c["ROW_SUMS"] or c["BIAS"] not in (BY_CODE, BY_LABEL))


@functools.cache
def target(memory):
    """The kernels for GPUs that allow a thread block so many bytes of shared memory: layouts and launches agree."""
    return Target("cupy_raw", shapes.BLOCK_Y, functools.partial(shapes.rows, memory), functools.partial(bind, memory))
