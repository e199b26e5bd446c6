"""What attention is, slowly and in float64: independent of the package, which it never imports.

`attention` and `gradients` take a mask (1 | batch, 1 | heads, n_queries, n_keys) of bool. The rest are the rules of the
families: "query i attends key j when ...", each over all pairs (i, j) at once.
"""

import numpy as np


def attention(q, k, v, mask, scale=None, dtype=np.float64, **options):
    """(out, lse) of q (batch, n_heads, n_queries, d), k and v (batch, n_kv_heads, n_keys, ...), computed in `dtype`.

    Options: `softcap` a number, `bias` broadcastable to the scores, `sinks` (n_heads,), `weights` (batch, n_heads,
    n_queries, n_keys) of the dropout. A mask of int says how often each pair counts.
    """
    q, k, v, mask, scale = _expanded(q, k, v, mask, scale, dtype)
    p, lse = _softmax(_scores(q, k, scale, dtype, **options), mask, _sinks(q, **options))
    return (p * _weights(dtype, **options)) @ v, lse


def gradients(dout, q, k, v, mask, scale=None, dlse=None, **options):
    """(dq, dk, dv) of sum(out * dout) + sum(lse * dlse)."""
    return all_gradients(dout, q, k, v, mask, scale, dlse, **options)[:3]


def all_gradients(dout, q, k, v, mask, scale=None, dlse=None, dtype=np.float64, statistics=None, **options):
    """(dq, dk, dv, ds, dsinks), computed in `dtype`; from `statistics` (out, lse) if given. ds is the gradient of every
    score with its bias, (batch, n_heads, n_queries, n_keys)."""
    n_kv_heads = k.shape[1]
    q, k, v, mask, scale = _expanded(q, k, v, mask, scale, dtype)
    used = mask.any(-1)
    dout = np.where(used[..., None], dout.astype(dtype), 0)
    weights, sinks = _weights(dtype, **options), _sinks(q, **options)
    s = _scores(q, k, scale, dtype, **options)
    if statistics is None:
        p, lse = _softmax(s, mask, sinks)
        delta = (p * weights * (dout @ v.swapaxes(-1, -2))).sum(-1)
    else:
        out, lse = statistics
        p = mask.astype(dtype) * np.exp(np.where(mask, s, -np.inf) - np.where(np.isfinite(lse), lse, 0)[..., None])
        delta = (dout * np.where(used[..., None], out.astype(dtype), 0)).sum(-1)
    if dlse is not None:
        delta = delta - np.where(np.isfinite(lse), dlse.astype(dtype), 0)
    ds = p * (dout @ v.swapaxes(-1, -2) * weights - delta[..., None])
    dsinks = -(np.exp(sinks - np.where(np.isfinite(lse), lse, np.inf)) * delta).sum((0, 2))
    dz = ds * _slope(q, k, scale, dtype, **options) * scale
    dk, dv = dz.swapaxes(-1, -2) @ q, (p * weights).swapaxes(-1, -2) @ dout
    return dz @ k, _grouped(dk, n_kv_heads), _grouped(dv, n_kv_heads), ds, dsinks


def plain(dout, q, k, v, mask, scale=None, dlse=None, dtype=np.float32, **options):
    """What plain dense attention in `dtype` gives: (out, lse, dq, dk, dv, ds, dsinks), one result an order of adding
    up.

    Gradients are computed as `attend_backward` is asked to, from out and lse as stored. No order of keys and head_dim
    is the plain one, and the largest error of a few is small by luck now and then: there are sixteen, made one by one
    as they are asked for.
    """
    rng, n_keys = np.random.default_rng(0), k.shape[2]
    for number in range(16):
        keys, qk, vo = ([np.arange(n), np.arange(n)[::-1], rng.permutation(n)][min(number, 2)]
                        for n in (n_keys, k.shape[3], v.shape[3]))
        here = {name: x[..., keys] if np.shape(x)[-1:] == (n_keys,) and name != "sinks" else x
                for name, x in options.items()}
        there = q[..., qk], k[:, :, keys][..., qk], v[:, :, keys][..., vo], mask[..., keys], scale
        out, lse = attention(*there, dtype, **here)
        out = out.astype(q.dtype)
        dq, dk, dv, ds, dsinks = all_gradients(dout[..., vo], *there, dlse, dtype, (out, lse), **here)
        keys, qk, vo = (np.argsort(order) for order in (keys, qk, vo))
        dq, dk, dv = (x.astype(q.dtype) for x in (dq[..., qk], dk[:, :, keys][..., qk], dv[:, :, keys][..., vo]))
        yield out[..., vo], lse, dq, dk, dv, ds[..., keys], dsinks


def dropout_weights(shape, dropout, seed):
    """What dropout multiplies the weights (batch, n_heads, n_queries, n_keys) with: 0 or 1 / (1 - dropout)."""
    words = [np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32 & 0xFFFFFFFF)]
    words += [np.arange(n, dtype=np.uint32).reshape((-1,) + (1,) * (3 - axis)) for axis, n in enumerate(shape)]
    r = np.zeros((1, 1, 1, 1), np.uint32)
    for word in words:
        r = r + np.uint32(0x9E3779B9) * np.atleast_1d(word)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            r = (r ^ (r >> np.uint32(shift))) * np.uint32(factor)
    return np.where(r.astype(np.float64) >= dropout * 2.0**32, 1 / (1 - dropout), 0)


def _expanded(q, k, v, mask, scale, dtype):
    """One key head and one mask a query head; whatever is attended by nobody, or attends nothing, is zero."""
    batch, n_heads = q.shape[:2]
    scale = dtype(q.shape[-1] ** -0.5 if scale is None else scale)
    mask = mask[np.arange(batch) * mask.shape[0] // batch][:, np.arange(n_heads) * mask.shape[1] // max(n_heads, 1)]
    group = np.arange(n_heads) * k.shape[1] // max(n_heads, 1)
    k, v = (np.where(mask.any(-2)[..., None], x[:, group].astype(dtype), 0) for x in (k, v))
    return np.where(mask.any(-1, keepdims=True), q.astype(dtype), 0), k, v, mask, scale


def _softmax(s, mask, sinks):
    s = np.where(mask, s, -np.inf)
    top = np.maximum(s.max(-1, keepdims=True, initial=-np.inf), sinks[..., None])
    top = np.where(np.isfinite(top), top, 0)
    p = mask.astype(s.dtype) * np.exp(s - top)
    total = p.sum(-1, keepdims=True) + np.exp(sinks[..., None] - top)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return p / np.where(total > 0, total, 1), lse


def _scores(q, k, scale, dtype, softcap=None, bias=0, **_):
    z = (q * scale) @ k.swapaxes(-1, -2)
    return (z if softcap is None else dtype(softcap) * np.tanh(z / dtype(softcap))) + np.asarray(bias).astype(dtype)


def _slope(q, k, scale, dtype, softcap=None, **_):
    """The derivative of what softcap does to the scores."""
    return 1 if softcap is None else 1 - np.tanh((q * scale) @ k.swapaxes(-1, -2) / dtype(softcap)) ** 2


def _sinks(q, sinks=None, **_):
    """A logit a head, (n_heads, 1); -inf without."""
    return (np.full(q.shape[1], -np.inf, q.dtype) if sinks is None else sinks.astype(q.dtype))[:, None]


def _weights(dtype, weights=1, **_):
    return np.asarray(weights).astype(dtype)


def _grouped(x, n_kv_heads):
    batch, n_heads = x.shape[:2]
    return x.reshape(batch, n_kv_heads, n_heads // max(n_kv_heads, 1), *x.shape[2:]).sum(2)


def positions(n_queries, n_keys=None, offset=None):
    """(i, j) of all pairs, i (1 | batch, 1, n_queries, 1) in keys; no `offset`: the last query is the last key."""
    n_keys = n_queries if n_keys is None else n_keys
    offset = np.reshape(n_keys - n_queries if offset is None else offset, (-1, 1, 1, 1))
    return np.arange(n_queries)[:, None] + offset, np.arange(n_keys)


def dense(n_queries, n_keys=None):
    return np.ones((1, 1, n_queries, n_queries if n_keys is None else n_keys), bool)


def causal(n_queries, n_keys=None, offset=None):
    i, j = positions(n_queries, n_keys, offset)
    return j <= i


def scattered(n_queries, n_keys, share, seed=0):
    """Pairs drawn at random; one query and one key have none."""
    mask = np.random.default_rng(seed).random((1, 1, n_queries, n_keys)) < share
    mask[..., 2, :], mask[..., 3] = False, False
    return mask


def sliding_window(n_queries, n_keys=None, *, left, right=0, dilation=1, offset=None):
    """`left`, `right` keys on each side (None: all), `dilation` apart, an int or one a head."""
    i, j = positions(n_queries, n_keys, offset)
    dilation = np.reshape(dilation, (1, -1, 1, 1))
    near = (j - i) % dilation == 0
    if left is not None:
        near = near & (i - j <= left * dilation)
    return near if right is None else near & (j - i <= right * dilation)


def block_local(n_tokens, *, block, back=1, forward=0, causal=False, exact=False, wrap=False):
    i, j = positions(n_tokens)
    n_blocks = -(-n_tokens // block)
    near = np.zeros((1, 1, n_tokens, n_tokens), bool)
    for step in range(-back, forward + 1):
        there = i // block + step
        near |= j // block == (there % n_blocks if wrap else there)
    if causal:
        near &= j <= i
    if exact:
        near &= (i - j <= block * back) & (j - i <= block * forward)
    return near


def global_tokens(n_tokens, positions):
    """`positions`: a list, or bool (batch, n_tokens)."""
    chosen = np.asarray(positions)
    if chosen.dtype != bool:
        chosen = np.isin(np.arange(n_tokens), chosen)[None]
    return chosen[:, None, :, None] | chosen[:, None, None, :]


def padding(valid, query_valid=None, n_queries=None):
    """`query_valid` of None: queries are the last `n_queries` keys."""
    valid = np.atleast_2d(valid)
    n_queries = valid.shape[1] if n_queries is None else n_queries
    query_valid = valid[:, valid.shape[1] - n_queries:] if query_valid is None else query_valid
    return np.atleast_2d(query_valid)[:, None, :, None] & valid[:, None, None, :]


def documents(lengths, key_lengths=None, *, causal=False, window=None):
    key_lengths = lengths if key_lengths is None else key_lengths
    mask = np.zeros((1, 1, sum(lengths), sum(key_lengths)), bool)
    row = col = 0
    for n_queries, n_keys in zip(lengths, key_lengths):
        i, j = positions(n_queries, n_keys)
        near = np.ones((1, 1, n_queries, n_keys), bool)
        if causal or window is not None:
            near &= j <= i
        if window is not None:
            near &= j > i - window
        mask[:, :, row:row + n_queries, col:col + n_keys] = near
        row, col = row + n_queries, col + n_keys
    return mask


def strided(n_tokens, *, stride, factor=None):
    i, j = positions(n_tokens)
    local, column = j > i - stride, (i - j) % stride == 0
    return (j <= i) & {"local": local, "column": column, None: local | column}[factor]


def prefix_lm(n_tokens, prefix, *, window=None):
    i, j = positions(n_tokens)
    prefix = np.reshape(prefix, (-1, 1, 1, 1))
    return (j <= i) & (j > i - (n_tokens if window is None else window)) | (i < prefix) & (j < prefix)


def attention_sinks(n_queries, n_keys=None, *, n_sinks, recent, offset=None):
    i, j = positions(n_queries, n_keys, offset)
    return (j <= i) & ((j < n_sinks) | (i - j <= recent))


def fixed(n_tokens, *, stride, n_summary, sub_block=0, factor=None):
    """`sub_block` an int or one a head."""
    i, j = positions(n_tokens)
    last = stride - np.reshape(sub_block, (1, -1, 1, 1)) * n_summary
    local, summary = j // stride == i // stride, (j % stride >= last - n_summary) & (j % stride < last)
    return (j <= i) & {"local": local, "summary": summary, None: local | summary}[factor]


def longformer(n_tokens, *, window, dilation=1, global_tokens=(), causal=False):
    i, j = positions(n_tokens)
    side = window // 2
    near = sliding_window(n_tokens, left=side, right=side, dilation=dilation) | _everywhere(n_tokens, global_tokens)
    return near & (j <= i) if causal else near


_everywhere = global_tokens


def random_blocks(n_queries, n_keys=None, *, per_row, block_size, n_heads=1, seed=0):
    """Floyd's method, one array of draws a step: a row takes its number, or the largest that it might be."""
    n_keys = n_queries if n_keys is None else n_keys
    rng, rows, cols = np.random.default_rng(seed), -(-n_queries // block_size), -(-n_keys // block_size)
    layout = np.zeros((1, n_heads, rows, cols), bool)
    for most in range(cols - min(per_row, cols), cols):
        drawn = rng.integers(0, most, (n_heads, rows), endpoint=True)
        for head, row in np.ndindex(n_heads, rows):
            taken = layout[0, head, row, drawn[head, row]]
            layout[0, head, row, most if taken else drawn[head, row]] = True
    return layout[:, :, np.arange(n_queries) // block_size][..., np.arange(n_keys) // block_size]


def etc(n_long, n_global, *, radius, sentence=None, l2g=False, g2l=False):
    """(long, globals), the global keys first; `l2g`, `g2l`: only between a long token and that of its sentence."""
    i, j = positions(n_long)
    sentence = np.zeros((1, n_long), int) if sentence is None else np.atleast_2d(sentence)
    own = (sentence[:, :, None] == np.arange(n_global))[:, None]
    every = np.ones((len(own), 1, 1, 1), bool)
    near = abs(i - j) <= radius
    long = np.concatenate([own if l2g else own | True, near & every], axis=3)
    members = own.swapaxes(2, 3)
    among = np.ones((n_global, n_global), bool) & every
    return long, np.concatenate([among, members if g2l else members | True], axis=3)


def grid(shape):
    """Coordinates of all tokens of a grid in raster order, those of queries (axes, n, 1) and of keys (axes, n)."""
    x = np.indices(shape).reshape(len(shape), -1)
    return x[:, :, None], x[:, None, :]


def _each(value, shape):
    return value if np.ndim(value) else (value,) * len(shape)


def axial(shape, axes, *, causal_axes=()):
    i, j = grid(shape)
    near = np.zeros((1, 1, i.shape[1], i.shape[1]), bool)
    for axis in np.ravel(axes) % len(shape):
        line = np.delete(i, axis, 0) == np.delete(j, axis, 0)
        causal = axis in np.ravel(causal_axes) % len(shape)
        near |= line.all(0) & ((j[axis] <= i[axis]) | (not causal))
    return near


def swin(shape, *, window, shift=0, pad="drop"):
    """pad "attend": of the grid whose axes are padded to whole windows."""
    window, shift = _each(window, shape), _each(shift, shape)
    shift = [0 if w >= length else s for length, w, s in zip(shape, window, shift)]
    window = [min(length, w) for length, w in zip(shape, window)]
    if pad == "attend":
        shape = [-(-length // w) * w for length, w in zip(shape, window)]
    i, j = grid(shape)
    same = [(x - s) // w == (y - s) // w for x, y, w, s in zip(i, j, window, shift)]
    return np.all(same, axis=0)[None, None]


def neighborhood(shape, *, kernel_size, stride=1, dilation=1, is_causal=False):
    near = np.ones((1, 1), bool)
    for length, *options in zip(shape, *(_each(x, shape) for x in (kernel_size, stride, dilation, is_causal))):
        near = np.kron(near, _neighbors(length, *options))
    return near[None, None]


def _neighbors(length, k, s, d, causal):
    """One axis, query by query, as published: bool (length, length)."""
    near = np.zeros((length, length), bool)
    for i in range(length):
        group, x = i % d, i // d
        n = len(range(group, length, d))
        if causal:
            lead = min(x // s * s + s - 1, n - 1)
            low, high = max(lead - k + 1, 0), x + 1
        else:
            lead = min(x // s * s + s // 2, n - 1)
            low = min(max(lead - k // 2, 0), n - k)
            high = low + k
        near[i, [group + d * y for y in range(low, high)]] = True
    return near


def bigbird(n_tokens, *, block_size, rand_blocks, n_window=3):
    """`rand_blocks` (n_heads, n_blocks - 2, n_random): row R - 1 is of block row R; first and last block are global."""
    n_blocks = -(-n_tokens // block_size)
    layout = np.zeros((len(rand_blocks), n_blocks, n_blocks), bool)
    layout[:, [0, -1]] = layout[:, :, [0, -1]] = True
    rows = np.arange(n_blocks)
    layout |= abs(rows[:, None] - rows) <= n_window // 2
    for head, rows_of_head in enumerate(rand_blocks):
        for row, blocks in enumerate(rows_of_head):
            layout[head, row + 1, blocks] = True
    block = np.arange(n_tokens) // block_size
    return layout[None][:, :, block][..., block]
