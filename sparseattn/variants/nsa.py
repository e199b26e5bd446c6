"""Native sparse attention: a compressed, a selected and a sliding branch, gated and added."""

from typing import Any, NamedTuple

import numpy as np

from sparseattn import checks, patterns
from sparseattn.attention import vjp as attend_vjp
from sparseattn.patterns.arguments import positive, ranges_pattern
from sparseattn.patterns.content.inputs import causal_offset, heads
from sparseattn.patterns.content.nsa_selection import Blocks
from sparseattn.variants.arguments import check_pairs
from sparseattn.variants.nsa_rules import RULES
from sparseattn.xp import compute_dtype, device_of, namespace, on_its_device

Array = Any


class NsaGradients(NamedTuple):
    """Gradients of `nsa`, each with the shape and dtype of its input."""

    dq: Array
    dk: Array
    dv: Array
    dcompressed_k: Array
    dcompressed_v: Array
    dgates: Array


class NsaGradientsOfTwoQueries(NamedTuple):
    """Gradients of `nsa` with `compressed_q`, each with the shape and dtype of its input."""

    dq: Array
    dk: Array
    dv: Array
    dcompressed_k: Array
    dcompressed_v: Array
    dgates: Array
    dcompressed_q: Array


@on_its_device
def nsa(q, k, v, compressed_k, compressed_v, gates, *, compress_block, compress_stride, select_block, n_selected,
        window, rules="paper", compressed_q=None, scale=None, backend=None):
    """Attend summaries of blocks, whole blocks that the summaries point to, and a window; add the three by gates.

    Parameters
    ----------
    q : array, (batch, n_heads, n_queries, head_dim)
        As `attend` takes them; the last query sits at the last key.
    k, v : array, (batch, n_kv_heads, n_keys, head_dim)
        Keys and values of the selected and the sliding branch.
    compressed_k, compressed_v : array, (batch, n_kv_heads, n_compressed, head_dim)
        Keys and values of the compressed branch, one for each compressed block: what a trained map, or a mean, makes of
        its tokens. Complete blocks; those that begin too late to be complete may follow and are seen by nobody.
    gates : array, (batch, n_heads, n_queries, 3)
        Factors of the compressed, the selected and the sliding branch, in q's dtype; a model takes them from a sigmoid.
    compress_block, compress_stride : int
        Compressed block c is of the tokens from ``c * compress_stride`` on, `compress_block` of them, a multiple of the
        stride.
    select_block, n_selected : int
        Tokens of a selected block, a multiple of the stride, and blocks a query, at least 3, as in
        `patterns.nsa_selection`.
    window : int
        Keys of the sliding branch, self included.
    rules : {"paper", "package"}
        Whose rules, see Notes.
    compressed_q : array, like q, optional
        The queries of the compressed branch and of the choice, where they differ (without rotary positions); None: q.
    scale : float, optional
        Factor of the scores of all branches; None: 1 / sqrt(head_dim).
    backend : str, optional
        Name of a backend, as in `attend`.

    Returns
    -------
    out : array, (batch, n_heads, n_queries, v_head_dim)
        The gated sum, in q's dtype.
    vjp : function
        ``vjp(dout)`` gives the named tuple (dq, dk, dv, dcompressed_k, dcompressed_v, dgates), with `compressed_q` a
        seventh, dcompressed_q.

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or a number does not fit; nothing was computed.

    Notes
    -----
    ``out = gates[0] * compressed + gates[1] * selected + gates[2] * sliding``, a softmax each. Query i sees compressed
    block c when ``c * compress_stride + compress_block - 1 <= i``; with none, that branch is 0. The selected blocks
    follow from the probabilities of the compressed branch by the rule of `patterns.nsa_selection`; they are computed
    for some queries at a time, never for all pairs. The sliding branch sees j with ``i - window < j <= i``. The paper
    has separate k and v for each branch; here the selected and the sliding one share them, as released code does. The
    gradient is exact but for the choice of blocks, through which nothing flows.

    With rules "package" as in [2]_: compressed key c behind those of memory, of which there are ``n_compressed - n_keys
    // compress_stride`` seen by all, ends with token ``(c + 1) * compress_stride - 1`` and is seen by later queries; a
    block's score is the mean over its compressed keys and the heads of the group of ``scale * q . k``, and it is a
    candidate once all of them are seen; the own block is attended in addition to `n_selected`, no other is forced; the
    sliding branch has ``window + 1`` keys.

    O(n_heads * n_queries * n_compressed * head_dim) for the compressed branch and once more for the probabilities, then
    n_selected * select_block + window keys a query. Results of the branches are kept for the gradient. On CuPy's arrays
    the choice is waited for, as in `patterns.nsa_selection`.

    References
    ----------
    .. [1] Yuan et al., Native Sparse Attention, arXiv:2502.11089, section 3.
    .. [2] The package native-sparse-attention-pytorch 0.2.3.
    """
    blocks = Blocks(compress_block, compress_stride, select_block, n_selected)
    window = positive(window, "window")
    if rules not in RULES:
        raise ValueError(f"rules is {rules!r}; expected one of {', '.join(map(repr, RULES))}")
    if compressed_q is not None:
        check_pairs("both are queries of the same tokens", [(("compressed_q", compressed_q), ("q", q))])
    source = q if compressed_q is None else compressed_q
    position = np.arange(q.shape[-2]) + causal_offset(*heads(q=q, k=k, compressed_k=compressed_k)[:2])
    rule = RULES[rules](blocks, compressed_k.shape[-2], k.shape[-2])
    sliding = patterns.sliding_window(q.shape[-2], k.shape[-2], left=window - 1 + rule.extra_keys)
    seen = ranges_pattern(0, rule.seen(position), (position.size, compressed_k.shape[-2]))
    sliding, seen = (pattern.to(device_of(q)) for pattern in (sliding, seen))
    call = checks.check_call(source, compressed_k, compressed_v, seen, scale)
    _check(call, checks.check_call(q, k, v, sliding, scale), gates)
    options = {"scale": scale, "backend": backend}
    (compressed, lse), compressed_vjp = attend_vjp(source, compressed_k, compressed_v, seen, return_lse=True, **options)
    chosen = rule.choice(call, lse.reshape(call.lse_shape), position)
    found = [attend_vjp(q, k, v, pattern, **options) for pattern in (chosen, sliding)]
    outs, pulls = zip((compressed, compressed_vjp), *found)
    dtype = compute_dtype(q.dtype)
    outs = [out.astype(dtype, copy=False) for out in outs]
    factors = [gates[..., branch, None].astype(dtype) for branch in range(3)]

    @on_its_device
    def vjp(dout):
        checks.check_like("dout", dout, call.out_shape, q.dtype, call)
        dout = dout.astype(dtype, copy=False)
        summary, *whole = ([x.astype(dtype) for x in pull((g * dout).astype(q.dtype))[:3]]
                           for g, pull in zip(factors, pulls))
        dq, dk, dv = (a + b for a, b in zip(*whole))
        dgates = namespace(q).stack([(dout * out).sum(axis=-1) for out in outs], axis=-1)
        if compressed_q is None:
            return NsaGradients(*(x.astype(q.dtype) for x in (dq + summary[0], dk, dv, *summary[1:], dgates)))
        return NsaGradientsOfTwoQueries(*(x.astype(q.dtype) for x in (dq, dk, dv, *summary[1:], dgates, summary[0])))

    return sum(g * out for g, out in zip(factors, outs)).astype(q.dtype, copy=False), vjp


def _check(call, whole, gates):
    """Raise where the branches' arrays do not belong together."""
    if call.k.shape[1] != whole.k.shape[1]:
        raise ValueError(f"compressed_k has {call.k.shape[1]} heads but k {whole.k.shape[1]}; expected as many")
    if call.out_shape != whole.out_shape:
        raise ValueError(f"compressed_v has head_dim {call.v.shape[3]} but v {whole.v.shape[3]}; the branches are "
                         "added, so expected one size")
    if getattr(gates, "dtype", None) != call.q.dtype:
        raise TypeError(f"gates has dtype {getattr(gates, 'dtype', type(gates).__name__)} but q {call.q.dtype}; "
                        "expected one dtype: gates.astype(q.dtype)")
    expected = (*call.q.shape[4 - call.ndim : 3], 3)
    if gates.shape != expected:
        raise ValueError(f"gates has shape {gates.shape}; expected {expected}: a factor for each query of q and each "
                         "of the branches compressed, selected, sliding")
