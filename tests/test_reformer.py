"""Reformer's attention with keys made from queries: against its dense formula in float64; gradients by finite
differences."""

import numpy as np
import pytest

import oracle
from sparseattn import Pattern, attend, patterns, variants
from test_content_lsh import expected

RNG = np.random.default_rng(3)
QK, V = RNG.standard_normal((2, 2, 60, 8)), RNG.standard_normal((2, 2, 60, 5))
ROTATIONS = RNG.standard_normal((2, 8, 3, 4))
VALID = RNG.random((2, 60)) < 0.8
OPTIONS = {"n_buckets": 8, "n_hashes": 3, "chunk_length": 8, "rotations": ROTATIONS}


def dense(qk, v, key_norm, count):
    length = (np.sqrt((qk**2).mean(-1) + 1e-6) * np.sqrt(qk.shape[-1]) if key_norm == "rms_unit"
              else np.linalg.norm(qk, axis=-1))
    scale = 1 if key_norm == "rms_unit" else qk.shape[-1] ** -0.5
    bias = np.log(np.maximum(count, 1))
    return oracle.attention(qk, qk / length[..., None], v, count > 0, scale, bias=bias)[0]


@pytest.mark.parametrize("key_norm", ["rms_unit", "l2_unit"])
@pytest.mark.parametrize("duplicates", ["once", "count"])
@pytest.mark.parametrize("causal, same_bucket, valid", [(False, False, None), (True, False, None), (True, True, VALID)])
def test_formula_and_gradients(key_norm, duplicates, causal, same_bucket, valid, backend):
    count = expected(QK, None, ROTATIONS, [8], 8, 1, 0, causal, same_bucket, valid)
    assert count.max() > 1
    count = count if duplicates == "count" else count > 0
    options = OPTIONS | {"key_norm": key_norm, "duplicates": duplicates, "causal": causal, "same_bucket": same_bucket,
                         "valid": valid}
    out, vjp = variants.reformer(QK, V, **options, backend=backend)
    assert np.abs(out - dense(QK, V, key_norm, count)).max() < 1e-12
    dout = RNG.standard_normal(out.shape)
    dqk, dv = vjp(dout)
    step = 1e-6
    for gradient, (d_qk, d_v) in ((dqk, (RNG.standard_normal(QK.shape), 0)), (dv, (0, RNG.standard_normal(V.shape)))):
        ahead, behind = (dense(QK + s * d_qk, V + s * d_v, key_norm, count) for s in (step, -step))
        change = ((ahead - behind) * dout).sum() / (2 * step)
        assert abs((gradient * (d_qk + d_v)).sum() - change) < 1e-6 * max(abs(change), 1)


def test_a_token_without_company_attends_itself():
    options = {"n_buckets": 2, "n_hashes": 2, "chunk_length": 1, "chunks_before": 0}
    out, vjp = variants.reformer(QK, V, **options)
    assert np.array_equal(out, V)
    dqk, dv = vjp(V)
    assert np.array_equal(dv, V) and np.abs(dqk).max() < 1e-12


def test_what_is_padding_may_hold_anything(backend):
    qk, v = QK.astype(np.float32), V.astype(np.float32)
    for x in (qk, v):
        x[np.broadcast_to(~VALID[:, None], x.shape[:3])] = np.nan
    out, vjp = variants.reformer(qk, v, valid=VALID, **OPTIONS, backend=backend)
    gradients = vjp(np.ones_like(out))
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    assert not out[np.broadcast_to(~VALID[:, None], out.shape[:3])].any()


def test_a_vector_of_zeros():
    qk = QK.copy()
    qk[:, :, 7] = 0
    for key_norm in ("rms_unit", "l2_unit"):
        out, vjp = variants.reformer(qk, V, key_norm=key_norm, **OPTIONS)
        assert all(np.isfinite(x).all() for x in (out, *vjp(np.ones_like(out))))


def test_storage_and_axes():
    for dtype, most in ((np.float16, 4e-3), (np.float32, 1e-5)):
        qk, v = QK.astype(dtype), V.astype(dtype)
        out, vjp = variants.reformer(qk[0], v[0], n_buckets=8, n_hashes=3, chunk_length=8, seed=4)
        whole, _ = variants.reformer(qk[:1].astype(float), v[:1].astype(float), n_buckets=8, n_hashes=3, chunk_length=8,
                                     seed=4)
        assert out.dtype == dtype and out.shape == v.shape[1:] and np.abs(out - whole[0]).max() < most
        assert [(x.shape, x.dtype) for x in vjp(out)] == [(x.shape[1:], dtype) for x in (qk, v)]


def test_rotations_follow_from_the_seed():
    columns = (4 + 6) // 2
    rotations = np.random.default_rng(9).standard_normal((2, 8, 3, columns), dtype=np.float32)
    options = {"n_buckets": [4, 6], "n_hashes": 3, "chunk_length": 8}
    drawn, given = (patterns.lsh(QK, **options, **more) for more in ({"seed": 9}, {"rotations": rotations}))
    assert drawn == given and drawn != patterns.lsh(QK, **options)


def test_grouped_keys_are_hashed_for_each_query_head():
    q, k, v = (RNG.standard_normal((1, h, 50, 8)) for h in (4, 2, 2))
    options = {"n_buckets": 4, "n_hashes": 2, "chunk_length": 8}
    pattern = patterns.lsh(q, k, **options)
    assert pattern == patterns.lsh(q, k.repeat(2, axis=1), **options) and pattern.n_heads == 4
    assert np.abs(attend(q, k, v, pattern)
                  - oracle.attention(q, k.repeat(2, 1), v.repeat(2, 1), pattern.to_dense(), 8**-0.5)[0]).max() < 1e-12


def test_tiles_are_speed_alone():
    pattern = patterns.lsh(QK, **OPTIONS)
    assert patterns.lsh(QK, block_size=(16, 32), **OPTIONS).same_pairs(pattern)
    long = patterns.lsh(RNG.standard_normal((1, 1, 700, 8)), n_buckets=4, n_hashes=2, chunk_length=130, chunks_before=0)
    assert {part.block_size for part in long.parts} == {(44, 44)}


def test_no_tokens():
    pattern = patterns.lsh(np.zeros((2, 3, 0, 8)), n_buckets=4, n_hashes=2, chunk_length=8)
    assert pattern == Pattern((), (0, 0), 2, 3)


@pytest.mark.parametrize("error, words, options", [
    (ValueError, "n_buckets is 7; expected an even number", {"n_buckets": 7}),
    (ValueError, "1073741824 buckets; expected fewer", {"n_buckets": [1 << 15, 1 << 15]}),
    (ValueError, "n_buckets is []", {"n_buckets": []}),
    (TypeError, "n_buckets is float", {"n_buckets": 8.0}),
    (ValueError, "n_hashes is 0; expected at least 1", {"n_hashes": 0}),
    (ValueError, "chunk_length is 0; expected at least 1", {"chunk_length": 0}),
    (ValueError, "chunks_before is -1", {"chunks_before": -1}),
    (ValueError, "rotations has shape (2, 8, 3, 4); expected (2, 8, 3, 2)", {"n_buckets": 4}),
    (TypeError, "rotations must be a NumPy array of floats", {"rotations": [1.0]}),
    (ValueError, "valid has shape (2, 50); expected (batch, n_tokens) = (2, 60)", {"valid": VALID[:, :50]}),
    (TypeError, "valid is an array of int64; expected bool", {"valid": VALID.astype(int)}),
    (ValueError, 'key_norm is \'unit\'; expected "rms_unit" or "l2_unit"', {"key_norm": "unit"}),
    (ValueError, 'duplicates is True; expected "once" or "count"', {"duplicates": True}),
    (TypeError, "scale is '1'; expected a number", {"scale": "1"}),
], ids=lambda x: str(x)[:30] if isinstance(x, str) else "")
def test_errors(error, words, options):
    with pytest.raises(error) as caught:
        variants.reformer(QK, V, **OPTIONS | options)
    assert words in str(caught.value)


def test_errors_of_keys():
    with pytest.raises(ValueError, match="q has 60 tokens but k 50; chunks of queries see chunks of keys"):
        patterns.lsh(QK, QK[:, :, :50], **OPTIONS)
    with pytest.raises(ValueError, match="v has 50"):
        variants.reformer(QK, V[:, :, :50], **OPTIONS)
