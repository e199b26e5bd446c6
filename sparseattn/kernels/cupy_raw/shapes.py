"""Tiles, threads and shared memory of each kernel by dtype and width: what was measured to be best."""

from __future__ import annotations

BLOCK_Y = 64  # moving slots of a block
WARP, TILE = 32, 16


def row_bytes(bits, bucket):
    """Of a row of a tile in shared memory."""
    return bucket * bits // 8 + 16


def rows(kernel, bits, bucket, kv):
    """Stationary rows that a tile may have, the preferred number first."""
    if kernel == "tile_backward":
        return (64,) if bits == 32 or bucket > 128 else (128, 64)
    return (64,) if bits == 32 and bucket > 128 else (128, 64)
