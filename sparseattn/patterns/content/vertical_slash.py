"""MInference's vertical-slash: the keys and the distances that the last queries attend most."""

from typing import NamedTuple

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import at_least_0, positive, tiles
from sparseattn.patterns.content import inputs
from sparseattn.patterns.content.blocks import causal_blocks, own_blocks
from sparseattn.patterns.content.slashes import column_part, crowded_part, lonely_part
from sparseattn.selection.coverage import best
from sparseattn.selection.softmax import diagonal_sums, last_rows
from sparseattn.xp import device_of, namespace, on_cpu, on_its_device

BLOCK = 64  # tokens of the rule's tiles
FIRST, RECENT = 30, 30  # columns and distances that are always among the best
LEAST_COLUMNS, LEAST_DISTANCES = 30, 50


class Lines(NamedTuple):
    """What each head attends: keys int32 (batch, n_heads, n), distances to the key int32 (batch, n_heads, m); both
    rise."""

    columns: np.ndarray
    distances: np.ndarray


@on_its_device
def vertical_slash(q, k, *, n_vertical, n_slash, last_q=64, exact=True, scale=None, n_first=FIRST, n_recent=RECENT,
                   block_size=None):
    """Each query attends the keys, and the distances back, that the last queries attend most.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries, also without batch, or without batch and heads. The last query sits at the last key.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys; with grouped heads the choice is each query head's own.
    n_vertical : int
        Keys to choose; fewer than 30 count as 30.
    n_slash : int
        Distances to choose; fewer than 50 count as 50.
    last_q : int
        Queries at the end whose exact softmax is looked at.
    exact : bool
        False: whole tiles of 64 x 64 tokens that hold a chosen pair, cut at the diagonal.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    n_first, n_recent : int
        The first keys and the shortest distances, taken before all others and counted among those chosen. These are
        of the published search for sizes; the published kernel takes ``n_recent=100``.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), causal, one per batch item and query head.

    Notes
    -----
    With offset = n_keys - n_queries, query i attends key j <= i + offset when j is a chosen key or ``i + offset - j`` a
    chosen distance. The score of a key is the mass that the last queries together give it, that of a distance the mass
    at this distance; the lower index goes first where two are equal. With `exact` off, query i attends key j <= i +
    offset when their tile holds such a pair, or a query and its own key. The published kernel lies between: tiles of a
    distance begin at multiples of 64 less the distance, and columns are single. Nothing flows through the choice to q
    and k.

    O(last_q * n_keys * head_dim) time and O(last_q * n_keys) memory a head to choose. Stored in three parts: the keys,
    gathered into dense ranges; distances of which many lie within 32, as tiles that share their masks; the other
    distances as single pairs, of 4 bytes each, since no tile can hold more than a few of them: with hundreds of these,
    ``exact=False`` may be the faster one. `density_in_tiles` is 0.8 for 500 keys and the 100
    shortest distances of 4,096 tokens, less for distances that lie apart.

    CuPy's arrays are chosen from on their GPU. This waits for it: the structure is made on the CPU, then moved.

    References
    ----------
    .. [1] Jiang et al., MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention,
       arXiv:2407.02490, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import sparseattn as sa
    >>> q, k = np.random.default_rng(0).standard_normal((2, 4, 512, 64), dtype=np.float32)
    >>> pattern = sa.patterns.vertical_slash(q, k, n_vertical=40, n_slash=60)
    >>> pattern.nnz < sa.patterns.vertical_slash(q, k, n_vertical=40, n_slash=60, exact=False).nnz
    True
    """
    q, k = inputs.heads(q=q, k=k)
    kv_heads, shape = inputs.keys_for(q, k), (q.shape[2], k.shape[2])
    inputs.causal_offset(q, k)
    counts = max(at_least_0(n_vertical, "n_vertical"), LEAST_COLUMNS), max(at_least_0(n_slash, "n_slash"),
                                                                           LEAST_DISTANCES)
    first = at_least_0(n_first, "n_first"), at_least_0(n_recent, "n_recent")
    last_q, scale, size = positive(last_q, "last_q"), inputs.scale_of(scale, q.shape[3]), tiles(block_size)
    lines = _lines(q, k, kv_heads, [min(n, shape[1]) for n in counts], first, last_q, scale)
    pattern = (_pairs if exact else _tiles)(lines, shape)
    return (pattern if size is None else pattern.reblock(size)).to(device_of(q))


def _lines(q, k, kv_heads, counts, first, last_q, scale):
    columns, distances = (namespace(q).zeros(q.shape[:2] + (n,), np.int32) for n in counts)
    for b, h in np.ndindex(q.shape[:2] if q.shape[2] else (0, 0)):
        rows = last_rows(inputs.wide(q[b, h, -last_q:]), inputs.wide(k[b, kv_heads[h]]), last_q, scale)
        columns[b, h] = best(rows.sum(axis=0, dtype=np.float64), counts[0], first[0])
        distances[b, h] = best(diagonal_sums(rows), counts[1], first[1])
    return Lines(on_cpu(columns), on_cpu(distances))


def _pairs(lines, shape):
    """The chosen pairs themselves, each in one of three disjoint parts."""
    parts = column_part(lines.columns, shape), crowded_part(*lines, shape), lonely_part(*lines, shape)
    return Pattern.from_parts([p for p in parts if p is not None], shape, *lines.columns.shape[:2])


def _tiles(lines, shape):
    """Whole tiles that hold a chosen pair."""
    n_queries, n_keys = shape
    own, before = own_blocks((BLOCK, BLOCK), shape)
    first = n_keys - n_queries + np.arange(0, n_queries, BLOCK)[:, None]
    last = np.minimum(first + BLOCK, n_keys) - 1
    begin = np.arange(0, n_keys, BLOCK)
    end = np.minimum(begin + BLOCK, n_keys)
    layout = np.zeros(lines.columns.shape[:2] + own.shape, bool)
    for at in np.ndindex(layout.shape[:2]):
        columns, distances = (_count_before(x[at], n_keys) for x in lines)
        nearest, farthest = np.maximum(first - end + 1, 0), np.maximum(last - begin, -1)
        held = columns[np.minimum(end, last + 1)] > columns[np.minimum(begin, last + 1)]
        held |= distances[farthest + 1] > distances[np.minimum(nearest, farthest + 1)]
        layout[at] = own | (held & before)
    return causal_blocks(layout, (BLOCK, BLOCK), shape)


def _count_before(numbers, n):
    """How many of some numbers below n are less than each of 0 to n."""
    return np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=n))])
