"""The six block layouts of DeepSpeed's sparse attention, block for block."""

import inspect
import random

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import at_least_0, positive


def deepspeed_layout(name, n_tokens, *, n_heads=1, block_size=16, different_layout_per_head=False, seed=0, **options):
    """One of DeepSpeed's sparsity configurations, with its own option names.

    Parameters
    ----------
    name : {"dense", "fixed", "variable", "bigbird", "bslongformer", "local_sliding_window"}
        The configuration, ``name`` in any case, with or without ``SparsityConfig`` behind it.
    n_tokens : int
        Tokens; the last block may be short, which DeepSpeed refuses.
    n_heads : int
        ``num_heads`` there.
    block_size : int
        ``block`` there. Whole blocks are attended, so it is part of the meaning.
    different_layout_per_head : bool
        Whether each head has a layout of its own; else that of the first head serves all.
    seed : int
        For random blocks: those of ``random.seed(seed)`` before DeepSpeed makes its layout.
    **options
        As there, with the same defaults. Of "fixed": num_local_blocks, num_global_blocks, attention,
        horizontal_global_attention, num_different_global_patterns. Of "variable": num_random_blocks,
        local_window_blocks, global_block_indices, global_block_end_indices, attention, horizontal_global_attention. Of
        "bigbird": num_random_blocks, num_sliding_window_blocks, num_global_blocks, attention. Of "bslongformer":
        num_sliding_window_blocks, global_block_indices, global_block_end_indices, attention. Of "local_sliding_window":
        num_sliding_window_blocks, attention.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), one per head where layouts differ.

    Raises
    ------
    TypeError, ValueError
        The configuration has no such option, or its blocks do not fit the sequence.

    Notes
    -----
    Query i attends key j when the layout holds the block of their numbers. As released, a unidirectional layout is
    not causal inside its diagonal blocks, and some configurations keep blocks above them; ``pattern &
    causal(n_tokens)`` makes it causal. An even window counts one block more. DeepSpeed's module builds its layout for
    ``max_seq_length`` and cuts it: ``pattern[:, :, :n, :n]``. O(n_heads * blocks of the square) to build.
    `density_in_tiles` is 1 where blocks divide the sequence.

    References
    ----------
    .. [1] DeepSpeed 0.16.4, deepspeed/ops/sparse_attention/sparsity_config.py.
    """
    n, size = checking.count(n_tokens, "n_tokens"), positive(block_size, "block_size")
    plain = str(name).lower().replace("sparsityconfig", "").replace("localslidingwindow", "local_sliding_window")
    if plain not in LAYOUTS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(LAYOUTS)}")
    known = list(inspect.signature(LAYOUTS[plain]).parameters)[3:]
    if not options.keys() <= set(known):
        raise TypeError(f"{plain} has no option {sorted(options.keys() - set(known))}; it has {known}")
    rows, draw = -(-n // size), random.Random(seed)
    heads = range(positive(n_heads, "n_heads") if different_layout_per_head else 1)
    layout = np.stack([LAYOUTS[plain](rows, head, draw, **options) for head in heads])
    return Pattern.from_blocks(layout if different_layout_per_head else layout[0], block_size=size, shape=(n, n))


def _dense(rows, head, draw):
    return np.ones((rows, rows), bool)


def _fixed(rows, head, draw, *, num_local_blocks=4, num_global_blocks=1, attention="bidirectional",
           horizontal_global_attention=False, num_different_global_patterns=1):
    past = _past(attention)
    size, wide = positive(num_local_blocks, "num_local_blocks"), positive(num_global_blocks, "num_global_blocks")
    different = positive(num_different_global_patterns, "num_different_global_patterns")
    if size % wide or different > size // wide:
        raise ValueError(f"num_local_blocks is {size} with num_global_blocks {wide} and {different} different global "
                         "patterns; expected a multiple, and no more patterns than it has parts")
    window = np.arange(rows) // size
    layout = _local(window, past)
    first, whole = size - (1 + head % different) * wide, rows // size * size
    starts = [*range(first, whole, size)] + ([max(min(whole + first, rows - wide), 0)] if whole < rows else [])
    return _with_globals(layout, [(s, s + wide) for s in starts], past, horizontal_global_attention)


def _variable(rows, head, draw, *, num_random_blocks=0, local_window_blocks=(4,), global_block_indices=(0,),
              global_block_end_indices=None, attention="bidirectional", horizontal_global_attention=False):
    past = _past(attention)
    sizes = [positive(size, "local_window_blocks") for size in local_window_blocks]
    if not sizes:
        raise ValueError("local_window_blocks is empty; give the blocks of at least one window")
    drawn = _sampled(draw, [rows] * rows, num_random_blocks, rows)
    sizes += [sizes[-1]] * (rows // sizes[-1] + 1)
    window = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    spans = _spans(global_block_indices, global_block_end_indices)
    return _with_globals(drawn | _local(window, past), spans, past, horizontal_global_attention)


def _bigbird(rows, head, draw, *, num_random_blocks=1, num_sliding_window_blocks=3, num_global_blocks=1,
             attention="bidirectional"):
    past = _past(attention)
    pools = range(1, rows + 1) if past else [rows] * rows
    layout = _sampled(draw, pools, num_random_blocks, rows) | _window(rows, num_sliding_window_blocks)
    n_global = at_least_0(num_global_blocks, "num_global_blocks")
    layout[:n_global], layout[:, :n_global] = True, True
    return np.tril(layout) if past else layout


def _bslongformer(rows, head, draw, *, num_sliding_window_blocks=3, global_block_indices=(0,),
                  global_block_end_indices=None, attention="bidirectional"):
    past = _past(attention)
    spans = _spans(global_block_indices, global_block_end_indices)
    layout = _with_globals(_window(rows, num_sliding_window_blocks), spans, False, True)
    return np.tril(layout) if past else layout


def _local_sliding_window(rows, head, draw, *, num_sliding_window_blocks=3, attention="unidirectional"):
    window = _window(rows, num_sliding_window_blocks)
    return np.tril(window) if _past(attention) else window


LAYOUTS = {"dense": _dense, "fixed": _fixed, "variable": _variable, "bigbird": _bigbird,
           "bslongformer": _bslongformer, "local_sliding_window": _local_sliding_window}


def _past(attention):
    """Whether a layout looks back only."""
    if attention not in ("unidirectional", "bidirectional"):
        raise ValueError(f'attention is {attention!r}; expected "unidirectional" or "bidirectional"')
    return attention == "unidirectional"


def _local(window, past):
    """Blocks whose windows have one number, bool (rows, rows)."""
    same = window[:, None] == window
    return np.tril(same) if past else same


def _window(rows, width):
    below = np.tri(rows, k=positive(width, "num_sliding_window_blocks") // 2, dtype=bool)
    return below & below.T


def _spans(starts, stops):
    """(start, stop) of each run of global blocks."""
    starts = [at_least_0(s, "global_block_indices") for s in starts]
    stops = [s + 1 for s in starts] if stops is None else [at_least_0(s, "global_block_end_indices") for s in stops]
    if len(stops) != len(starts) or any(stop <= start for start, stop in zip(starts, stops)):
        raise ValueError(f"global blocks run from {starts} to {stops}; expected an end behind every start")
    return list(zip(starts, stops))


def _with_globals(layout, spans, past, horizontal):
    """The layout with global columns, from their first row on where it looks back only, and perhaps global rows."""
    if past and horizontal:
        raise ValueError("horizontal_global_attention looks ahead; expected it with attention=\"bidirectional\" only")
    for start, stop in spans:
        layout[start if past else 0 :, start:stop] = True
        if horizontal:
            layout[start:stop] = True
    return layout


def _sampled(draw, pools, count, rows):
    """`count` distinct blocks of the first `pool` for each row, in the order in which DeepSpeed draws them."""
    count, layout = at_least_0(count, "num_random_blocks"), np.zeros((rows, rows), bool)
    if count and rows and count > min(pools):
        raise ValueError(f"num_random_blocks is {count} but a row has {min(pools)} blocks to draw from; lower it")
    for row, pool in enumerate(pools):
        layout[row, draw.sample(range(pool), count)] = True
    return layout
