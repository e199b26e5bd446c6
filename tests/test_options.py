"""softcap, bias, sinks, dropout and counts through attend and its gradient, against dense float64."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import families
import oracle
import sparseattn as sa
from devices import rounding, widest
from sparseattn import Pattern, patterns
from test_attend import DTYPES, LAYOUTS, close, drawn

NAMES = ("causal(33, 70)", "sliding_window(64, left=7, right=3)", "strided(100, stride=16)",
         "causal(20, 50, offset=[-5, 30])", "sliding_window(70, 101, left=4, right=4, dilation=7)",
         "window in (1, 16)", "window in (20, 24)", "strided in (1, 1)", "random pairs per head and batch",
         "key blocks per query", "padding(bool (2, 61))", "per head: window, strided, window, causal")
CASES = {case.name: case for case in families.TABLE if case.name in NAMES}
OPTIONS = ("softcap", "bias", "sinks", "dropout", "counts")


def test_every_named_pattern_is_there():
    assert set(CASES) == set(NAMES)


def options_of(chosen, q, mask, seed=0):
    """(options of attend, of the oracle with its mask) for some of OPTIONS; NaN in the bias of pairs not attended."""
    rng, wide = np.random.default_rng(seed), np.float64 if q.dtype == np.float64 else np.float32
    shape = q.shape[:3] + mask.shape[3:]
    whole = mask[np.arange(shape[0]) * mask.shape[0] // shape[0]][:, np.arange(shape[1]) * mask.shape[1] // shape[1]]
    ours, theirs = {}, {}
    if "softcap" in chosen:
        ours["softcap"] = theirs["softcap"] = 1.5
    if "bias" in chosen:
        bias = np.where(whole, rng.standard_normal(shape), np.nan).astype(wide)
        bias[whole & (rng.random(shape) < 0.1)] = -np.inf
        ours["bias"] = theirs["bias"] = bias
    if "sinks" in chosen:
        ours["sinks"] = theirs["sinks"] = rng.standard_normal(shape[1]).astype(wide)
    if "dropout" in chosen:
        ours |= {"dropout": 0.3, "seed": 2**63 + 12345}
        theirs["weights"] = oracle.dropout_weights(shape, 0.3, 2**63 + 12345)
    if "counts" in chosen:
        counts = rng.integers(0, 3, mask.shape)
        ours["bias"], mask = sa.bias.log_count(counts), mask * counts
    return ours, theirs, mask


def compared(pattern, mask, arrays, ours, theirs, backend, dlse=None, binned=None):
    """Hold forward and backward to the oracle; binned(ds, array) takes a gradient of scores to that of the bias."""
    q, k, v, dout = arrays
    out, lse = sa.attend(q, k, v, pattern, return_lse=True, backend=backend, **ours)
    got = sa.attend_backward(dout, q, k, v, out, lse, pattern, dlse=dlse, backend=backend, **ours)
    exact = oracle.attention(q, k, v, mask, **theirs) + oracle.all_gradients(dout, q, k, v, mask, None, dlse, **theirs)
    plain = itertools.tee(oracle.plain(dout, q, k, v, mask, None, dlse, lse.dtype.type, **theirs), 7)
    assert all(x.dtype == q.dtype for x in (out, *got[:3]))
    assert (got.dsinks is None) == ("sinks" not in ours)
    last = -1 if got.dsinks is None else None
    results = zip(("out", "lse", "dq", "dk", "dv", "dbias", "dsinks")[:last], (out, lse, *got)[:last], exact, plain)
    for i, (name, value, true, others) in enumerate(results):
        others = (result[i] for result in others)
        if name == "dbias":
            assert (value is None) == (binned is None)
            if binned is None:
                continue
            true, others = binned(true), (binned(x.astype(value.dtype)) for x in others)
        close(name, value, true, others)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_all_together(number, dtype, backend):
    case = CASES[NAMES[number]]
    layout = LAYOUTS[(number + list(DTYPES).index(dtype)) % len(LAYOUTS)]
    arrays = drawn(number, case.mask, layout, DTYPES[dtype])
    ours, theirs, mask = options_of(OPTIONS[:4], arrays[0], case.mask)
    dlse = np.random.default_rng(1).standard_normal(arrays[0].shape[:3]).astype(ours["sinks"].dtype)
    compared(case.build(), mask, arrays, ours, theirs, backend, dlse, lambda ds: ds)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_each_alone(number, option, backend):
    case = CASES[NAMES[number]]
    dtype = ("float32", "float64", "bfloat16")[(number + OPTIONS.index(option)) % 3]
    arrays = drawn(number, case.mask, LAYOUTS[(number + OPTIONS.index(option)) % len(LAYOUTS)], DTYPES[dtype])
    ours, theirs, mask = options_of([option], arrays[0], case.mask)
    compared(case.build(), mask, arrays, ours, theirs, backend, binned=(lambda ds: ds) if option == "bias" else None)


def kept_pairs(n_queries, n_keys, pattern, backend, batch=2, n_heads=3, **options):
    """Which pairs had weight: values are unit vectors, so that the output is the weights."""
    q, k = np.zeros((batch, n_heads, n_queries, 4), np.float32), np.zeros((batch, n_heads, n_keys, 4), np.float32)
    v = np.broadcast_to(np.eye(n_keys, dtype=np.float32), (batch, n_heads, n_keys, n_keys))
    return sa.attend(q, k, v, pattern, backend=backend, **options) != 0


@pytest.mark.parametrize("dropout, seed", [(0.25, 0), (0.999, -1), (2.0**-40, 7), (1 - 2.0**-40, 2**64 + 3)])
def test_dropped_pairs(dropout, seed, backend):
    expected = oracle.dropout_weights((2, 3, 50, 70), dropout, seed % 2**64) != 0
    options = {"dropout": dropout, "seed": seed}
    assert np.array_equal(kept_pairs(50, 70, patterns.dense(50, 70), backend, **options), expected)


def test_dropped_pairs_do_not_depend_on_blocks_orders_or_threads(backend):
    causal = oracle.causal(90)
    expected = (oracle.dropout_weights((2, 3, 90, 90), 0.4, 11) != 0) & causal
    by_class = Pattern.from_buckets(np.arange(90) % 3, np.arange(90) % 3) & patterns.causal(90)
    rest = patterns.causal(90) - by_class
    for pattern in (patterns.causal(90), patterns.causal(90).reblock(16), patterns.causal(90).reblock((1, 1)),
                    by_class | rest, Pattern.from_mask(causal, block_size=(8, 24))):
        for count in (1, 3):
            with sa.threads(count):
                assert np.array_equal(kept_pairs(90, 90, pattern, backend, dropout=0.4, seed=11), expected)


def test_grouped_heads_drop_by_query_head(backend):
    q, k = np.zeros((1, 4, 40, 4), np.float32), np.zeros((1, 2, 40, 4), np.float32)
    v = np.broadcast_to(np.eye(40, dtype=np.float32), (1, 2, 40, 40))
    out = sa.attend(q, k, v, patterns.dense(40), dropout=0.5, seed=1, backend=backend)
    assert np.array_equal(out != 0, oracle.dropout_weights((1, 4, 40, 40), 0.5, 1) != 0)


def every_second(x):
    wide = np.full([2 * n for n in x.shape], np.nan, x.dtype)
    wide[(slice(None, None, 2),) * x.ndim] = x
    return wide[(slice(None, None, 2),) * x.ndim]


VIEWS = {"transposed": ((30, 50), lambda x: np.ascontiguousarray(x.T).T),
         "heads last": ((4, 30, 50), lambda x: np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1)),
         "every second": ((4, 30, 50), every_second),
         "backwards": ((30, 50), lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]),
         "stride 0": ((2, 4, 30, 50), lambda x: np.broadcast_to(x[:, :1, :1], x.shape))}
VIEWS |= {str(shape): (shape, np.copy) for shape in (
    (1, 1, 1, 50), (2, 1, 30, 50), (1, 4, 1, 50), (4, 30, 50), (1, 1, 1, 1), (), (50,), (30, 1), (2, 1, 1, 50))}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", VIEWS)
def test_shapes_and_strides_of_an_array(name, dtype, backend):
    mask, pattern = oracle.sliding_window(30, 50, left=12), patterns.sliding_window(30, 50, left=12)
    q, k, v, dout = drawn(0, mask, (4, 2, 8, 8), DTYPES[dtype])
    shape, view = VIEWS[name]
    given = view(np.random.default_rng(0).standard_normal(shape).astype(dtype))
    out, vjp = sa.vjp(q, k, v, pattern, bias=given, backend=backend)
    exact = oracle.all_gradients(dout, q, k, v, mask, bias=given)[3]
    full = (1,) * (4 - given.ndim) + given.shape
    shared = tuple(axis for axis in range(4) if full[axis] == 1)
    dbias = vjp(dout).dbias
    assert dbias.shape == given.shape and dbias.dtype == given.dtype
    sums = exact.sum(shared, keepdims=True).reshape(given.shape)
    limit = {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3}[dtype] * max(np.abs(exact).sum(shared).max(), 1)
    assert np.abs(dbias - sums).max() <= limit
    assert np.allclose(out, oracle.attention(q, k, v, mask, bias=given)[0], atol=5e-3 if dtype == "float16" else 1e-5)


def ranges_of_single_queries():
    """Ranges that ask for blocks of one query, and whose transpose is not of ranges."""
    first, size = np.random.default_rng(0).integers(0, 50, (2, 90))
    keys = np.arange(100)
    mask = (keys >= first[:, None]) & (keys <= (first + size)[:, None])
    return Pattern.from_ranges(first, np.minimum(first + size + 1, 100), 100).reblock((1, 1)), mask[None, None]


def tiles_and_rows():
    causal, single = oracle.causal(140), oracle.scattered(140, 140, 0.03)
    rows = Pattern.from_mask((single & ~causal)[0, 0], block_size=(1, 16))
    return patterns.causal(140) | rows, causal | single


def named(name):
    return lambda: (CASES[name].build(), CASES[name].mask)


# pattern and mask; axes along which all have one value; layout, dtype, options
SHARED = {
    "heads and batch": (lambda: (patterns.causal(140), oracle.causal(140)), (0, 1), (4, 2, 40, 24), "float16", ()),
    "batch": (named("strided(100, stride=16)"), (0,), (2, 2, 20, 40), "bfloat16", ("softcap",)),
    "heads": (named("sliding_window(70, 101, left=4, right=4, dilation=7)"), (1,), (2, 1, 30, 20), "float32",
              ("dropout",)),
    "queries too": (named("causal(20, 50, offset=[-5, 30])"), (0, 1, 2), (3, 3, 16, 16), "float32", ()),
    "keys too": (named("sliding_window(64, left=7, right=3)"), (0, 1, 3), (2, 1, 16, 16), "float32", ("sinks",)),
    "heads of unlike patterns": (named("per head: window, strided, window, causal"), (0, 1), (2, 2, 64, 64), "float16",
                                 ("dropout", "sinks")),
    "wide heads": (lambda: (patterns.causal(70), oracle.causal(70)), (0, 1), (2, 1, 130, 192), "float16", ()),
    "tiles and rows": (tiles_and_rows, (0, 1), (2, 2, 16, 16), "float16", ()),
    "ranges of single queries": (ranges_of_single_queries, (0, 1), (2, 2, 16, 16), "float16", ()),
}


@pytest.mark.parametrize("name", SHARED)
def test_array_that_is_shared(name, backend):
    """By what its name says. Its values are -inf at some pairs, at all of one query, and NaN where nobody attends."""
    build, axes, layout, dtype, chosen = SHARED[name]
    pattern, mask = build()
    arrays = drawn(0, mask, layout, DTYPES[dtype])
    ours, theirs, _ = options_of(chosen, arrays[0], mask)
    n_heads, rng = arrays[0].shape[1], np.random.default_rng(0)
    whole = np.broadcast_to(mask[:, np.arange(n_heads) * mask.shape[1] // n_heads], (2, n_heads, *mask.shape[2:]))
    met = whole.any(axes, keepdims=True)
    bias = np.where(met, rng.standard_normal(met.shape), np.nan).astype(np.float32)
    if met.shape[2] > 1 and "sinks" not in chosen:
        if met.shape[3] > 1:
            bias[met & (rng.random(met.shape) < 0.1)] = -np.inf
        bias[:, :, 17] = -np.inf
    ours["bias"] = theirs["bias"] = bias
    compared(pattern, mask, arrays, ours, theirs, backend, binned=lambda ds: ds.sum(axes, keepdims=True))


def test_equal_calls_give_equal_gradients_of_a_shared_array(backend):
    q, k, v, dout = drawn(0, oracle.causal(140), (8, 2, 20, 20), np.float32)
    bias = np.random.default_rng(0).standard_normal((140, 140)).astype(np.float32)
    for given in (bias, bias[:1]):
        first, second = (sa.vjp(q, k, v, patterns.causal(140), bias=given, backend=backend)[1](dout).dbias
                         for _ in range(2))
        assert first.tobytes() == second.tobytes()


def test_16_bit_bias_and_sinks(backend):
    mask = oracle.causal(40)
    q, k, v, dout = drawn(0, mask, (2, 1, 16, 16), ml_dtypes.bfloat16)
    bias = np.random.default_rng(0).standard_normal((40, 40)).astype(ml_dtypes.bfloat16)
    sinks = np.array([0.5, -1]).astype(ml_dtypes.bfloat16)
    options = {"bias": bias.astype(np.float64), "sinks": sinks.astype(np.float64)}
    (_, lse), vjp = sa.vjp(q, k, v, patterns.causal(40), bias=bias, sinks=sinks, return_lse=True, backend=backend)
    got = vjp(dout)
    assert got.dbias.dtype == got.dsinks.dtype == ml_dtypes.bfloat16
    exact = oracle.all_gradients(dout, q, k, v, mask, **options)
    assert np.allclose(lse, oracle.attention(q, k, v, mask, **options)[1], atol=1e-5)
    assert np.allclose(got.dbias.astype(float), exact[3].sum((0, 1)), atol=0.05)
    assert np.allclose(got.dsinks.astype(float), exact[4], atol=0.05, rtol=0.02)


def test_empty_rows_have_the_sink(backend):
    pattern = patterns.causal(30, 20)
    q, k, v, dout = drawn(0, oracle.causal(30, 20), (2, 1, 8, 8), np.float32)
    sinks = np.array([0.5, -np.inf], np.float32)
    dlse = np.ones((2, 2, 30), np.float32)
    (out, lse), vjp = sa.vjp(q, k, v, pattern, sinks=sinks, return_lse=True, backend=backend)
    assert not out[:, :, :10].any() and (lse[:, 0, :10] == 0.5).all() and (lse[:, 1, :10] == -np.inf).all()
    got = vjp(dout, dlse)
    exact = oracle.all_gradients(dout, q, k, v, oracle.causal(30, 20), dlse=dlse, sinks=sinks)
    assert np.allclose(got.dsinks, exact[4], rtol=1e-5) and got.dsinks[1] == 0
    assert not got.dq[:, :, :10].any()


@pytest.mark.parametrize("shape", [(5, 0), (0, 5), (0, 0)])
def test_no_queries_or_keys(shape, backend):
    q, k = (np.ones((1, 2, n, 4), widest(backend)) for n in shape)
    bias, sinks = np.zeros((2, *shape), widest(backend)), np.array([1, 2], widest(backend))
    (out, lse), vjp = sa.vjp(q, k, k, patterns.dense(*shape), bias=bias, sinks=sinks, softcap=2.0, dropout=0.5, seed=1,
                             return_lse=True, backend=backend)
    assert not out.any() and (lse == sinks[:, None]).all()
    got = vjp(out, np.ones_like(lse))
    assert got.dbias.shape == bias.shape and np.array_equal(got.dsinks, np.full(2, float(shape[0])))


def test_bias_of_minus_infinity_leaves_pairs_out(backend):
    # among them all pairs of query 7
    hidden = np.random.default_rng(0).random((40, 40)) < 0.5
    hidden[7] = True
    mask = oracle.causal(40) & ~hidden
    bias = np.where(hidden, -np.inf, 0).astype(np.float32)
    q, k, v, dout = (np.random.default_rng(i).standard_normal((1, 2, 40, 8)).astype(np.float32) for i in range(4))
    (out, lse), vjp = sa.vjp(q, k, v, patterns.causal(40), bias=bias, return_lse=True, backend=backend)
    exact = oracle.attention(q, k, v, mask)
    assert np.allclose(out, exact[0], atol=1e-6) and np.allclose(lse, exact[1], atol=1e-6)
    assert not out[:, :, 7].any() and (lse[:, :, 7] == -np.inf).all()
    got = vjp(dout)
    for a, b in zip(got[:3], oracle.gradients(dout, q, k, v, mask)):
        assert np.allclose(a, b, atol=1e-5)
    assert np.isfinite(got.dbias).all() and not got.dbias[hidden].any()


@pytest.mark.parametrize("size", [1e2, 1e10, 1e18])
def test_softcap_of_huge_scores(size, backend):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 2, 70, 16)).astype(np.float32) for _ in range(4))
    q, k = q * np.float32(size), k * np.float32(size)
    out, vjp = sa.vjp(q, k, v, patterns.causal(70), softcap=30.0, backend=backend)
    with np.errstate(over="ignore"):
        exact = oracle.attention(q, k, v, oracle.causal(70), softcap=30.0)[0]
    assert np.allclose(out, exact, atol=1e-2 if size < 1e5 else 1e-4)
    assert all(np.isfinite(g).all() for g in vjp(dout)[:3])


def test_equal_calls_give_equal_bits(backend):
    case = CASES["strided(100, stride=16)"]
    arrays = drawn(0, case.mask, (4, 2, 16, 16), np.float32)
    ours, _, _ = options_of(OPTIONS[:4], arrays[0], case.mask)
    results = []
    for _, count in itertools.product(range(2), (1, 3)):
        with sa.threads(count):
            (out, lse), vjp = sa.vjp(*arrays[:3], case.build(), return_lse=True, backend=backend, **ours)
            results.append([x.tobytes() for x in (out, lse, *vjp(arrays[3]))])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("ndim", [2, 3])
def test_missing_axes_are_batch_and_head_0(ndim, backend):
    mask = oracle.causal(30)
    q, k, v, dout = (x[(0,) * (4 - ndim)] for x in drawn(0, mask, (1, 1, 8, 8), widest(backend), batch=1))
    bias, sinks = (x.astype(q.dtype) for x in (np.random.default_rng(0).standard_normal((30, 30)), np.array([0.3])))
    unit = rounding(backend)
    out, vjp = sa.vjp(q, k, v, patterns.causal(30), bias=bias, sinks=sinks, dropout=0.2, seed=4, backend=backend)
    lead = (None,) * (4 - ndim)
    options = {"bias": bias, "sinks": sinks, "weights": oracle.dropout_weights((1, 1, 30, 30), 0.2, 4)}
    assert np.allclose(out[lead], oracle.attention(q[lead], k[lead], v[lead], mask, **options)[0], atol=unit)
    got = vjp(dout)
    exact = oracle.all_gradients(dout[lead], q[lead], k[lead], v[lead], mask, **options)
    assert got.dq.shape == q.shape and np.allclose(got.dbias, exact[3][0, 0], atol=unit)
    assert np.allclose(got.dsinks, exact[4], atol=10 * unit)


def test_merge_of_parts_takes_sinks_in_one_of_them(backend):
    q, k, v, _ = drawn(0, oracle.causal(60), (2, 1, 8, 8), widest(backend))
    near, bias = patterns.sliding_window(60, left=9), np.random.default_rng(0).standard_normal((60, 60))
    bias, sinks = bias.astype(q.dtype), np.array([0.2, -0.4], q.dtype)
    far = patterns.causal(60) - near
    whole = sa.attend(q, k, v, patterns.causal(60), bias=bias, sinks=sinks, softcap=5.0, return_lse=True,
                      backend=backend)
    first = sa.attend(q, k, v, near, bias=bias, sinks=sinks, softcap=5.0, return_lse=True, backend=backend)
    second = sa.attend(q, k, v, far, bias=bias, softcap=5.0, return_lse=True, backend=backend)
    for a, b in zip(sa.merge([first, second]), whole):
        assert np.allclose(a, b, atol=rounding(backend))
