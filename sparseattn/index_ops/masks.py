"""Bit masks of blocks: uint32 words, low bit first, (n_masks, block_q, ceil(block_k / 32))."""

import numpy as np


def pack(bits):
    """Bool (..., block_q, block_k) to uint32 (..., block_q, words)."""
    octets = np.packbits(bits, axis=-1, bitorder="little")
    words = np.zeros(octets.shape[:-1] + (-(-bits.shape[-1] // 32) * 4,), np.uint8)
    words[..., : octets.shape[-1]] = octets
    return words.view("<u4").astype(np.uint32, copy=False)


def unpack(masks, block_k):
    """The reverse of pack: bool (..., block_q, block_k)."""
    octets = np.ascontiguousarray(masks.astype("<u4", copy=False)).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=block_k, bitorder="little").view(bool)


def full_mask(block_size):
    """The mask of a full block, (1, block_q, words)."""
    return pack(np.ones((1,) + tuple(block_size), bool))


def count_bits(masks):
    """Set bits of each mask, int64 (n_masks,)."""
    return np.bitwise_count(masks).sum(axis=(-2, -1), dtype=np.int64)


def distinct(rows):
    """First index of each distinct row and, for every row, which of them it is. rows: any integers (n, ...)."""
    if len(rows) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    flat = rows.reshape(len(rows), -1)
    weights = np.random.default_rng(flat.shape[1]).integers(1, 2**63, flat.shape[1], np.uint64) | np.uint64(1)
    mixed = np.zeros(len(flat), np.uint64)
    for column, weight in zip(flat.T, weights):
        mixed += column.astype(np.uint64) * weight
        mixed ^= mixed >> np.uint64(29)
    _, first, which = np.unique(mixed, return_index=True, return_inverse=True)
    if not np.array_equal(flat[first[which]], flat):  # two rows met under one number: compare whole rows instead
        _, first, which = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    return first, which.reshape(-1)
