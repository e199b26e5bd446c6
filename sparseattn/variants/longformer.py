"""Longformer's attention: global tokens attend by projections of their own."""

from typing import Any, NamedTuple

from sparseattn import patterns
from sparseattn.attention import vjp as attend_vjp
from sparseattn.patterns.positional.global_tokens import global_queries
from sparseattn.variants.arguments import check_pairs, n_tokens
from sparseattn.xp import device_of, on_its_device

Array = Any


class LongformerGradients(NamedTuple):
    """Gradients of `longformer`, each with the shape and dtype of its input."""

    dq: Array
    dk: Array
    dv: Array
    dq_global: Array
    dk_global: Array
    dv_global: Array


@on_its_device
def longformer(q, k, v, q_global, k_global, v_global, *, window, dilation=1, global_tokens, causal=False, valid=None,
               scale=None, backend=None):
    """Local attention for most tokens, and for global tokens attention to all by a second set of projections.

    Parameters
    ----------
    q, k, v : array, (batch, n_heads, n_tokens, head_dim)
        The ordinary projections of all tokens, as `attend` takes them.
    q_global, k_global, v_global : array
        The projections for global queries, of the same tokens in the same shapes. Only the global rows of `q_global`
        are used.
    window : int
        Tokens of the whole window: ``window // 2`` on each side, self extra.
    dilation : int or sequence of int
        Distance between attended keys of the window, one for all or one per head.
    global_tokens : sequence of int, or array of bool (n_tokens,) or (batch, n_tokens)
        The global tokens, of all sequences or of each batch item.
    causal : bool
        Keys after the query are left out, for global queries too.
    valid : array of bool, (batch, n_tokens) or (n_tokens,), optional
        True: a real token. Padded queries get 0, global or not, and padded keys are attended by nobody.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim).
    backend : str, optional
        Name of a backend, as in `attend`.

    Returns
    -------
    out : array, (batch, n_heads, n_tokens, v_head_dim)
        The attention of all tokens.
    vjp : function
        ``vjp(dout)`` gives the named tuple (dq, dk, dv, dq_global, dk_global, dv_global).

    Raises
    ------
    TypeError, ValueError
        The arrays do not belong together, or an option does not fit; nothing was computed.

    Notes
    -----
    A query that is not global has one softmax over its window and all global keys, by q, k and v throughout; a global
    query one over all keys, by q_global, k_global and v_global throughout. That is the released code; the paper leaves
    open which projections the global keys of local queries have. So `k_global` and `v_global` get gradients from global
    queries alone, and `q` of a global token gets none. For one set of projections, `attend` with
    `sparseattn.patterns.longformer` is one softmax a query as well. Two calls of `attend` over disjoint queries.

    References
    ----------
    .. [1] Beltagy et al., Longformer, arXiv:2004.05150, sections 3.1 and 3.2.
    """
    given = (("q_global", q_global), ("q", q)), (("k_global", k_global), ("k", k)), (("v_global", v_global), ("v", v))
    check_pairs("both are projections of the same tokens and need equal shapes and dtypes", given)
    options = {"window": window, "dilation": dilation, "causal": causal, "valid": valid}
    local, everywhere = _patterns(n_tokens("q", q), global_tokens, **options)
    local, everywhere = (pattern.to(device_of(q)) for pattern in (local, everywhere))
    out, local_vjp = attend_vjp(q, k, v, local, scale=scale, backend=backend)
    global_out, global_vjp = attend_vjp(q_global, k_global, v_global, everywhere, scale=scale, backend=backend)

    @on_its_device
    def vjp(dout):
        return LongformerGradients(*local_vjp(dout)[:3], *global_vjp(dout)[:3])

    # a row that one call has no keys for is 0 there
    return out + global_out, vjp


def _patterns(n, global_tokens, window, dilation, causal, valid):
    """What local queries attend, and what global ones do: no query is in both."""
    whole = patterns.longformer(n, window=window, dilation=dilation, global_tokens=global_tokens, causal=causal)
    everywhere = global_queries(n, global_tokens)
    local = whole - everywhere
    if causal:
        everywhere = everywhere & patterns.causal(n)
    if valid is not None:
        local, everywhere = (pattern & patterns.padding(valid) for pattern in (local, everywhere))
    return local, everywhere
