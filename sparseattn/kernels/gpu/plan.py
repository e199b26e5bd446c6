"""The launches of a kind of call: made at the first one, kept on the pattern, run again with other arrays."""

from __future__ import annotations

import math

from sparseattn.structure import Array
from sparseattn.xp import address, gpu_of

MOST = 64  # plans that a pattern keeps
MOST_PLACES = 65535  # of a launch: what a grid has along y


class Plan:
    """Launches in order. An argument that is a string names an array, or a number, of the call."""

    def __init__(self, target, arrays):
        self.target = target
        self.steps = {name: _steps(x) for name, x in arrays.items()}  # between neighbours along all axes but the last
        self.launches = []
        self.scratch = []  # name, shape, whether it begins as zeros; float32
        self.copied = ()  # names of arrays that kernels cannot read or write as they lie
        self.begins = ()  # what must be made or filled before the first launch

    def memory(self, name, shape, zeros=False):
        """Name scratch memory of a shape; None where it is empty."""
        if not all(shape):
            return None
        self.scratch.append((name, tuple(shape), zeros))
        self.steps[name] = contiguous_steps(shape)
        return name

    def launch(self, kernel, constants, grid, arguments):
        """Add the launches over a grid (of a place, places or groups of them); their last argument is the first one."""
        across, n_places = grid
        for first in range(0, n_places, MOST_PLACES):
            self.launch_once(kernel, constants, (across, min(n_places - first, MOST_PLACES)), (*arguments, first))

    def launch_once(self, kernel, constants, grid, arguments):
        """Add a launch."""
        self.launches.append(self.target.bind(kernel, constants, grid, arguments, self.steps))

    def run(self, xp, arrays: dict[str, Array | int]):
        """Launch all on the current stream, with these arrays and new scratch memory."""
        for name, shape, zeros in self.scratch:
            arrays[name] = (xp.zeros if zeros else xp.empty)(shape, xp.float32)
        for launch in self.launches:
            launch(arrays)


def plan_of(pattern, kind, arrays, make) -> Plan:
    """The plan of a kind of call, on arrays laid out like these."""
    gpu = gpu_of(arrays["q"])  # a pattern without parts is the same on every GPU, its kernels are not
    key = kind, gpu, tuple([(x.shape, x.strides, x.dtype, address(x) % 16) for x in arrays.values()])
    kept = pattern.memo.get("gpu plans", dict)
    plan = kept.get(key)
    if plan is None:
        if len(kept) >= MOST:
            kept.clear()
        plan = kept[key] = make()
    return plan


def contiguous_steps(shape):
    """The numbers between neighbours along each axis but the last."""
    return tuple(math.prod(shape[i + 1:]) for i in range(len(shape) - 1))


def _steps(x):
    return tuple([step // x.itemsize for step in x.strides[:-1]])
