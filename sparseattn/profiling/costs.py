"""What patterns cost: pairs, pairs in the kernels' blocks, and predicted seconds, head by head."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from sparseattn import patterns
from sparseattn.attention import attend
from sparseattn.index_ops.counting import count_by_head
from sparseattn.kernels.numba_cpu.cost import copies, part_seconds
from sparseattn.pattern import Pattern
from sparseattn.profiling.candidates import Candidate
from sparseattn.xp import device_of, finish

DENSE = Candidate("dense", "dense")
RUNS = 3  # the best of these is a measured time
# Measured nanoseconds of choosing, on one thread, of (pairs of tokens, keys, head_dim, options).
CHOOSING = {
    "top_keys": lambda pairs, keys, dim, own: pairs * (3.5 + 0.025 * dim),
    "top_blocks": lambda pairs, keys, dim, own: pairs * (2.0 + 26.0 / own["block"] + 0.025 * dim),
    "pages": lambda pairs, keys, dim, own: pairs * (0.5 + (12.0 + 0.1 * dim) / own["page"]),
    "vertical_slash": lambda pairs, keys, dim, own: keys * (4000.0 + 10.0 * dim),
}


@dataclass(frozen=True)
class Cost:
    """Of a pattern, each an array (n_heads,): the mean over batch items.

    Attributes
    ----------
    kept : array
        Attended pairs.
    stored : array
        Pairs of the blocks that the kernels of the CPU compute: 64 x 64 or as the pattern is stored.
    seconds : array
        Predicted for a forward pass on one thread, choosing included.
    """

    kept: np.ndarray
    stored: np.ndarray
    seconds: np.ndarray


def of(pattern: Pattern, candidate, q, k, v=None) -> Cost:
    """The cost of a candidate's pattern for q, k and v of four axes."""
    found = _of(pattern, q.shape[1], q.shape[3], (k if v is None else v).shape[3], q.itemsize)
    return replace(found, seconds=found.seconds + choosing_seconds(candidate, q, k))


def _of(pattern, n_heads, head_dim, v_head_dim, itemsize):
    from sparseattn.kernels.numba_cpu.simd import VECTOR_BITS

    kept, stored, seconds = np.zeros((3, pattern.n_heads))
    for part in pattern.to("cpu").tiles():
        own = count_by_head(part, pattern.n_heads)
        kept += own[0]
        stored += own[1]
        times = copies(part, pattern, 1, pattern.n_heads)
        whole = part_seconds(part, times, head_dim, v_head_dim, itemsize, VECTOR_BITS, False)
        seconds += whole * own[1] / max(own[1].sum(), 1)
    return Cost(*(np.repeat(x, n_heads // pattern.n_heads) for x in (kept, stored, seconds)))


@functools.lru_cache(64)
def _whole(n_queries, n_keys, causal, *sizes):
    return _of((patterns.causal if causal else patterns.dense)(n_queries, n_keys), *sizes)


def of_whole(q, k, v, causal) -> Cost:
    """The cost of dense attention, counted once for each shape."""
    found = _whole(q.shape[2], k.shape[2], causal, q.shape[1], q.shape[3], (k if v is None else v).shape[3], q.itemsize)
    return Cost(found.kept.copy(), found.stored.copy(), found.seconds.copy())


def choosing_seconds(candidate, q, k) -> float:
    """Predicted seconds in which one head of one batch item chooses, on one thread: 0 for what knows no q and k, and
    for a function of the caller's, of which nothing is known."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    found = CHOOSING.get(candidate.family, lambda *_: 0.0)(n_queries * n_keys, n_keys, q.shape[3], candidate.options)
    return 1e-9 * found


def of_dense(profile, cost: str) -> float:
    """What dense attention costs a head of a batch item: pairs in blocks, predicted or measured seconds."""
    if cost == "measured":
        return _measured(DENSE, profile)
    return float(np.mean(profile.dense_cost.stored if cost == "pairs" else profile.dense_cost.seconds))


def measured(profile) -> np.ndarray:
    """Measured seconds of a head of a batch item, (n_candidates, n_heads)."""
    seconds = np.array([_measured(candidate, profile) for candidate in profile.candidates])
    return np.repeat(seconds[:, None], profile.n_heads, axis=1)


def _measured(candidate, profile):
    """All heads and items are run together, and choosing is included. The first run compiles and fills memos."""
    if profile.q is None:
        raise ValueError('cost="measured" runs the candidates on q, k and v, which this profile does not hold; use '
                         '"time", or profile again')
    q, k, v = profile.q, profile.k, profile.k if profile.v is None else profile.v
    def built():
        return candidate.build(q, k, profile.causal, profile.scale).to(device_of(q))

    static = None if candidate.dynamic else built()
    seconds = []
    for _ in range(1 + RUNS):
        begin = perf_counter()
        attend(q, k, v, static or built(), scale=profile.scale)
        finish(q)
        seconds.append(perf_counter() - begin)
    return min(seconds[1:]) / (q.shape[0] * q.shape[1])
