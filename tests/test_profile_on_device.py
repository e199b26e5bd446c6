"""What CuPy arrays get, run with NumPy: the same numbers as the compiled pass."""

import numpy as np
import pytest
from devices import cupy_or_skip
from test_profile import inputs

import sparseattn as sa
from sparseattn import patterns
from sparseattn.profiling import evaluate, on_device, rows

CALLS = {
    "causal": ({}, {"causal": True, "scale": -0.7}), "all": ({}, {}), "later": ({"n_keys": 180}, {"causal": True}),
    "earlier": ({"n_keys": 90}, {"causal": True}), "earlier, all": ({"n_keys": 90}, {}),
    "grid": ({}, {"shape": (14, 10)}), "targets": ({}, {"targets": np.arange(150) - 1, "causal": True}),
    "padded": ({}, {"valid": np.arange(150) % 11 < 8, "causal": True}), "some": ({}, {"rows": [0, 31, 32, 149]}),
}


def both(monkeypatch, *arrays, **options):
    """Profiles by the compiled pass and by the one of devices."""
    compiled = sa.profile(*arrays, **options)
    monkeypatch.setattr(rows, "measure", on_device.measure)
    monkeypatch.setattr(evaluate, "judge", on_device.judge)
    return compiled, sa.profile(*arrays, **options)


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers(name, monkeypatch):
    made, options = CALLS[name]
    q, k, v = inputs(**made)
    monkeypatch.setattr(on_device, "CHUNK", 10_000)
    n = q.shape[2], k.shape[2]
    near = patterns.sliding_window(*n, left=9, right=3) | patterns.sliding_window(*n, left=None, right=0, dilation=7)
    compiled, found = both(monkeypatch, q, k, v, candidates=[near], **options)
    for part in (compiled.rows.__dataclass_fields__, ("column_mean", "offset_mean", "block_share", "output_error")):
        for field in part:
            wanted, got = (getattr(p if field in part and not hasattr(p.rows, field) else p.rows, field)
                           for p in (compiled, found))
            if wanted is None:
                assert got is None
            else:
                np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-11, err_msg=field)


def test_cupy():
    cupy = cupy_or_skip()
    q, k, v = inputs((2, 4, 256, 64), 2, 256, dtype=np.float32)
    near = patterns.sliding_window(256, left=30)
    wanted = sa.profile(q, k, v, causal=True, candidates=[near])
    found = sa.profile(*(cupy.asarray(x) for x in (q, k, v)), causal=True, candidates=[near])
    assert type(found.rows.entropy) is np.ndarray
    for name in ("entropy", "distance", "oracle_recall", "recall"):
        np.testing.assert_allclose(getattr(found.rows, name), getattr(wanted.rows, name), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.output_error, wanted.output_error, rtol=1e-3)
    np.testing.assert_allclose(found.variability, wanted.variability, rtol=1e-5)
