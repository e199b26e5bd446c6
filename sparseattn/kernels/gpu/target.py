"""What a backend tells the shared launches about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

BUCKETS = (32, 64, 96, 128, 192, 256)  # columns of a tile in shared memory; a head_dim takes the next larger
ROW = 16  # rows of the tile of a row kernel: query heads that share a row, or keys of a block
ROW_KEYS = 64  # keys a block of a row kernel has at most


class Target(NamedTuple):
    """A backend's kernels.

    `rows(kernel, bits, bucket, kv)` are the stationary rows that a kernel's tiles may have, the preferred number first;
    a call's structures are made for them.
    `bind(kernel, constants, grid, arguments, steps)` gives the function that launches on the current stream. Where an
    argument is a name, it takes the array from the dictionary that the function is given; ``steps[name]`` are the
    numbers between its neighbours along each axis but the last, of every array that will have this name.
    """

    name: str
    block_y: int  # moving slots of a block of the tile kernels
    rows: Callable[..., tuple[int, ...]]
    bind: Callable[..., Callable]


def bucket_of(head_dim: int, v_dim: int) -> int:
    """The columns of a tile that holds both."""
    return next(size for size in BUCKETS if size >= max(head_dim, v_dim))
