"""profile: what dense attention looks at, and how well patterns stand in for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sparseattn import checks
from sparseattn.pattern import Pattern
from sparseattn.profiling import arguments, costs, evaluate, on_device
from sparseattn.profiling import rows as rows_pass
from sparseattn.profiling.candidates import as_candidates, defaults
from sparseattn.profiling.progress import Progress
from sparseattn.profiling.quantities import Rows
from sparseattn.profiling.record import Profile
from sparseattn.profiling.sampling import rows_of
from sparseattn.profiling.variability import variability
from sparseattn.xp import library

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the allowed keys, for the oracle's recall


def profile(q, k, v=None, *, causal=False, scale=None, rows=None, masses=(0.5, 0.9, 0.95, 0.99), candidates=None,
            quantiles=(0.5, 0.9, 0.99), shape=None, valid=None, targets=None, block_sizes=(16, 32, 64, 128),
            names=None, progress=None) -> Profile:
    """Measure dense attention row by row, and how well candidate patterns stand in for it.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim), float16, bfloat16, float32 or float64
        Queries as they enter the scores: after rotary embedding, normalisation and the like. Without batch, or without
        batch and heads, as well: results keep both axes then, of size 1.
    k : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys.
    v : array, (batch, n_kv_heads, n_keys, v_head_dim), optional
        Values; without them candidates have a recall but no output error.
    causal : bool
        Whether queries see no later keys. The last query sits at the last key.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    rows : int or sequence of int, optional
        Which queries to look at: how many, sampled from all eighths of the sequence alike with the last 64, or their
        positions. None: all of at most 2,048, else about 1,024.
    masses : sequence of float
        For `keys_at_mass`, rising, above 0 and up to 1.
    candidates : sequence or dict, optional
        Patterns to try: each a Pattern, a function of (q, k) that returns one, a Candidate, or (name, one of these);
        or a dict of them by name. None: windows, strides, samples, columns, diagonals, the best keys and blocks, each
        at several sizes, and grid families with `shape`; empty: none.
    quantiles : sequence of float
        For `distance_quantiles`, rising, above 0 and up to 1.
    shape : sequence of int, optional
        Lengths of the axes, if the tokens are a grid in raster order, or the last ones are: distances along each axis.
    valid : array of bool, (batch, n_keys) or (n_keys,), optional
        Which keys are no padding; where there are as many queries, they go by it too. The rest counts nowhere.
    targets : array of int, (n_queries,), (batch, n_queries) or (batch, n_heads, n_queries), optional
        The key that a specialised head would point each query to, -1 for none: for the kinds "retrieval" and
        "induction".
    block_sizes : sequence of int
        For `block_share`.
    names : sequence of str, optional
        What heads are called in tables and pictures.
    progress : bool, optional
        Show on stderr how far it is; None: if it takes seconds and stderr is a terminal.

    Returns
    -------
    Profile

    Raises
    ------
    TypeError, ValueError
        A type, dtype, shape or value does not fit, or q or k hold NaN or infinity where it counts.

    Notes
    -----
    Rows are exact over all keys: keys are never sampled, and nothing of size n_queries * n_keys is held. Scores are
    products in the dtype of the arrays (float32 for 16 bits); of float32 ones those that carry the entropy are computed
    again in float64, and everything after the scores is float64. Results are NumPy arrays; the same call gives the same
    bits for any number of threads of this library.

    O(rows * n_keys * head_dim) time for a head, about twice (head_dim 128) to three times (64) dense attention over
    these rows, and O(n_keys) memory beside ``rows * n_keys / gcd(block_sizes)**2``; a candidate takes O(its pairs in
    the rows * head_dim), and what building it for all queries takes. Several batch items are compared pair by pair.

    See `Profile` for all that is measured. Mass is a safe bound and a bad price: wide attention is an average that an
    even sample of the keys estimates well while it captures little. Look at `output_error` as well.

    Examples
    --------
    >>> import numpy as np, sparseattn as sa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 256, 16), dtype=np.float32)
    >>> found = sa.profile(q, k, v, causal=True, candidates={"near": sa.patterns.sliding_window(256, left=63)})
    >>> found.rows.entropy.shape, found.recall.shape, found.output_error.shape
    ((1, 2, 256), (1, 1, 2), (1, 1, 2))
    """
    q, k, v, scale = _arrays(q, k, v, scale)
    asked = arguments.asked(q, k, causal, scale, rows_of(rows, q.shape[2]), masses, quantiles, SHARES, block_sizes,
                            valid, shape, targets)
    arguments.check_finite(q, k, v, asked)
    given = None if candidates is None else as_candidates(candidates)
    names = arguments.names(names, q.shape[1])
    with Progress(progress, q.shape[0] * q.shape[1]) as bar:
        measured = (rows_pass if library(q) == "numpy" else on_device).measure(q, k, asked, bar.advance)
        found = _record(measured, asked, q, k, v, names, shape)
        found = replace(found, variability=variability(q, k, found.rows.lse, asked))
        if given is None:
            given = defaults(q.shape[2], k.shape[2], causal=causal, offsets=found.distance_mass.mean(axis=0),
                             columns=found.column_mean.mean(axis=0), grid=found.grid)
        return _with_candidates(found, given, asked, bar) if given else found


def _arrays(q, k, v, scale):
    """q, k, v with four axes, and the scale; or the error that `attend` would give."""
    nobody = Pattern((), (0, 0))
    if getattr(q, "ndim", 0) >= 2 and getattr(k, "ndim", 0) >= 2:
        nobody = Pattern((), (q.shape[-2], k.shape[-2]))
    call = checks.check_call(q, k, k if v is None else v, nobody, scale)
    if 0 in call.q.shape or 0 in call.k.shape:
        raise ValueError(f"q has shape {q.shape} and k {k.shape}; expected at least one query, key and head")
    return call.q, call.k, None if v is None else call.v, call.scale


def _record(measured, asked, q, k, v, names, shape) -> Profile:
    """The profile, no candidate tried yet."""
    batch, _, n_queries, _ = q.shape
    counted = np.array([(asked.n_open(b) > 0).sum() for b in range(batch)]).reshape(batch, 1, 1)
    columns, offsets = _possible(asked, n_queries)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = measured.columns / counted, measured.offsets / counted
    return Profile(
        rows=_rows(measured, asked), row_positions=asked.rows, shape=(n_queries, k.shape[2]), n_kv_heads=k.shape[1],
        causal=asked.causal, scale=asked.scale, masses=tuple(asked.masses.tolist()),
        quantiles=tuple(asked.quantiles.tolist()), shares=tuple(asked.shares.tolist()), block_sizes=asked.block_sizes,
        column_mean=means[0], column_rows=columns, offset_mean=means[1], offset_rows=offsets,
        block_share=measured.block_shares, dense_cost=costs.of_whole(q, k, v, asked.causal), names=names,
        grid=None if shape is None else tuple(map(int, shape)), q=q, k=k, v=v,
    )


def _rows(measured, asked) -> Rows:
    """The quantities of each row."""
    lse, entropy, largest, collision, distance, offset, sink, best, target = np.moveaxis(measured.stats, 3, 0)
    allowed = np.broadcast_to(np.stack([asked.n_open(b) for b in range(lse.shape[0])])[:, None], lse.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalized = np.where(allowed == 1, 0.0, entropy / np.log(allowed))
    aimed = asked.targets >= 0
    hit = np.where(aimed & (allowed > 0), best + asked.places == asked.targets, np.nan)
    needed = measured.keys / np.where(allowed > 0, allowed, np.nan)[..., None]
    return Rows(
        lse=lse, allowed=allowed, entropy=entropy, normalized_entropy=normalized, effective_keys=np.exp(entropy),
        collision_keys=1 / collision, max_weight=largest, best_offset=best, distance=distance, offset=offset,
        distance_quantiles=measured.distances, keys_at_mass=measured.keys,
        sparsity_at_mass=1 - needed, oracle_recall=measured.held, sink_mass=sink,
        target_weight=target if aimed.any() else None, target_hit=hit if aimed.any() else None,
        axis_distance=measured.axes if asked.coordinates.shape[0] else None,
    )


def _possible(asked, n_queries):
    """How many rows may attend each key (batch, n_keys), and how many have a key at each offset (batch, n_offsets)."""
    batch, n_keys = asked.is_open.shape
    n_offsets = n_keys if asked.causal else n_keys + n_queries - 1
    columns, offsets = np.zeros((batch, n_keys), np.int64), np.zeros((batch, n_offsets), np.int64)
    for b, (is_open, first) in enumerate(zip(asked.is_open, [n_keys - 1 - asked.places] * batch)):
        stops = asked.stops(b)
        columns[b] = _covered(np.zeros_like(stops), stops, n_keys) * is_open
        offsets[b] = _covered(first, first + stops, n_offsets)
        for key in np.flatnonzero(~is_open):
            offsets[b] -= np.bincount((first + key)[stops > key], minlength=n_offsets)
    return columns, offsets


def _covered(starts, stops, n):
    """How many of some intervals hold each of n numbers."""
    return np.cumsum(np.bincount(starts, minlength=n + 1) - np.bincount(stops, minlength=n + 1))[:n]


def _with_candidates(found, candidates, asked, bar) -> Profile:
    """The profile with what candidates capture and lose."""
    dense = None if found.v is None else evaluate.dense_outputs(found.q, found.k, found.v, asked)
    inputs = evaluate.Inputs(found.q, found.k, found.v, asked, found.rows.lse, dense)
    bar.more("candidates", len(candidates))
    judged = []
    for candidate in candidates:
        judged.append((evaluate if library(found.q) == "numpy" else on_device).judge(candidate, inputs))
        bar.advance()

    def together(name):
        each = [getattr(one, name) for one in judged]
        return None if each[0] is None else np.stack(each)

    cost = costs.Cost(*(np.stack([getattr(one.cost, name) for one in judged])
                        for name in ("kept", "stored", "seconds")))
    recall, rest = together("recall"), 1 - found.rows.sink_mass
    with np.errstate(invalid="ignore", divide="ignore"):
        without_sink = np.where(rest > 0, (recall - together("first")) / rest, np.nan)
    rows = replace(found.rows, recall=recall, recall_without_sink=without_sink, kept=together("kept"),
                   row_error=together("row_error"), cosine=together("cosine"))
    return replace(found, rows=rows, candidates=tuple(candidates), costs=cost, output_error=together("output_error"),
                   l1_error=together("l1_error"))
