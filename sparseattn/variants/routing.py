"""Routing Transformer's attention: a softmax in each cluster, and the mean over a token's clusters."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sparseattn import checks
from sparseattn.attention import vjp as attend_vjp
from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import positive
from sparseattn.patterns.content.clusters import means_of, members_of
from sparseattn.patterns.content.inputs import heads, keys_for, real, valid_tokens
from sparseattn.selection.adding import add_rows
from sparseattn.structure import Ranges
from sparseattn.variants.arguments import n_tokens
from sparseattn.xp import compute_dtype, device_of, library, namespace, on_cpu, on_its_device

Array = Any


class RoutingGradients(NamedTuple):
    """Gradients of `routing`, each with the shape and dtype of its input; None where there is no such input."""

    dq: Array
    dk: Array
    dv: Array
    dmemory_k: Array | None = None
    dmemory_v: Array | None = None


@on_its_device
def routing(q, k, v, means, *, window, causal=False, shared_qk=False, exclude_self=False, memory_k=None, memory_v=None,
            valid=None, denominator_eps=0.0, scale=None, backend=None):
    """Attention within clusters of tokens; a token in several of them gets the mean of what it gets in each.

    Parameters
    ----------
    q : array, (batch, n_heads, n_tokens, head_dim)
        Queries; without batch, or without batch and heads, as well.
    k, v : array, (batch, n_kv_heads, n_tokens, head_dim)
        Keys, as they enter the scores, and values.
    means : array, (n_heads, n_clusters, head_dim)
        One set for each head of q; see `update_means`.
    window : int
        Tokens that a mean takes; all where there are fewer.
    causal : bool
        Keys after the query are left out. It needs `shared_qk` or memory: else many queries have no key before them.
    shared_qk : bool
        The keys of a cluster are its queries' tokens, whatever k is: for k made from q, as q at unit length.
    exclude_self : bool
        No token attends itself in a cluster, unless it has no other key there, memory included.
    memory_k, memory_v : array, (n_heads, n_clusters, m, head_dim), optional
        Keys and values of each cluster that all of its queries attend.
    valid : array of bool, (batch, n_tokens) or (n_tokens,), optional
        True: a real token. The others are in no cluster.
    denominator_eps : float
        Added to the number of a token's clusters before dividing: 1e-5 in the package routing-transformer, 1e-2 in the
        authors' code.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    backend : str, optional
        As in `attend`.

    Returns
    -------
    out : array, (batch, n_heads, n_tokens, v_head_dim)
        The mean over each token's clusters; 0 for a token in none, which `Pattern.uncovered` of
        `sparseattn.patterns.clusters` tells.
    vjp : function
        ``vjp(dout)`` gives the named tuple (dq, dk, dv, dmemory_k, dmemory_v).

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    Membership is that of `sparseattn.patterns.clusters`. ``out[i] = sum_c softmax_c(scale * q[i] . k[j]) v[j] / (m_i +
    denominator_eps)`` over the m_i clusters c that hold query i, each softmax over the keys of c (with `causal` those
    up to i) and the memory of c. Padding does not take up places here; in the package it does. The authors' code
    compares ranks in a cluster for `causal`, which leaks where keys are not the queries' tokens; here positions are
    compared.

    No gradient flows through membership or to the means. Clusters are gathered: O(n_clusters * window) rows of
    additional memory a head, and one call of `attend` with a head for each cluster. On CuPy's arrays the members are
    waited for, as in `patterns.clusters`; rows of a token in several clusters are added in one order there too.

    References
    ----------
    .. [1] Roy et al., Efficient Content-Based Sparse Attention with Routing Transformers, arXiv:2003.05997, section 4.1
       and algorithm 1.
    """
    window, eps = positive(window, "window"), real(denominator_eps, "denominator_eps", 0, np.inf)
    call = checks.check_call(q, k, v, Pattern((), (n_tokens("q", q), n_tokens("k", k))), scale)
    heads(q=q, k=k)
    q4, k4, v4 = call.q, call.k, call.v
    _check_options(q4, k4, causal, shared_qk, memory_k)
    means = means_of(means, q4)
    memory = _memory(memory_k, memory_v, means.shape, q4, v4)
    valid = valid_tokens(valid, q4)
    members = tuple(map(on_cpu, members_of(q4, q4 if shared_qk else k4, means, window, valid)))
    return over_members(call, members, memory, causal, exclude_self, eps, backend)


def over_members(call, members, memory, causal, exclude_self, eps, backend):
    """(out, vjp) of `routing`, of a checked call and the queries and keys of each cluster, (batch, n_heads, n_clusters,
    window), rising, -1 behind them."""
    q, k, v = call.q, call.k, call.v
    gathered = _Gathered(*members, keys_for(q, k), memory)
    pattern = cluster_pattern(*members, 0 if memory is None else memory[0].shape[2], causal, exclude_self)
    pattern = pattern.to(device_of(q))
    rows, back = attend_vjp(*gathered.rows(q, k, v), pattern, scale=call.scale, backend=backend)
    n_met = gathered.n_met(q.shape[2])
    share = np.where(n_met > 0, 1 / (np.maximum(n_met, 1) + eps), 0).astype(call.lse_dtype)[..., None]
    share = namespace(q).asarray(share)
    lead = (0,) * (4 - call.ndim)

    @on_its_device
    def vjp(dout):
        dout = checks.check_like("dout", dout, call.out_shape, q.dtype, call)
        drows = gathered.queries((dout.astype(share.dtype, copy=False) * share).astype(q.dtype))
        dq, dk, dv, dmemory = gathered.back(*back(drows)[:3], q, k, v)
        return RoutingGradients(dq[lead], dk[lead], dv[lead], *dmemory)

    return (gathered.add(rows, q.shape[:3], 0) * share).astype(q.dtype, copy=False)[lead], vjp


@on_its_device
def update_means(q, k, means, *, decay=0.999, valid=None):
    """Move each mean towards the tokens that are nearest to it, as the package routing-transformer does in training.

    Parameters
    ----------
    q : array, (batch, n_heads, n_tokens, head_dim)
        Queries, as given to `routing`.
    k : array, (batch, n_kv_heads, n_tokens, head_dim), optional
        Keys, which count like queries; None: q alone.
    means : array, (n_heads, n_clusters, head_dim)
        Before the step.
    decay : float
        How much of a mean stays, 0 to 1.
    valid : array of bool, (batch, n_tokens) or (n_tokens,), optional
        True: a real token. The others do not count.

    Returns
    -------
    array, (n_heads, n_clusters, head_dim)
        New means, in q's library; q, k and means stay as they are.

    Notes
    -----
    A token at unit length belongs to the mean with the largest product, ties to the lower one; one with a NaN to none.
    ``means[c] = decay * means[c] + (1 - decay) * s / |s|`` with s the sum of its tokens over the batch; a mean without
    tokens stays. Means are not brought back to unit length. These are not the tokens that a mean takes in `routing`.
    O(n * n_clusters * head_dim).

    References
    ----------
    .. [1] Roy et al., Efficient Content-Based Sparse Attention with Routing Transformers, arXiv:2003.05997, section
       4.1.
    """
    from sparseattn.selection.members import sums_by_mean

    decay = real(decay, "decay", 0, 1)
    q, *other = heads(q=q) if k is None else heads(q=q, k=k)
    xp = namespace(q)
    before = xp.asarray(means_of(means, q))
    found = [sums_by_mean(x, keys_for(q, x), before, valid_tokens(valid, x)) for x in (q, *other)]
    sums, counts = (sum(x) for x in zip(*found))
    towards = sums / xp.maximum(xp.sqrt((sums * sums).sum(axis=2, keepdims=True)), 1e-12)
    after = xp.where(counts[..., None] > 0, decay * before + (1 - decay) * towards, before)
    return after.astype(means.dtype).reshape(means.shape)


def _check_options(q, k, causal, shared_qk, memory_k):
    if q.shape[2] != k.shape[2]:
        raise ValueError(f"q has {q.shape[2]} tokens but k {k.shape[2]}; clusters are of one sequence, so give as many "
                         "of each")
    if causal and not shared_qk and memory_k is None:
        raise ValueError("causal routing of separate queries and keys leaves queries without a key before them; use "
                         "shared_qk=True, or give memory_k and memory_v")


def _memory(memory_k, memory_v, grid, q, v):
    """(memory_k, memory_v), checked, or None."""
    if memory_k is None and memory_v is None:
        return None
    if memory_k is None or memory_v is None:
        raise ValueError("memory_k and memory_v come together; give both or neither")
    for name, x, width in (("memory_k", memory_k, q.shape[3]), ("memory_v", memory_v, v.shape[3])):
        if library(x) != library(q) or x.dtype != q.dtype:
            kind = {"numpy": "NumPy", "cupy": "CuPy"}[library(q)]
            raise TypeError(f"{name} must be a {kind} array in the dtype of q, {q.dtype}")
        if x.ndim != 4 or x.shape[:2] != grid[:2] or x.shape[3] != width:
            raise ValueError(f"{name} has shape {x.shape}; expected (n_heads, n_clusters, m, {width}) = ({grid[0]}, "
                             f"{grid[1]}, any, {width})")
    if memory_k.shape[2] != memory_v.shape[2]:
        raise ValueError(f"memory_k holds {memory_k.shape[2]} keys a cluster but memory_v {memory_v.shape[2]} values; "
                         "each key needs one value")
    return memory_k, memory_v


def cluster_pattern(q_members, k_members, n_memory, causal, exclude_self):
    """What the query slots of each cluster attend of its memory and, behind it, its key slots: a Pattern (window,
    n_memory + window) of batch items and of n_heads * n_clusters heads, from members (batch, n_heads, n_clusters,
    window), -1: nobody."""
    batch, n_heads, n_clusters, n_rows = q_members.shape
    shape = n_rows, n_memory + k_members.shape[3]
    far = int(max(q_members.max(initial=0), k_members.max(initial=0))) + 1
    q, k = (x.reshape(batch * n_heads * n_clusters, -1).astype(np.int64) for x in (q_members, k_members))
    line = np.arange(len(q))[:, None]
    listed = (np.where(k < 0, far, k) + line * (far + 1)).ravel()
    wanted = q + line * (far + 1)
    before, until = (np.searchsorted(listed, wanted, side) - line * k.shape[1] for side in ("left", "right"))
    stops = until if causal else np.broadcast_to((k >= 0).sum(1, keepdims=True), q.shape)
    own = n_memory + before  # where the query itself is a key, its slot
    stops = np.where(q < 0, 0, n_memory + stops)
    apart = exclude_self & (until > before) & (q >= 0) & (stops > 1)
    halves = (0 * own, np.where(apart, own, stops)), (np.where(apart, own + 1, 0), np.where(apart, stops, 0))
    parts = [Ranges(shape, *_shared(*(x.reshape(batch, -1, n_rows) for x in canonical(*half)))) for half in halves]
    return Pattern.from_parts(parts, shape, batch, n_heads * n_clusters)


def _shared(starts, stops):
    """int32 bounds (batch, heads, rows), as (1, 1, rows) where all clusters are alike."""
    alike = starts.size and all((x == x[:1, :1]).all() for x in (starts, stops))
    return tuple((x[:1, :1] if alike else x).astype(np.int32) for x in (starts, stops))


@dataclass
class _Gathered:
    """Rows of clusters from rows of tokens, and back; members (batch, n_heads, n_clusters, window)."""

    q_members: Array
    k_members: Array
    key_heads: Array
    memory: tuple | None

    def rows(self, q, k, v):
        """q, k, v of each cluster, memory in front of keys: (batch, n_heads * n_clusters, slots, head_dim)."""
        return self.queries(q), self._keys(k, 0), self._keys(v, 1)

    def queries(self, q):
        return self._clusters(_taken(q, np.arange(q.shape[1]), self.q_members))

    def _keys(self, x, which):
        found = _taken(x, self.key_heads, self.k_members)
        if self.memory is not None:
            xp = namespace(x)
            memory = xp.broadcast_to(self.memory[which], (len(found), *self.memory[which].shape))
            found = xp.concatenate([memory, found], axis=3)
        return self._clusters(found)

    @staticmethod
    def _clusters(rows):
        return rows.reshape(rows.shape[0], -1, *rows.shape[3:])

    def n_met(self, n):
        """In how many clusters each query is, (batch, n_heads, n)."""
        lead = self.q_members.shape[:2]
        counts = [np.bincount(self.q_members[at][self.q_members[at] >= 0], minlength=n) for at in np.ndindex(lead)]
        return np.reshape(counts, (*lead, n))

    def add(self, rows, shape, first, keys=False):
        """Sums by token, (*shape, width), of the rows of clusters from slot `first` on."""
        members = self.k_members if keys else self.q_members
        rows = rows.reshape(*members.shape[:3], -1, rows.shape[3])[:, :, :, first:]
        heads = self.key_heads if keys else np.arange(members.shape[1])
        return add_rows(rows, members, heads, namespace(rows).zeros((*shape, rows.shape[4]), compute_dtype(rows.dtype)))

    def back(self, dq, dk, dv, q, k, v):
        """Gradients of q, k, v and the memory, from those of the rows of clusters."""
        n = 0 if self.memory is None else self.memory[0].shape[2]
        gradients = [self.add(dq, q.shape[:3], 0)] + [self.add(d, k.shape[:3], n, keys=True) for d in (dk, dv)]
        grid, memory = self.k_members.shape[:3], []
        for d in (dk, dv) if n or self.memory else ():
            whole = d.reshape(*grid, -1, d.shape[3])[:, :, :, :n]
            memory.append(whole.astype(compute_dtype(d.dtype), copy=False).sum(axis=0).astype(d.dtype))
        return (*(g.astype(q.dtype, copy=False) for g in gradients), memory)


def _taken(x, head_of, members):
    """x[b, head_of[h], members[b, h]]: (batch, n_heads, n_clusters, window, head_dim)."""
    xp = namespace(x)
    if not x.shape[2]:
        return xp.zeros((*members.shape, x.shape[3]), x.dtype)
    at = np.arange(len(members))[:, None, None, None], head_of[:, None, None], np.maximum(members, 0)
    return x[tuple(map(xp.asarray, at))]
