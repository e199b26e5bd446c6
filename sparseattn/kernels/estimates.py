"""What every backend says of a call's cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PartEstimate:
    """One part of a pattern, or one walk over it, in a call: all batch items and heads together."""

    kernel: str  # file name
    block_size: tuple[int, int]
    order: str  # how tokens are read
    n_blocks: int
    stored_pairs: int
    kept_pairs: int
    flops: int
    bytes: int
    seconds: float | None = None  # on one thread; None: the backend has no model of time


@dataclass(frozen=True)
class Estimate:
    """A call: its parts, and the time predicted for this machine where the backend has a model of it."""

    parts: tuple[PartEstimate, ...]
    flops: int
    bytes: int
    n_threads: int | None = None
    seconds: float | None = None
