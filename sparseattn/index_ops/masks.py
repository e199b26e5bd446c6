"""Bit masks of blocks: uint32 words, low bit first, (n_masks, block_q, ceil(block_k / 32)). Of either library."""

from functools import lru_cache

import numpy as np

from sparseattn.xp import library, namespace

PIECE = {"numpy": 1 << 15, "cupy": 1 << 24}  # numbers mixed at a time: they stay in a CPU's cache
_BELOW = np.array([(1 << n) - 1 for n in range(33)], np.uint32)  # the n lowest bits


def pack(bits):
    """Bool (..., block_q, block_k) to uint32 (..., block_q, words)."""
    block_k, xp = bits.shape[-1], namespace(bits)
    if bits.size >> 31 and xp is not np:  # CuPy counts them in 32 bits
        half = len(bits) // 2
        return xp.concatenate([pack(bits[:half]), pack(bits[half:])])
    if block_k % 32:
        whole = xp.zeros((*bits.shape[:-1], block_k + -block_k % 32), bool)
        whole[..., :block_k] = bits
        bits = whole
    octets = xp.packbits(bits.reshape(-1), bitorder="little")  # row by row it takes several times as long
    return octets.view("<u4").astype(np.uint32, copy=False).reshape(*bits.shape[:-1], bits.shape[-1] // 32)


def unpack(masks, block_k):
    """The reverse of pack: bool (..., block_q, block_k)."""
    xp = namespace(masks)
    octets = xp.ascontiguousarray(masks.astype("<u4", copy=False)).reshape(-1).view(np.uint8)
    bits = xp.unpackbits(octets, bitorder="little").view(bool)
    return bits.reshape(*masks.shape[:-1], 32 * masks.shape[-1])[..., :block_k]


def between(first, last, n_words):
    """Words, uint32 (..., n_words), whose bits from `first` to `last` - 1 are set; first <= last, int (...)."""
    xp = namespace(first)
    at, below = 32 * xp.arange(n_words, dtype=first.dtype), xp.asarray(_BELOW)
    return below[xp.clip(last[..., None] - at, 0, 32)] & ~below[xp.clip(first[..., None] - at, 0, 32)]


def full_mask(block_size, xp=np):
    """The mask of a full block, (1, block_q, words), in the library `xp`."""
    block_q, block_k = block_size
    mask = xp.full((1, block_q, -(-block_k // 32)), 0xFFFFFFFF, np.uint32)
    if block_k % 32:
        mask[:, :, -1] = (1 << block_k % 32) - 1
    return mask


def any_query(masks):
    """The keys that some query of each mask attends, uint32 (n_masks, words)."""
    while masks.shape[1] > 1:
        half, odd = divmod(masks.shape[1], 2)
        both = masks[:, :half] | masks[:, half : 2 * half]
        if odd:
            both[:, 0] |= masks[:, -1]
        masks = both
    return masks[:, 0]


def count_bits(masks):
    """Set bits of each mask, int64 (n_masks,)."""
    return np.bitwise_count(masks).sum(axis=(-2, -1), dtype=np.int64)


def distinct(rows):
    """First index of each distinct row and, for every row, which of them it is. rows: any integers (n, ...).

    They come in an order that follows from what they hold, not from where they stood.
    """
    xp = namespace(rows)
    if len(rows) < 2:
        return xp.arange(len(rows)), xp.zeros(len(rows), np.int64)
    flat = rows.reshape(len(rows), -1)
    first, which = _numbered(_mixed(flat))
    if first.size < len(flat) and not xp.array_equal(flat[first[which]], flat):
        # two rows met under one number: compare whole rows instead
        _, first, which = xp.unique(flat, axis=0, return_index=True, return_inverse=True)
    return first, which.reshape(-1)


def shared(masks):
    """As `distinct`, where equal rows may stay beside each other: on a GPU they do, to compare them takes longer than
    it saves."""
    if library(masks) == "cupy":
        own = namespace(masks).arange(len(masks))
        return own, own
    return distinct(masks)


def _mixed(flat):
    """A number for each row (n, columns), uint64, hardly ever the same for different ones."""
    xp = namespace(flat)
    weights, mixed = xp.asarray(_weights(flat.shape[1])), xp.empty(len(flat), np.uint64)
    step = max(PIECE[library(flat)] // max(flat.shape[1], 1), 1)
    for at in range(0, len(flat), step):
        piece = flat[at : at + step].astype(np.uint64) * weights
        piece ^= piece >> np.uint64(29)
        mixed[at : at + step] = piece.sum(axis=1)
    return mixed


@lru_cache(maxsize=64)
def _weights(n):
    """Odd numbers to mix `n` columns with."""
    return np.random.default_rng(n).integers(1, 2**63, n, np.uint64) | np.uint64(1)


def _numbered(values):
    """np.unique's index and inverse, which on a few numbers takes several times as long."""
    xp = namespace(values)
    order = xp.argsort(values, kind="stable")
    ordered = values[order]
    new = xp.ones(values.size, bool)
    new[1:] = ordered[1:] != ordered[:-1]
    which = xp.empty(values.size, np.int64)
    which[order] = new.cumsum() - 1
    return order[new], which
