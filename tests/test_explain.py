"""explain and backends: what would run, at what cost, and why not the rest."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns

OTHERS = dict.fromkeys(("cupy_raw", "numba_cuda"),
                       "it does not take NumPy arrays; move q, k and v to the library it runs on")

def inputs(n=300, n_heads=4, n_kv_heads=2, qk_dim=64, v_dim=32):
    q, k, v = ((1, n_heads, n, qk_dim), (1, n_kv_heads, n, qk_dim), (1, n_kv_heads, n, v_dim))
    return tuple(np.zeros(shape, np.float32) for shape in (q, k, v))


@pytest.mark.parametrize("backward", [False, True])
def test_numbers(backward):
    pattern = patterns.strided(300, stride=16)
    found = sa.explain(*inputs(), pattern, backward=backward)
    assert found.backend == "numba_cpu" and found.backward is backward
    assert len(found.parts) == len(pattern.tiles())
    assert sum(part.kept_pairs for part in found.parts) == 4 * pattern.nnz
    assert all(part.stored_pairs >= part.kept_pairs for part in found.parts)
    assert found.flops == sum(part.flops for part in found.parts)
    assert found.dense_flops == 2 * 4 * 300 * 300 * (3 * 64 + 2 * 32 if backward else 64 + 32)
    assert found.seconds > 0 and found.bytes > 0 and found.n_threads >= 1
    assert found.refused == {"reference": "runs only when asked for by name", **OTHERS}


def test_by_name():
    found = sa.explain(*inputs(), patterns.causal(300), backend="reference")
    assert found.backend == "reference" and found.seconds is None and found.parts == ()
    assert found.flops == found.dense_flops
    assert found.refused == {"numba_cpu": "reference was asked for by name", **OTHERS}
    assert repr(found).startswith("reference, forward: 69.1 MFLOP (100.0% of dense)")


def test_repr_says_what_a_person_asks():
    text = repr(sa.explain(*inputs(), patterns.strided(300, stride=16)))
    for words in ("numba_cpu, forward: ", "% of dense", "about", "tile_forward: ", "blocks of", "pairs attended",
                  "not reference: runs only when asked for by name"):
        assert words in text


def test_nothing_to_do():
    q, k, v = inputs(n=0)
    found = sa.explain(q, k, v, patterns.dense(0))
    assert found.flops == found.dense_flops == 0 and "0 FLOP" in repr(found)


def test_takes_and_refuses_what_attend_does():
    q, k, v = inputs()
    sa.explain(q, k, v, patterns.causal(300), scale=1.0, bias=None, softcap=None, sinks=None, dropout=0.0, seed=1,
               return_lse=True, out=np.empty(q.shape[:3] + (32,), np.float32), backend=None)
    sa.explain(q, k, v, patterns.causal(300), bias=sa.bias.alibi(np.ones(4)), softcap=30.0,
               sinks=np.zeros(4, np.float32), dropout=0.1, seed=1, backward=True)
    with pytest.raises(ValueError, match="out has shape"):
        sa.explain(q, k, v, patterns.causal(300), out=np.empty(3, np.float32))
    with pytest.raises(ValueError, match="sinks has shape"):
        sa.explain(q, k, v, patterns.causal(300), sinks=q)


def test_pairs_that_count_twice_cost_twice():
    arrays, pattern = inputs(), patterns.causal(300)
    once, twice = (sa.explain(*arrays, pattern, bias=sa.bias.log_count([pattern] * n)) for n in (1, 2))
    assert twice.flops == 2 * once.flops == 2 * sa.explain(*arrays, pattern).flops


def test_backends():
    found = {backend.name: backend for backend in sa.backends()}
    assert list(found) == ["numba_cpu", "cupy_raw", "numba_cuda", "reference"]
    assert found["numba_cpu"].usable and found["numba_cpu"].reason is None and found["numba_cpu"].cure is None
    assert not found["numba_cpu"].only_by_name and found["reference"].only_by_name
    assert repr(found["reference"]) == "<reference: usable, only by name>"


def test_backends_say_why_not(monkeypatch):
    from sparseattn.kernels import numba_cpu

    monkeypatch.setattr(numba_cpu, "why_not", lambda *call: "numba is not installed; pip install numba")
    found = sa.backends()[0]
    assert (found.usable, found.reason, found.cure) == (False, "numba is not installed", "pip install numba")
    assert repr(found) == "<numba_cpu: not usable: numba is not installed; pip install numba>"
    with pytest.raises(NotImplementedError, match=r"no backend can run this call \(numba_cpu: numba is not installed"):
        sa.attend(*inputs(), patterns.causal(300))
    assert sa.explain(*inputs(), patterns.causal(300), backend="reference").refused == {
        "numba_cpu": "numba is not installed; pip install numba", **OTHERS}


def test_time_grows_with_what_is_computed():
    """Pairs, head_dim, gathered keys and the width of numbers each cost time; the gradient more than the forward."""
    def seconds(pattern, n=2048, dim=64, dtype=np.float32, backward=False):
        q = np.zeros((1, 2, n, dim), dtype)
        with sa.threads(1):
            return sa.explain(q, q, q, pattern, backward=backward).seconds

    window = patterns.sliding_window(2048, left=255)
    assert seconds(patterns.causal(2048)) > 2 * seconds(window)
    assert seconds(window, dim=128) > 1.5 * seconds(window)
    assert seconds(window, dtype=np.float64) > 1.5 * seconds(window)
    assert seconds(window, backward=True) > 2 * seconds(window)
    assert seconds(patterns.sliding_window(2048, left=255, dilation=2)) > seconds(window)
    rng = np.random.default_rng(0)
    scattered = sa.Pattern.from_csr(np.arange(2049) * 64, np.sort(rng.permuted(np.tile(np.arange(2048), (2048, 1)),
                                                                               axis=1)[:, :64]).ravel(), 2048)
    assert seconds(scattered) > 2 * seconds(patterns.sliding_window(2048, left=63))
