"""ETC: a long sequence that sees itself through a window, and a short global one that sees all of it."""

from typing import NamedTuple

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import ranges_pattern
from sparseattn.structure import Order
from sparseattn.xp import on_cpu


class EtcPatterns(NamedTuple):
    """The two softmaxes of ETC; the keys of both are the global tokens, then the long ones."""

    long: Pattern
    globals: Pattern


def etc(n_long, n_global, *, radius, sentence=None, hard=False, block_size=None):
    """Long tokens attend a window and the global tokens; global tokens attend each other and the long tokens.

    Parameters
    ----------
    n_long, n_global : int
        Tokens of the long and of the global sequence.
    radius : int
        Long keys on each side of a long query, self extra.
    sentence : array of int, (n_long,) or (batch, n_long), optional
        The global token that stands for each long token; negative: none. What `hard` needs. An array of CuPy is copied
        to the CPU.
    hard : bool or {"l2g", "g2l"}
        Long queries attend their own global token alone, global queries their own long tokens alone; or one of the two.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    EtcPatterns
        Named tuple (long, globals) of Patterns of shapes (n_long, n_global + n_long) and (n_global, n_global + n_long),
        shared by all heads. Keys are the global tokens, then the long ones.

    Raises
    ------
    TypeError, ValueError
        If `sentence` is missing, has another shape or names a global token that does not exist.

    Notes
    -----
    Long query i attends long key j when ``abs(i - j) <= radius``, and global key g always, or with `hard` when
    ``sentence[i] == g``. Global query g attends every global key, and long key j always, or with `hard` when
    ``sentence[j] == g``. Two softmaxes over concatenated keys and values, as in the released code, which attends
    padding from padding and gives empty rows an average; here they are left out by ``&`` with `padding`, and are 0.
    `sparseattn.variants.etc` runs both softmaxes, with labels. Fixed blocks of b tokens: ``sentence =
    numpy.arange(n_long) // b``. O(n_long + n_global) to build. `density_in_tiles` is 0.81 for the long
    queries with radius 84 and 512 global tokens of 16,384, and 1 for the global ones.

    References
    ----------
    .. [1] Ainslie et al., ETC, arXiv:2004.08483, section 3.
    """
    n, g = checking.count(n_long, "n_long"), checking.count(n_global, "n_global")
    radius, hard = checking.count(radius, "radius"), _hard(hard)
    sentence = _sentence(sentence, n, g, hard)
    place = g + np.arange(n).reshape(1, 1, -1)
    window = ranges_pattern(np.maximum(place - radius, g), place + radius + 1, (n, g + n), block_size)
    l2g = (sentence, sentence + 1) if "l2g" in hard else (0, g)
    own = ranges_pattern(*l2g, (n, g + n), block_size)
    long = Pattern.from_parts(own.parts + window.parts, (n, g + n), own.batch)
    if "g2l" in hard:
        return EtcPatterns(long, _own_members(sentence, n, g, block_size))
    return EtcPatterns(long, ranges_pattern(0, g + n, (g, g + n), block_size))


def _hard(hard):
    """Which of the two directions between the sequences are narrowed."""
    known = {False: (), True: ("l2g", "g2l"), "l2g": ("l2g",), "g2l": ("g2l",)}
    if not isinstance(hard, (bool, str)) or hard not in known:
        raise ValueError(f'hard is {hard!r}; expected False, True, "l2g" or "g2l"')
    return known[hard]


def _sentence(sentence, n, g, hard):
    """int64 (1 | batch, 1, n_long), -1 for none; None where there is none and none is needed."""
    if sentence is None:
        if hard:
            raise ValueError("hard attention needs sentence=: the global token that stands for each long token")
        return None
    sentence = on_cpu(sentence)
    if sentence.dtype.kind not in "iu":
        raise TypeError(f"sentence is an array of {sentence.dtype}; expected whole numbers, global tokens")
    if sentence.ndim not in (1, 2) or sentence.shape[-1] != n:
        raise ValueError(f"sentence has shape {sentence.shape}; expected ({n},) or (batch, {n})")
    if sentence.size and sentence.max() >= g:
        raise ValueError(f"sentence holds {sentence.max()}; expected global tokens from 0 to {g - 1}, or -1 for none")
    return np.maximum(np.atleast_2d(sentence).astype(np.int64), -1)[:, None]


def _own_members(sentence, n, g, block_size):
    """Global queries over all global keys and over the long keys that they stand for, sorted by sentence."""
    batch = sentence.shape[0]
    by_sentence = np.argsort(sentence, axis=2, kind="stable")
    in_order = np.take_along_axis(sentence, by_sentence, 2)
    bounds = np.stack([np.searchsorted(row, np.arange(g + 1)) for row in in_order[:, 0]])[:, None]
    order = None
    if (in_order != sentence).any():
        first = np.broadcast_to(np.arange(g), (batch, 1, g))
        order = Order.listed(np.concatenate([first, g + by_sentence], axis=2), g + n)
    every = ranges_pattern(0, g, (g, g + n), block_size, None, order, batch)
    members = ranges_pattern(g + bounds[..., :-1], g + bounds[..., 1:], (g, g + n), block_size, None, order, batch)
    return Pattern.from_parts(every.parts + members.parts, (g, g + n), batch)
