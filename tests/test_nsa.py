"""The three branches of NSA against dense softmaxes in float64 and the rule of the choice, query by query."""

import tracemalloc

import numpy as np
import pytest

import oracle
from sparseattn import variants
from test_content_selection import nsa_selection

NAMES = ("q", "k", "v", "compressed_k", "compressed_v", "gates")
SIZES = {"compress_block": 8, "compress_stride": 4, "select_block": 8, "n_selected": 5}


def drawn(n_queries=90, n_keys=90, n_compressed=21, heads=(4, 2), dtype=np.float64, batch=2):
    """Six arrays and the gradient of the output."""
    rng = np.random.default_rng(0)
    shapes = [(heads[0], n_queries, 8), *((heads[1], n, d) for n in (n_keys, n_compressed) for d in (8, 6)),
              (heads[0], n_queries, 3), (heads[0], n_queries, 6)]
    return [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]


def masks(q, k, compressed_k, scale, window, **sizes):
    """What the three branches attend."""
    n_queries, n_keys, n_compressed = q.shape[2], k.shape[2], compressed_k.shape[2]
    i, j = oracle.positions(n_queries, n_keys)
    seen = np.arange(n_compressed) * sizes["compress_stride"] + sizes["compress_block"] - 1 <= i
    s = scale * q @ np.repeat(compressed_k, q.shape[1] // k.shape[1], axis=1).swapaxes(-1, -2)
    p = np.exp(s) * seen
    p = p / np.maximum(p.sum(-1, keepdims=True), 1e-300)
    chosen = nsa_selection(p, n_kv_heads=k.shape[1], n_tokens=n_keys, **sizes)
    return seen, chosen, (j <= i) & (j > i - window)


def dense(arrays, dout, scale, window, **sizes):
    """(out, gradients) in float64."""
    q, k, v, compressed_k, compressed_v, gates = arrays
    found = masks(q, k, compressed_k, scale, window, **sizes)
    sides = (compressed_k, compressed_v), (k, v), (k, v)
    outs = [oracle.attention(q, *side, mask, scale)[0] for side, mask in zip(sides, found)]
    g = [gates[..., branch, None] for branch in range(3)]
    (dq, dck, dcv), *rest = (oracle.gradients(x * dout, q, *side, mask, scale)
                             for x, side, mask in zip(g, sides, found))
    dq = dq + rest[0][0] + rest[1][0]
    dgates = np.stack([(dout * out).sum(-1) for out in outs], -1)
    return sum(map(np.multiply, g, outs)), (dq, rest[0][1] + rest[1][1], rest[0][2] + rest[1][2], dck, dcv, dgates)


@pytest.mark.parametrize("sizes, options", [
    ({}, {}), ({"n_queries": 7}, {"window": 1}), ({"n_queries": 1}, {"select_block": 16, "n_selected": 3}),
    ({"n_compressed": 23}, {"select_block": 4, "n_selected": 7}), ({"heads": (2, 2)}, {"n_selected": 40}),
    ({"n_queries": 12, "n_keys": 12, "n_compressed": 2}, {}),
])
def test_three_softmaxes(sizes, options, backend):
    *arrays, dout = drawn(**sizes)
    options = SIZES | {"window": 10} | options
    out, vjp = variants.nsa(*arrays, **options, scale=0.3, backend=backend)
    expected, gradients = dense(arrays, dout, 0.3, **options)
    assert np.abs(out - expected).max() < 1e-12
    got = vjp(dout)
    assert got._fields == tuple(f"d{name}" for name in NAMES)
    for name, mine, right in zip(NAMES, got, gradients):
        assert mine.shape == right.shape and np.abs(mine - right).max() < 1e-12, name


@pytest.mark.parametrize("rules, n_compressed", [("paper", 9), ("package", 12)])
def test_finite_differences(rules, n_compressed, backend):
    """Of the whole call, the choice of blocks included: it stays as it is."""
    *arrays, dout = drawn(40, 40, n_compressed, batch=1)
    rng, step = np.random.default_rng(1), 1e-6
    for extra in ([], [rng.standard_normal(arrays[0].shape)]):

        def out_of(arrays):
            options = SIZES | {"n_selected": 4, "window": 6, "rules": rules, "backend": backend}
            return variants.nsa(*arrays[:6], **options, **dict(zip(["compressed_q"], arrays[6:])))

        given = arrays + extra
        gradients = out_of(given)[1](dout)
        assert len(gradients) == len(given)
        for at, (name, gradient) in enumerate(zip(gradients._fields, gradients)):
            direction = rng.standard_normal(given[at].shape)
            up, down = (out_of([*given[:at], given[at] + move, *given[at + 1 :]])[0]
                        for move in (step * direction, -step * direction))
            assert abs(((up - down) * dout).sum() / (2 * step) - (gradient * direction).sum()) < 1e-6, name


def test_no_queries():
    arrays = drawn(0, 30, 6)
    for rules, n_compressed in (("paper", 6), ("package", 7)):
        given = [x if i not in (3, 4) else drawn(0, 30, n_compressed)[i] for i, x in enumerate(arrays[:6])]
        out, vjp = variants.nsa(*given, **SIZES, window=4, rules=rules)
        assert out.shape == (2, 4, 0, 6) and all(not np.any(x) for x in vjp(out))


def test_before_the_first_compressed_block(backend):
    """Fewer tokens than a compressed block: that branch is 0 and gets no gradient."""
    *arrays, dout = drawn(6, 6, 0)
    out, vjp = variants.nsa(*arrays, **SIZES, window=3, scale=0.3, backend=backend)
    gates, causal, near = arrays[5], np.tri(6, dtype=bool)[None, None], oracle.sliding_window(6, left=2)
    outs = [oracle.attention(*arrays[:3], mask, 0.3)[0] for mask in (causal, near)]
    assert np.abs(out - gates[..., 1:2] * outs[0] - gates[..., 2:] * outs[1]).max() < 1e-12
    assert not vjp(dout).dgates[..., 0].any() and vjp(dout).dcompressed_k.shape == arrays[3].shape


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_axes_and_dtypes(axes, dtype):
    arrays = [x[(0,) * (4 - axes)] for x in drawn(dtype=dtype)]
    out, vjp = variants.nsa(*arrays[:6], **SIZES, window=10)
    assert out.shape == arrays[6].shape and out.dtype == dtype
    assert all(a.shape == b.shape and a.dtype == dtype for a, b in zip(vjp(arrays[6]), arrays))


def test_memory():
    """Probabilities of 8,192 queries over 2,047 blocks would take 64 MiB a head."""
    q, k, v, ck, cv, gates, _ = drawn(8192, 8192, 2047, (4, 1), np.float32, 1)
    few = [x[:, :, :n] for x, n in ((q, 99), (k, 99), (v, 99), (ck, 24), (cv, 24), (gates, 99))]
    variants.nsa(*few, **SIZES, window=64)
    tracemalloc.start()
    try:
        variants.nsa(q, k, v, ck, cv, gates, **SIZES | {"select_block": 64}, window=64)
        assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
    finally:
        tracemalloc.stop()


def test_refused():
    arrays = drawn()[:6]
    q, k, v, ck, cv, gates = arrays
    for changed, error, message in (
        ((q, k, v, ck, cv, gates[..., :2]), ValueError, r"gates has shape \(2, 4, 90, 2\); expected \(2, 4, 90, 3\)"),
        ((q, k, v, ck, cv, gates.astype(np.float32)), TypeError, "gates has dtype float32 but q float64"),
        ((q, k, v, ck[:, :1], cv[:, :1], gates), ValueError, "compressed_k has 1 heads but k 2; expected as many"),
        ((q, k, v, ck, cv[..., :4], gates), ValueError, "compressed_v has head_dim 4 but v 6; the branches are added"),
        ((q, k, v, ck[:, :, 2:], cv[:, :, 2:], gates), ValueError, "compressed_k has 19 compressed blocks; 90 tokens"),
        ((q, k[:, :, :80], v[:, :, :80], ck, cv, gates), ValueError, "q has 90 tokens but k only 80; the last query"),
        ((q, k, v, ck, cv[:, :, 1:], gates), ValueError, "k has 21 tokens but v has 20; each key needs one value"),
    ):
        with pytest.raises(error, match=message):
            variants.nsa(*changed, **SIZES, window=4)
    with pytest.raises(ValueError, match="compress_block is 6; expected a multiple of compress_stride=4"):
        variants.nsa(*arrays, **SIZES | {"compress_block": 6}, window=4)
    with pytest.raises(ValueError, match="n_selected is 2; expected at least 3: the first block, the own and the one"):
        variants.nsa(*arrays, **SIZES | {"n_selected": 2}, window=4)
    with pytest.raises(ValueError, match="rules is 'fla'; expected one of 'paper', 'package'"):
        variants.nsa(*arrays, **SIZES, window=4, rules="fla")
    with pytest.raises(ValueError, match="compressed_k has 21 keys; 90 tokens have 22 strides of 4, with a compressed"):
        variants.nsa(*arrays, **SIZES, window=4, rules="package")
    with pytest.raises(ValueError, match=r"compressed_q has shape \(2, 4, 80, 8\) but q \(2, 4, 90, 8\); both are"):
        variants.nsa(*arrays, **SIZES, window=4, compressed_q=q[:, :, 10:])
    with pytest.raises(ValueError, match="window is 0; expected at least 1"):
        variants.nsa(*arrays, **SIZES, window=0)
    with pytest.raises(ValueError, match=r"dout has shape \(2, 4, 90, 5\)"):
        variants.nsa(*arrays, **SIZES, window=4)[1](np.zeros((2, 4, 90, 5)))
