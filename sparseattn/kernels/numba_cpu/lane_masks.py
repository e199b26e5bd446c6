"""Masks turned so that a row of bits belongs to a token slot: many at a time, compiled."""

import numpy as np
from numba import njit

from sparseattn.selection.compiled import turn_bits


@njit(cache=True, nogil=True)
def turn_masks(packed, masks, live):
    """masks (n, block_k, words of 16 bits) uint16 from packed (n, block_q, words of 32 bits) uint32, bits low first.

    live (n, block_k): whether a slot has a bit. Both come as zeros.
    """
    n_masks, block_q, n_words = packed.shape
    block_k, square = masks.shape[1], np.empty(32, np.uint32)
    for m in range(n_masks):
        for word in range(n_words):
            for first in range(0, block_q, 32):
                for i in range(32):
                    square[i] = packed[m, first + i, word] if first + i < block_q else 0
                turn_bits(square)
                for j in range(min(32, block_k - 32 * word)):
                    masks[m, 32 * word + j, first // 16] = square[j] & 0xFFFF
                    if first // 16 + 1 < masks.shape[2]:
                        masks[m, 32 * word + j, first // 16 + 1] = square[j] >> 16
                    live[m, 32 * word + j] |= square[j] != 0
