"""The gradient of a pair, and the writing of gradients. Made as the functions of tiles.py are."""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import ACROSS, COLUMNS
from sparseattn.kernels.numba_cuda.steps import exp_of, is_dropped, place_of
from sparseattn.kernels.numba_cuda.target import cuda
from sparseattn.kernels.numba_cuda.tiles import F32, ONE, ZERO, narrowed


@functools.cache
def write_gradient(shape, bits, fp16):
    """Rows of a gradient times `factor`: to those of `out`, or to the item's partial tile if it has one (at >= 0)."""
    slices, own, columns = shape
    width, narrow = columns * ACROSS, narrowed(bits, fp16)

    @cuda.jit(device=True)
    def write_gradient(sums, factor, heads, tokens, row, col, n_columns, batch, adds, out, carry, at, part):
        for a in range(slices):
            for i in range(own):
                head, token = heads[row + i], tokens[row + i]
                for j in range(columns):
                    column = a * width + col + ACROSS * j
                    x = sums[a, i, j] * factor
                    if column < n_columns:
                        if at >= 0:
                            part[at, row + i, column] = x
                        elif token >= 0:
                            if adds:
                                x += carry[batch, head, token, column]
                            out[batch, head, token, column] = narrow(x)

    return write_gradient


@functools.cache
def weigh(own, kv, shaped, biased, drops):
    """Products s = q k^T and d = dout v^T become what multiplies dout, and the gradients of scores with their bias.

    `heads`, `lse` and `delta` are by query: by row, or by column where keys are stationary. slopes: of softcap.
    """
    place = place_of(biased)

    @cuda.jit(device=True)
    def weigh(s, d, slopes, bits, heads, x_tokens, y_tokens, lse, delta, batch, row, col, scale, softcap, bias, draws):
        for i in range(own):
            for j in range(COLUMNS):
                p, gradient, slope = ZERO, ZERO, ONE
                weight = ZERO
                query = col + ACROSS * j if kv else row + i
                if bits[i] >> j & 1:
                    x, y = x_tokens[row + i], y_tokens[col + ACROSS * j]
                    z = s[i, j] * scale
                    if shaped and softcap != ZERO:
                        u = F32(math.tanh(z / softcap))
                        z, slope = softcap * u, ONE - u * u
                    if biased:
                        z += bias[0][place(bias, batch, heads[query], x, y)]
                    z -= lse[query]
                    # no weight is above 1, whatever rounding says
                    p = exp_of(ZERO if z > ZERO else z)
                    weight, gradient = p, d[i, j]
                    if drops:
                        if is_dropped(draws, batch, heads[query], y if kv else x, x if kv else y):
                            weight, gradient = ZERO, ZERO
                        else:
                            weight, gradient = p * draws[1], gradient * draws[1]
                s[i, j], slopes[i, j] = weight, slope
                d[i, j] = ZERO if p == ZERO else p * (gradient - delta[query])  # also where dP is NaN

    return weigh


@functools.cache
def apply_slopes(own):
    """Gradients of scores before softcap; 0 stays 0."""
    @cuda.jit(device=True)
    def apply_slopes(d, slopes):
        for i in range(own):
            for j in range(COLUMNS):
                d[i, j] = ZERO if d[i, j] == ZERO else d[i, j] * slopes[i, j]

    return apply_slopes


@cuda.jit(device=True)
def whole(x, grain):
    """x as a whole number of grains, so that sums are equal in any order."""
    return np.int64(math.floor(x * grain[0] + 0.5))
