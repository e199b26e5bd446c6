"""The Longformer with two sets of projections, against two dense softmaxes in float64."""

import numpy as np
import pytest

import oracle
from sparseattn import attend, patterns, variants

NAMES = ("q", "k", "v", "q_global", "k_global", "v_global")
N = 70


def drawn(n_heads=2, n_kv_heads=2, batch=2, dtype=np.float64):
    """Six arrays and the gradient of the output."""
    rng = np.random.default_rng(0)
    heads = (n_heads, n_kv_heads, n_kv_heads) * 2 + (n_heads,)
    return [rng.standard_normal((batch, h, N, d)).astype(dtype) for h, d in zip(heads, (8, 8, 6, 8, 8, 6, 6))]


MIXED = np.zeros((2, N), bool)
MIXED[0, [0, 5, 60]] = MIXED[1, 33] = True
VALID = np.ones((2, N), bool)
VALID[0, 55:] = VALID[1, 3] = False  # one global token is padding

CASES = [
    {"window": 12, "global_tokens": [0]}, {"window": 12, "global_tokens": []}, {"window": 7, "global_tokens": MIXED},
    {"window": 8, "global_tokens": MIXED, "valid": VALID}, {"window": 8, "global_tokens": range(N)},
    {"window": 6, "global_tokens": [1, 40], "dilation": [1, 3]},
    {"window": 6, "global_tokens": [1, 40], "dilation": 2, "causal": True},
    {"window": 8, "global_tokens": MIXED, "causal": True, "valid": VALID},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_two_softmaxes(options, n_kv_heads, backend):
    *arrays, dout = drawn(n_kv_heads=n_kv_heads)
    out, vjp = variants.longformer(*arrays, scale=0.3, backend=backend, **options)
    rules = dict(options)
    valid = rules.pop("valid", np.ones((1, N), bool))
    whole = oracle.longformer(N, **rules) & oracle.padding(valid)
    chosen = np.zeros((1, N), bool)
    chosen = options["global_tokens"] if options["global_tokens"] is MIXED else chosen
    if chosen is not MIXED:
        chosen[0, list(options["global_tokens"])] = True
    row = chosen[:, None, :, None]
    masks = whole & ~row, whole & row
    sides = arrays[:3], arrays[3:]
    expected = sum(oracle.attention(*side, mask, 0.3)[0] for side, mask in zip(sides, masks))
    assert np.abs(out - expected).max() < 1e-12
    gradients = [x for side, mask in zip(sides, masks) for x in oracle.gradients(dout, *side, mask, 0.3)]
    for name, got, right in zip(NAMES, vjp(dout), gradients):
        assert got.shape == right.shape and np.abs(got - right).max() < 1e-12, name


def test_equal_projections_are_one_attend(backend):
    q, k, v, *_ = drawn()
    pattern = patterns.longformer(N, window=10, global_tokens=MIXED)
    out, _ = variants.longformer(q, k, v, q, k, v, window=10, global_tokens=MIXED, backend=backend)
    assert np.abs(out - attend(q, k, v, pattern, backend=backend)).max() < 1e-12


@pytest.mark.parametrize("axes", [2, 3])
def test_without_batch_or_heads(axes):
    arrays = [x[(0,) * (4 - axes)] for x in drawn(dtype=np.float32)]
    out, vjp = variants.longformer(*arrays[:6], window=10, global_tokens=[3])
    assert out.shape == arrays[6].shape and all(a.shape == b.shape for a, b in zip(vjp(arrays[6]), arrays))


def test_unused_projections_touch_nothing(backend):
    *arrays, dout = drawn()
    q, q_global = arrays[0], arrays[3]
    q[MIXED.nonzero()[0], :, MIXED.nonzero()[1]] = np.nan
    q_global[~MIXED[:, None].repeat(2, 1)] = np.nan
    out, vjp = variants.longformer(*arrays, window=10, global_tokens=MIXED, backend=backend)
    assert np.isfinite(out).all() and all(np.isfinite(x).all() for x in vjp(dout))


def test_refused():
    q, k, v, q_global, k_global, v_global, _ = drawn()
    with pytest.raises(ValueError, match=r"k_global has shape \(2, 2, 69, 8\) but k \(2, 2, 70, 8\); both are proj"):
        variants.longformer(q, k, v, q_global, k_global[:, :, 1:], v_global, window=4, global_tokens=[0])
    with pytest.raises(TypeError, match="v_global has dtype float32 but v float64"):
        variants.longformer(q, k, v, q_global, k_global, v_global.astype(np.float32), window=4, global_tokens=[0])
    with pytest.raises(ValueError, match=r"q has shape \(8,\); expected \(batch, n_heads, n_tokens, head_dim\)"):
        variants.longformer(*[x[0, 0, 0] for x in (q, k, v, q_global, k_global, v_global)], window=4, global_tokens=[])
    with pytest.raises(ValueError, match="positions holds 70 to 70; expected tokens from 0 to 69"):
        variants.longformer(q, k, v, q_global, k_global, v_global, window=4, global_tokens=[70])
