"""attend and attend_backward over all families, dtypes, head layouts and edges, against dense float64."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import families
import oracle
import sparseattn as sa
from devices import rounding, widest
from sparseattn import patterns

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# (query heads a pattern head, query heads a kv head where the pattern has one, qk_dim, v_dim)
LAYOUTS = [(1, 1, 64, 64), (4, 2, 20, 20), (3, 3, 3, 7), (2, 1, 80, 16), (6, 6, 1, 1), (1, 1, 16, 128), (2, 2, 128, 33)]


def drawn(seed, mask, layout, dtype, batch=2):
    """q, k, v, dout of random normals that fit a mask; NaN in all that attends nothing or that nobody attends."""
    group, share, qk_dim, v_dim = layout
    rng = np.random.default_rng(seed)
    batch = max(batch, mask.shape[0])
    n_heads = group * mask.shape[1]
    n_kv_heads = n_heads // share if mask.shape[1] == 1 else mask.shape[1]
    shapes = ((n_heads, mask.shape[2], qk_dim), (n_kv_heads, mask.shape[3], qk_dim), (n_kv_heads, mask.shape[3], v_dim),
              (n_heads, mask.shape[2], v_dim))
    q, k, v, dout = (rng.standard_normal((batch,) + shape).astype(dtype) for shape in shapes)
    whole = mask[np.arange(batch) * mask.shape[0] // batch][:, np.arange(n_heads) * mask.shape[1] // n_heads]
    silent = ~whole.any(3)
    unseen = ~whole.any(2).reshape(batch, n_kv_heads, n_heads // n_kv_heads, mask.shape[3]).any(2)
    q[silent], dout[silent], k[unseen], v[unseen] = np.nan, np.nan, np.nan, np.nan
    return q, k, v, dout


def close(name, got, exact, plain):
    """Hold an error to twice that of plain dense attention in the same dtype, and one unit in the last place.

    `plain`: its results, of any order of adding up; only as many are looked at as it takes.
    """
    assert got.shape == exact.shape
    assert np.array_equal(np.isfinite(got.astype(np.float64)), np.isfinite(exact)), f"{name}: finite elsewhere"
    largest = np.abs(exact, where=np.isfinite(exact), out=np.zeros_like(exact)).max(initial=0)
    error = _gap(got, exact)
    if got.dtype == np.float64:
        assert error <= 1e-12 * max(largest, 1), name  # entries of order 1 cancel where a gradient is 0
        return
    unit = float(ml_dtypes.finfo(got.dtype).eps) * 2 ** np.floor(np.log2(largest)) if largest else 0
    allowed = 0
    for x in plain:
        allowed = max(allowed, 2 * _gap(x, exact) + unit)
        if error <= allowed:
            return
    assert error <= allowed, name


def _gap(a, b):
    there = np.isfinite(b)
    return np.abs(a.astype(np.float64)[there] - b[there]).max(initial=0)


def compared(pattern, mask, q, k, v, dout, backend, scale=None, dlse=None):
    """Run forward and backward, and hold both to the oracle."""
    out, lse = sa.attend(q, k, v, pattern, scale=scale, return_lse=True, backend=backend)
    gradients = sa.attend_backward(dout, q, k, v, out, lse, pattern, dlse=dlse, scale=scale, backend=backend)
    assert gradients.dbias is None and gradients.dsinks is None
    assert lse.dtype == (np.float64 if q.dtype == np.float64 else np.float32)
    assert all(x.dtype == q.dtype for x in (out, *gradients[:3]))
    exact = oracle.attention(q, k, v, mask, scale) + oracle.gradients(dout, q, k, v, mask, scale, dlse)
    plain = itertools.tee(oracle.plain(dout, q, k, v, mask, scale, dlse, lse.dtype.type), 5)
    names = "out", "lse", "dq", "dk", "dv"
    for i, (name, got, true, results) in enumerate(zip(names, (out, lse, *gradients[:3]), exact, plain)):
        close(name, got, true, (result[i] for result in results))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(families.TABLE)), ids=[case.name for case in families.TABLE])
def test_families(number, dtype, backend):
    case = families.TABLE[number]
    layout = LAYOUTS[(number + list(DTYPES).index(dtype)) % len(LAYOUTS)]
    q, k, v, dout = drawn(number, case.mask, layout, DTYPES[dtype])
    compared(case.build(), case.mask, q, k, v, dout, backend)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("n_queries, n_keys", [(90, 90), (40, 100)])
def test_head_layouts(layout, n_queries, n_keys, backend):
    mask = oracle.sliding_window(n_queries, n_keys, left=17)
    q, k, v, dout = drawn(0, mask, layout, np.float32, batch=1)
    dlse = np.random.default_rng(1).standard_normal(q.shape[:3]).astype(np.float32)
    pattern = patterns.sliding_window(n_queries, n_keys, left=17)
    compared(pattern, mask, q, k, v, dout, backend, scale=0.3, dlse=dlse)


def test_pattern_heads_are_kv_heads_or_query_heads(backend):
    pattern = patterns.sliding_window(50, left=3, dilation=[1, 4])
    mask = oracle.sliding_window(50, left=3, dilation=[1, 4])
    rng = np.random.default_rng(0)
    for n_heads, n_kv_heads in ((2, 1), (2, 2), (6, 2)):
        q, dout = (rng.standard_normal((1, n_heads, 50, 8)).astype(widest(backend)) for _ in range(2))
        k, v = (rng.standard_normal((1, n_kv_heads, 50, 8)).astype(widest(backend)) for _ in range(2))
        compared(pattern, mask, q, k, v, dout, backend)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dlse(dtype, backend):
    case = families.COMPOSED[1]
    q, k, v, dout = drawn(3, case.mask, (2, 2, 16, 16), DTYPES[dtype])
    dlse = np.random.default_rng(4).standard_normal(q.shape[:3])
    dlse = dlse.astype(np.float64 if dtype == "float64" else np.float32)
    compared(case.build(), case.mask, q, k, v, dout, backend, dlse=dlse)


@pytest.mark.parametrize("scale", [0, -0.5, 2, np.float32(0.25)])
def test_scale(scale, backend):
    mask = oracle.causal(40)
    compared(patterns.causal(40), mask, *drawn(0, mask, (2, 1, 8, 8), np.float32), backend, scale=scale)


def _strided(x, way):
    """x with the same values and other strides."""
    if way == "every second":
        wide = np.full(x.shape[:3] + (2 * x.shape[3],), np.nan, x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if way == "heads last":
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if way == "backwards":
        return np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]
    return np.asfortranarray(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["every second", "heads last", "backwards", "columns first"])
def test_strides(way, dtype, backend):
    mask = oracle.strided(70, stride=8)
    arrays = [_strided(x, way) for x in drawn(0, mask, (4, 2, 20, 12), DTYPES[dtype])]
    compared(patterns.strided(70, stride=8), mask, *arrays, backend)


def test_broadcast_and_read_only_inputs(backend):
    one = np.random.default_rng(0).standard_normal((1, 1, 30, 8)).astype(widest(backend))
    q = np.broadcast_to(one, (2, 3, 30, 8))
    compared(patterns.causal(30), oracle.causal(30), q, q, q, q, backend)


@pytest.mark.parametrize("ndim", [2, 3, 4])
def test_axes(ndim, backend):
    mask = oracle.sliding_window(30, left=4)
    whole = drawn(0, mask, (1, 1, 8, 5), widest(backend), batch=1)
    q, k, v, dout = (x[(0,) * (4 - ndim)] for x in whole)
    pattern = patterns.sliding_window(30, left=4)
    (out, lse), vjp = sa.vjp(q, k, v, pattern, return_lse=True, backend=backend)
    assert out.shape == q.shape[:-1] + (5,) and lse.shape == q.shape[:-1]
    assert [g.shape for g in vjp(dout)[:3]] == [q.shape, k.shape, v.shape]
    assert np.allclose(out, oracle.attention(*whole[:3], mask)[0][(0,) * (4 - ndim)], atol=rounding(backend))


@pytest.mark.parametrize("n_heads, n_kv_heads, batch", [(0, 0, 2), (2, 1, 0), (0, 1, 1)])
def test_no_heads_or_batch(n_heads, n_kv_heads, batch, backend):
    q, k = (np.ones((batch, n, 5, 4), widest(backend)) for n in (n_heads, n_kv_heads))
    (out, lse), vjp = sa.vjp(q, k, k, patterns.causal(5), return_lse=True, backend=backend)
    assert out.shape == q.shape and lse.shape == q.shape[:3]
    dq, dk, dv, *_ = vjp(out)
    assert dq.shape == q.shape and not dk.any() and not dv.any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_nobody_attends_touches_nothing(poison, backend):
    rng = np.random.default_rng(0)
    valid = rng.random((2, 75)) < 0.6
    pattern = patterns.strided(75, stride=8) & patterns.padding(valid)
    q, k, v, dout = (rng.standard_normal((2, 2, 75, 20)).astype(np.float32) for _ in range(4))

    def run():
        out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend)
        return out, lse, *sa.attend_backward(dout, q, k, v, out, lse, pattern, backend=backend)[:3]

    clean = run()
    for x in (q, k, v, dout):
        x.swapaxes(1, 2)[~valid] = poison
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), clean, run()):
        assert np.array_equal(a, b), name


@pytest.mark.parametrize("size", [1e2, 1e10, 1e15])
def test_huge_scores(size, backend):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 2, 70, 16)).astype(np.float32) for _ in range(4))
    q, k = q * np.float32(size), k * np.float32(size)
    pattern, mask = patterns.sliding_window(70, left=20), oracle.sliding_window(70, left=20)
    (out, lse), vjp = sa.vjp(q, k, v, pattern, return_lse=True, backend=backend)
    exact = oracle.attention(q, k, v, mask)
    assert np.allclose(out, exact[0], atol=1e-2 if size < 1e5 else 1e-6)
    assert np.allclose(lse, exact[1], rtol=1e-6)
    for gradient in vjp(dout)[:3]:
        assert np.isfinite(gradient).all()


def test_out(backend):
    mask = oracle.causal(30)
    q, k, v, _ = drawn(0, mask, (2, 1, 8, 5), np.float32)
    expected = sa.attend(q, k, v, patterns.causal(30), backend=backend)
    wide = np.full((2, 30, 2, 10), np.nan, np.float32)
    for out in (np.full(expected.shape, np.nan, np.float32), wide.transpose(0, 2, 1, 3)[..., ::2]):
        assert sa.attend(q, k, v, patterns.causal(30), out=out, backend=backend) is out
        assert np.array_equal(out, expected)
    assert np.isnan(wide[..., 1::2]).all()
    flat = np.full((30, 5), np.nan, np.float32)
    result, lse = sa.attend(q[0, 0], k[0, 0], v[0, 0], patterns.causal(30), out=flat, return_lse=True, backend=backend)
    assert result is flat and lse.shape == (30,) and np.allclose(flat, expected[0, 0], atol=1e-6)


def test_out_beside_its_inputs_in_one_buffer(backend):
    buffer = np.random.default_rng(0).standard_normal((1, 1, 20, 4, 8)).astype(widest(backend))
    q, k, v, out = (buffer[:, :, :, i] for i in range(4))
    expected = sa.attend(q.copy(), k.copy(), v.copy(), patterns.causal(20), backend=backend)
    assert np.array_equal(sa.attend(q, k, v, patterns.causal(20), out=out, backend=backend), expected)


def test_out_of_parts_in_16_bits(backend):
    # several parts must not round in between
    mask = oracle.strided(120, stride=8)
    q, k, v, _ = drawn(0, mask, (2, 1, 16, 16), np.float16)
    out = np.full(q.shape, np.nan, np.float16)
    sa.attend(q, k, v, patterns.strided(120, stride=8), out=out, backend=backend)
    plain = oracle.attention(q, k, v, mask, dtype=np.float32)[0].astype(np.float16)
    close("out", out, oracle.attention(q, k, v, mask)[0], [plain])


def test_vjp_is_attend_and_its_backward(backend):
    mask = oracle.causal(40)
    q, k, v, dout = drawn(0, mask, (2, 2, 8, 8), np.float32)
    out, lse = sa.attend(q, k, v, patterns.causal(40), scale=0.7, return_lse=True, backend=backend)
    first, vjp = sa.vjp(q, k, v, patterns.causal(40), scale=0.7, backend=backend)
    assert np.array_equal(first, out)
    for dlse in (None, lse):
        expected = sa.attend_backward(dout, q, k, v, out, lse, patterns.causal(40), dlse=dlse, scale=0.7,
                                      backend=backend)
        for a, b in zip(vjp(dout, dlse=dlse)[:3], expected[:3]):
            assert np.array_equal(a, b)


def test_equal_calls_give_equal_bits(backend):
    q, k, v, dout = drawn(0, oracle.dense(150), (4, 2, 16, 16), np.float32)
    pattern = patterns.strided(150, stride=12)
    results = []
    for _, order in itertools.product(range(2), (pattern, pattern.reblock(32))):
        (out, lse), vjp = sa.vjp(q, k, v, order, return_lse=True, backend=backend)
        results.append([x.tobytes() for x in (out, lse, *vjp(dout)[:3])])
    assert results[0] == results[2] and results[1] == results[3]
