"""The score terms of sparseattn.bias: each is the dense bias its rule says, and its gradient is in its own shape."""

import gc
import pickle

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

import oracle
import sparseattn as sa
from devices import rounding, widest
from sparseattn import Pattern, bias, patterns
from sparseattn.kernels.gpu.plan import MOST
from sparseattn.kernels.gpu.terms import flat_bias
from sparseattn.terms import Dense


def inputs(n_queries, n_keys, dtype=np.float64, batch=2, n_heads=4, n_kv_heads=2):
    rng = np.random.default_rng(0)
    shapes = ((n_heads, n_queries), (n_kv_heads, n_keys), (n_kv_heads, n_keys), (n_heads, n_queries))
    return [rng.standard_normal((batch, *shape, 8)).astype(dtype) for shape in shapes]


def distances(n_queries, n_keys, offset=None):
    """j - i - offset, (1 | batch, 1, n_queries, n_keys)."""
    i, j = oracle.positions(n_queries, n_keys, offset)
    return (j - i).reshape(-1, 1, n_queries, n_keys)


def same_as_dense(term, given, dense, pull, pattern, mask, arrays, backend):
    """A term against its dense bias; pull(ds) adds up the gradient of scores (batch, n_heads, n_queries, n_keys)."""
    q, k, v, dout = (x.astype(min(x.dtype, np.dtype(widest(backend)))) for x in arrays)
    (out, lse), vjp = sa.vjp(q, k, v, pattern, bias=term, return_lse=True, backend=backend)
    got = vjp(dout)
    exact = oracle.attention(q, k, v, mask, bias=dense) + oracle.all_gradients(dout, q, k, v, mask, bias=dense)
    unit = 1e-12 if q.dtype == np.float64 else 2e-5
    for a, b in zip((out, lse, *got[:3]), exact):
        assert np.allclose(a, b, atol=unit)
    assert got.dbias.shape == given.shape and got.dbias.dtype == given.dtype
    assert np.abs(got.dbias - pull(exact[5])).max() <= 10 * unit * max(np.abs(exact[5]).sum(-1).max(), 1)


OFFSETS = [None, 7, [0, 31], [-4, 60]]
SIZES = [(40, 40), (20, 45), (45, 20), (1, 33)]


@pytest.mark.parametrize("offset", OFFSETS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_alibi(sizes, offset, backend):
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])
    far = np.abs(distances(*sizes, offset))
    same_as_dense(bias.alibi(slopes, offset=offset), slopes, -slopes[:, None, None] * far,
                  lambda ds: -(ds * far).sum((0, 2, 3)), patterns.dense(*sizes), oracle.dense(*sizes), inputs(*sizes),
                  backend)


def test_alibi_is_rounded_once():
    slopes = np.array([2 / 3, 1 / 7])
    q = np.zeros((1, 2, 5, 1), np.float32)
    values = bias.alibi(slopes).bind(q, q, 4).values
    assert values.dtype == np.float32
    expected = -slopes[:, None] * np.abs(np.arange(-4, 5))
    assert np.array_equal(values[0, :, 0, :-1], expected.astype(np.float32))  # the last place is spare


@pytest.mark.parametrize("left, size", [(3, 6), (0, 1), (60, 121), (-2, 3)])
@pytest.mark.parametrize("offset", OFFSETS, ids=str)
def test_by_offset(left, size, offset, backend):
    sizes, table = (25, 40), np.random.default_rng(1).standard_normal((4, size))
    place = distances(*sizes, offset) + left
    inside = (place >= 0) & (place < size)
    dense = np.where(inside, table[:, np.clip(place, 0, size - 1)].swapaxes(0, 1)[:, :, 0], 0)
    same_as_dense(bias.by_offset(table, left=left, offset=offset), table, dense,
                  lambda ds: np.stack([(ds * (place == t)).sum((0, 2, 3)) for t in range(size)], axis=1),
                  patterns.dense(*sizes), oracle.dense(*sizes), inputs(*sizes), backend)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_by_offset_shared_by_heads(dtype, backend):
    table = np.random.default_rng(1).standard_normal(5)
    place = distances(30, 30) + 3
    dense = np.where((place >= 0) & (place < 5), table[np.clip(place, 0, 4)], 0)
    same_as_dense(bias.by_offset(table, left=3), table, dense,
                  lambda ds: np.array([(ds * (place == t)).sum() for t in range(5)]),
                  patterns.sliding_window(30, left=9), oracle.sliding_window(30, left=9), inputs(30, 30, dtype),
                  backend)


@pytest.mark.parametrize("size", [1.0, 1.4, 1.9])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_largest_gradient_of_a_table(size, dtype, backend):
    """A query with one key and a gradient of lse alone: every pair has the largest gradient that a pair can have."""
    q, k, v = np.random.default_rng(3).standard_normal((3, 1, 2, 90, 32)).astype(dtype)
    pattern, term = patterns.sliding_window(90, left=0), bias.by_offset(np.zeros((2, 9), np.float32), left=4)
    out, lse = sa.attend(q, k, v, pattern, bias=term, return_lse=True, backend=backend)
    dout, dlse = np.zeros_like(out), np.full(lse.shape, size, np.float32)
    got = sa.attend_backward(dout, q, k, v, out, lse, pattern, dlse=dlse, bias=term, backend=backend).dbias
    assert np.allclose(got, 90 * size * np.eye(9)[[4, 4]], rtol=1e-5)


@pytest.mark.parametrize("shape, window", [((5, 7), (2, 3)), ((4, 3), (4, 3)), ((3, 2), (4, 5)), ((6, 6), (1, 2)),
                                           ((1, 9), (1, 4)), ((6, 4), 3)], ids=str)
@pytest.mark.parametrize("n_table_heads", [4, 1])
def test_relative_2d(shape, window, n_table_heads, backend):
    w0, w1 = (window, window) if isinstance(window, int) else window
    n = shape[0] * shape[1]
    table = np.random.default_rng(2).standard_normal(((2 * w0 - 1) * (2 * w1 - 1), n_table_heads))
    y, x = np.divmod(np.arange(n), shape[1])
    dy, dx = y[:, None] - y, x[:, None] - x
    inside = (abs(dy) < w0) & (abs(dx) < w1)
    row = np.where(inside, (dy + w0 - 1) * (2 * w1 - 1) + dx + w1 - 1, 0)
    dense = np.where(inside, table.T[:, row], 0)

    def pull(ds):
        sums = np.stack([(ds * (inside & (row == t))).sum((0, 2, 3)) for t in range(len(table))])
        return sums if n_table_heads > 1 else sums.sum(1, keepdims=True)

    same_as_dense(bias.relative_2d(table, shape, window), table, dense, pull, patterns.dense(n), oracle.dense(n),
                  inputs(n, n), backend)


@pytest.mark.parametrize("axes", [(30, 40), (4, 30, 40), (2, 1, 30, 40), (1, 40), (2, 4, 30, 40), (30, 1)], ids=str)
@pytest.mark.parametrize("table_axes", [(4,), (4, 30), (2, 4, 30), (2, 1, 1), (1, 4, 1)], ids=str)
def test_labels_of_pairs(axes, table_axes, backend):
    rng = np.random.default_rng(3)
    table, labels = rng.standard_normal((*table_axes, 6)), rng.integers(0, 6, axes)
    full = table.reshape((1, table_axes[0], 1, 6) if table.ndim == 2 else (1,) * (4 - table.ndim) + table.shape)
    full, label = np.broadcast_to(full, (2, 4, 30, 6)), np.broadcast_to(labels, (2, 4, 30, 40))

    def pull(ds):
        whole = np.stack([(ds * (label == t)).sum(-1) for t in range(6)], axis=-1)
        if table.ndim == 2:
            return whole.sum((0, 2))
        lead = (1,) * (4 - table.ndim) + table.shape
        return whole.sum(tuple(a for a in range(4) if lead[a] == 1), keepdims=True).reshape(table.shape)

    same_as_dense(bias.labels(table, labels), table, np.take_along_axis(full, label, -1), pull,
                  patterns.causal(30, 40), oracle.causal(30, 40), inputs(30, 40), backend)


@pytest.mark.parametrize("offset", OFFSETS, ids=str)
@pytest.mark.parametrize("per_query", [False, True])
def test_labels_of_distances(offset, per_query, backend):
    # as in ETC: 0 for the token itself, then 1 to 3 to the right, 4 to 6 to the left, the ends for all beyond
    of_distance, rng = np.array([6, 5, 4, 0, 1, 2, 3]), np.random.default_rng(4)
    table = rng.standard_normal((4, 20, 7) if per_query else (4, 7))
    d = distances(20, 45, offset)
    label = np.broadcast_to(np.where(d > 0, np.minimum(d, 3), np.where(d < 0, 3 + np.minimum(-d, 3), 0)),
                            (2, 4, 20, 45))
    full = np.broadcast_to(table if per_query else table[:, None], (2, 4, 20, 7))

    def pull(ds):
        whole = np.stack([(ds * (label == t)).sum(-1) for t in range(7)], axis=-1).sum(0)
        return whole if per_query else whole.sum(1)

    same_as_dense(bias.labels(table, of_distance, left=3, offset=offset), table, np.take_along_axis(full, label, -1),
                  pull, patterns.dense(20, 45), oracle.dense(20, 45), inputs(20, 45), backend)


def counts_of(kind, counts):
    if kind == "scipy":
        return scipy.sparse.csr_array(counts[0, 0])
    if kind == "patterns":
        return [Pattern.from_mask(counts >= least) for least in range(1, counts.max() + 1)][::-1]
    return counts


@pytest.mark.parametrize("name", ["causal", "strided", "heads", "batch"])
@pytest.mark.parametrize("kind, axes", [("array", (1, 1)), ("array", (2, 4)), ("scipy", (1, 1)), ("patterns", (1, 1)),
                                        ("patterns", (1, 4)), ("patterns", (2, 2))], ids=str)
def test_log_count(name, kind, axes, backend):
    pattern, mask = {
        "causal": (patterns.causal(50), oracle.causal(50)),
        "strided": (patterns.strided(50, stride=6), oracle.strided(50, stride=6)),
        "heads": (patterns.sliding_window(50, left=5, dilation=[1, 3, 1, 2]),
                  oracle.sliding_window(50, left=5, dilation=[1, 3, 1, 2])),
        "batch": (patterns.documents([[20, 30], [45, 5]], causal=True),
                  np.concatenate([oracle.documents([20, 30], causal=True), oracle.documents([45, 5], causal=True)])),
    }[name]
    mask = mask.reshape((-1, *mask.shape[-3:]))
    counts = np.random.default_rng(5).integers(0, 4, (*axes, 50, 50))
    q, k, v, dout = inputs(50, 50, widest(backend))
    whole = np.repeat(counts, 4 // axes[1], 1) if axes[1] > 1 else counts
    (out, lse), vjp = sa.vjp(q, k, v, pattern, bias=bias.log_count(counts_of(kind, counts)), return_lse=True,
                             backend=backend)
    got, weighted = vjp(dout), mask * whole
    exact = oracle.attention(q, k, v, weighted) + oracle.gradients(dout, q, k, v, weighted)
    for a, b in zip((out, lse, *got[:3]), exact, strict=True):
        assert np.allclose(a, b, atol=10 * rounding(backend))
    assert got.dbias is None


def test_log_count_of_more_heads_than_the_pattern_has(backend):
    # both are made of parts about some heads
    windows = [patterns.sliding_window(24, left=8), patterns.strided(24, stride=4, factor="column")]
    pattern = Pattern.per_head([patterns.strided(24, stride=5, factor="column"), patterns.sliding_window(24, left=9)])
    counted = [Pattern.per_head([windows[0], windows[1], windows[1], windows[0]]), patterns.causal(24), pattern]
    counts = sum(p.to_dense().repeat(4 // p.n_heads, 1).astype(int) for p in counted)
    q, k, v, dout = inputs(24, 24, widest(backend))
    out, vjp = sa.vjp(q, k, v, pattern, bias=bias.log_count(counted), backend=backend)
    weighted, unit = pattern.to_dense().repeat(2, 1) * counts, rounding(backend)
    assert np.allclose(out, oracle.attention(q, k, v, weighted)[0], atol=unit)
    for a, b in zip(vjp(dout)[:3], oracle.gradients(dout, q, k, v, weighted), strict=True):
        assert np.allclose(a, b, atol=unit)


@pytest.mark.parametrize("name", ["alibi", "by_offset", "relative_2d", "labels", "log_count"])
def test_pickle(name):
    table = np.random.default_rng(0).standard_normal((4, 9))
    term = bias.log_count([patterns.causal(20)] * 2) if name == "log_count" else made(name, table)
    q, k, v, _ = inputs(20, 20)
    out = sa.attend(q, k, v, patterns.causal(20), bias=term)
    assert np.array_equal(sa.attend(q, k, v, patterns.causal(20), bias=pickle.loads(pickle.dumps(term))), out)


def test_log_count_is_the_logarithm_of_counts_as_a_bias(backend):
    counts = np.random.default_rng(6).integers(1, 5, (40, 40))
    q, k, v, dout = inputs(40, 40, widest(backend))
    results = [sa.vjp(q, k, v, patterns.causal(40), bias=term, softcap=2.0, sinks=np.ones(4, q.dtype), dropout=0.3,
                      seed=5, backend=backend) for term in (bias.log_count(counts), np.log(counts).astype(q.dtype))]
    assert np.allclose(results[0][0], results[1][0], atol=rounding(backend))
    for a, b in zip(results[0][1](dout)[:3], results[1][1](dout)[:3]):
        assert np.allclose(a, b, atol=rounding(backend))


def test_counted_pairs_are_made_once_a_pattern():
    counted, pattern = bias.log_count([patterns.causal(40), patterns.sliding_window(40, left=3)]), patterns.causal(40)
    made = counted.of(pattern, 1, (1,))
    assert counted.of(pattern, 1, (1,)) is made and counted.of(patterns.causal(40), 1, (1,)) is made
    assert made.nnz == pattern.nnz + patterns.sliding_window(40, left=3).nnz
    assert counted.of(patterns.strided(40, stride=4), 1, (1,)) is not made
    del pattern
    gc.collect()
    assert len(counted._made) == 0


def test_nothing_counts(backend):
    q, k, v, dout = inputs(20, 20, widest(backend))
    for counts in (np.zeros((20, 20), int), scipy.sparse.csr_array((20, 20), dtype=int)):
        (out, lse), vjp = sa.vjp(q, k, v, patterns.causal(20), bias=bias.log_count(counts), return_lse=True,
                                 backend=backend)
        assert not out.any() and (lse == -np.inf).all() and not vjp(dout).dq.any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_gradient_in_the_dtype_of_the_table(dtype, backend):
    table = np.random.default_rng(7).standard_normal((4, 7)).astype(dtype)
    q, k, v, dout = inputs(30, 30, np.float32)
    results = []
    for given in (table, table.astype(np.float64)):
        out, vjp = sa.vjp(q, k, v, patterns.causal(30), bias=bias.by_offset(given, left=6), backend=backend)
        results.append((out, vjp(dout).dbias))
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1].dtype == dtype and np.array_equal(results[0][1], results[1][1].astype(dtype))


def made(name, table):
    return {"alibi": lambda: bias.alibi(table[0, :4]), "by_offset": lambda: bias.by_offset(table, left=8),
            "relative_2d": lambda: bias.relative_2d(table[:, :9].T, (4, 5), 2),
            "labels": lambda: bias.labels(table, np.arange(400).reshape(20, 20) % 9)}[name]()


@pytest.mark.parametrize("name", ["alibi", "by_offset", "relative_2d", "labels"])
def test_a_later_call_sees_new_values_and_builds_nothing_else_anew(name, backend):
    table = np.random.default_rng(8).standard_normal((4, 9))
    term = made(name, table)
    q, k, v, dout = inputs(20, 20, widest(backend))
    first = sa.attend(q, k, v, patterns.causal(20), bias=term, backend=backend)
    before = term.bind(q, k, 4)
    table *= 2
    out, vjp = sa.vjp(q, k, v, patterns.causal(20), bias=term, backend=backend)
    after, fresh = term.bind(q, k, 4), made(name, table.copy())
    assert before.q_codes is after.q_codes and before.k_codes is after.k_codes
    assert not np.allclose(out, first)
    expected, vjp_of_fresh = sa.vjp(q, k, v, patterns.causal(20), bias=fresh, backend=backend)
    assert np.array_equal(out, expected) and np.array_equal(vjp(dout).dbias, vjp_of_fresh(dout).dbias)


@pytest.mark.parametrize("name", ["alibi", "by_offset", "relative_2d", "labels", "array"])
def test_a_gpu_reads_values_of_now_and_what_was_laid_out_before(name):
    table, pattern = np.random.default_rng(8).standard_normal((4, 9)).astype(np.float32), patterns.causal(20)
    q = np.zeros((2, 4, 20, 8), np.float32)

    def flat():
        term = Dense(table[:, :1, None]) if name == "array" else made(name, table)  # a new one for each call
        return flat_bias(term.bind(q, q, 4), pattern, 2, 4)

    first = flat()
    values = first.values.copy()
    table *= 2
    second = flat()
    assert np.array_equal(second.values, 2 * values)
    assert all(getattr(first, x) is getattr(second, x) for x in ("value_at", "q_codes", "k_codes"))


def test_bounds_of_what_is_kept_for_a_gpu():
    table, pattern, q = np.ones((1, 9), np.float32), patterns.causal(20), np.zeros((1, 1, 20, 8), np.float32)
    laid_out = [flat_bias(bias.by_offset(table, left=left).bind(q, q, 4), pattern, 1, 1) for left in range(2 * MOST)]
    assert [x.value_at[0, 0, 1] for x in laid_out] == [left + 1 for left in range(2 * MOST)]
    assert len(pattern.memo.get("gpu bias", dict)) <= MOST


@pytest.mark.parametrize("n_queries, n_keys", [(1, 1), (1, 64), (7, 8), (0, 3), (65, 2)])
def test_tables_of_equal_sizes_share_their_codes(n_queries, n_keys):
    q, k = (np.zeros((1, 1, n, 8), np.float32) for n in (n_queries, n_keys))
    first, second = (bias.by_offset(np.ones(9), left=4, offset=3).bind(q, k, 4) for _ in range(2))
    assert first.q_codes is second.q_codes and first.k_codes is second.k_codes and first.shift is second.shift
    assert np.array_equal(first.q_codes, -np.arange(n_queries)) and np.array_equal(first.k_codes, np.arange(n_keys))
    assert first.shift == 1


@pytest.mark.parametrize("name", ["alibi", "by_offset", "relative_2d", "labels"])
def test_gradients_are_differences(name, backend):
    table = np.random.default_rng(9).standard_normal((4, 9))
    term = made(name, table)
    q, k, v, dout = inputs(20, 20)
    pattern = patterns.strided(20, stride=4)

    def loss():
        return (sa.attend(q, k, v, pattern, bias=term, softcap=1.0, backend=backend) * dout).sum()

    dbias = sa.vjp(q, k, v, pattern, bias=term, softcap=1.0, backend=backend)[1](dout).dbias
    for at in [(0,), (3,)] if name == "alibi" else [(0, 0), (3, 3), (2, 1)]:
        old, step = term.given[at], 1e-5
        term.given[at] = old + step
        above = loss()
        term.given[at] = old - step
        below = loss()
        term.given[at] = old
        assert abs((above - below) / (2 * step) - dbias[at]) < 1e-7


def test_caches_that_grow(backend):
    # a token at a time, with batch items of different lengths: the bias of each row is that of one whole call
    n, table, unit = 25, np.random.default_rng(10).standard_normal((4, 40)), rounding(backend)
    q, k, v, _ = inputs(n, n, widest(backend))
    for whole, step in ((bias.by_offset(table, left=30), bias.by_offset(table, left=30, offset=[24, 20])),
                        (bias.alibi(table[:, 0].copy()), bias.alibi(table[:, 0].copy(), offset=[24, 20]))):
        expected = sa.attend(q, k, v, patterns.causal(n), bias=whole, backend=backend)
        last = np.stack([q[0, :, 24:25], q[1, :, 20:21]])
        got = sa.attend(last, k, v, patterns.causal(1, n, offset=[24, 20]), bias=step, backend=backend)
        assert np.allclose(got[:, :, 0], np.stack([expected[0, :, 24], expected[1, :, 20]]), atol=unit)
        chunk = sa.attend(q[:, :, 20:], k, v, patterns.causal(5, n), bias=whole, backend=backend)
        assert np.allclose(chunk, expected[:, :, 20:], atol=unit)


@pytest.mark.parametrize("term, text", [
    (bias.alibi(np.ones(3)), "<bias alibi (3,) float64>"),
    (bias.log_count([patterns.causal(5)]), "<bias log_count of 1 patterns (5, 5)>")])
def test_repr(term, text):
    assert repr(term) == text
