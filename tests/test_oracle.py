"""The oracle's gradients against finite differences, and its softmax against the plainest loop."""

import numpy as np
import pytest

import oracle

CASES = {"grouped heads": ((2, 4, 5, 3), (2, 2, 6, 3), (2, 2, 6, 4), (1, 1)),
         "masks per head": ((1, 2, 4, 3), (1, 1, 4, 3), (1, 1, 4, 2), (1, 2)),
         "masks per batch": ((2, 2, 3, 2), (2, 2, 7, 2), (2, 2, 7, 2), (2, 1))}


def _drawn(case):
    q, k, v, axes = CASES[case]
    rng = np.random.default_rng(0)
    mask = rng.random(axes + (q[2], k[2])) < 0.6
    mask[..., 1, :] = False
    mask[..., 2] = False
    return *(rng.standard_normal(shape) for shape in (q, k, v, q[:3] + v[3:], q[:3])), mask


def _compare_differences(loss, x, gradient):
    """The gradient of loss() for the array x against central differences."""
    for at in np.ndindex(x.shape):
        old, step = x[at], 1e-5
        x[at] = old + step
        above = loss()
        x[at] = old - step
        below = loss()
        x[at] = old
        assert abs((above - below) / (2 * step) - gradient[at]) < 1e-8


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_differences(case):
    q, k, v, dout, dlse, mask = _drawn(case)

    def loss():
        out, lse = oracle.attention(q, k, v, mask, 0.7)
        return (out * dout).sum() + (np.where(np.isfinite(lse), lse, 0) * dlse).sum()

    for x, gradient in zip((q, k, v), oracle.gradients(dout, q, k, v, mask, 0.7, dlse)):
        _compare_differences(loss, x, gradient)


def _options(q, k, mask):
    """Every option at once, and a mask that counts some pairs twice."""
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(q.shape[:3] + k.shape[2:3])
    weights = oracle.dropout_weights(bias.shape, 0.3, 5)
    assert 0 < (weights == 0).mean() < 1
    sinks = rng.standard_normal(q.shape[1])
    options = {"softcap": 0.8, "bias": bias, "sinks": sinks, "weights": weights}
    return mask * rng.integers(1, 3, mask.shape), options


@pytest.mark.parametrize("case", CASES)
def test_gradients_with_options_are_differences(case):
    q, k, v, dout, dlse, mask = _drawn(case)
    mask, options = _options(q, k, mask)

    def loss():
        out, lse = oracle.attention(q, k, v, mask, 0.7, **options)
        return (out * dout).sum() + (lse * dlse).sum()

    gradients = oracle.all_gradients(dout, q, k, v, mask, 0.7, dlse, **options)
    for x, gradient in zip((q, k, v, options["bias"], options["sinks"]), gradients, strict=True):
        _compare_differences(loss, x, gradient)


@pytest.mark.parametrize("case", CASES)
def test_options_from_stored_statistics_give_the_same(case):
    q, k, v, dout, dlse, mask = _drawn(case)
    mask, options = _options(q, k, mask)
    exact = oracle.attention(q, k, v, mask, **options)
    exact += oracle.all_gradients(dout, q, k, v, mask, dlse=dlse, **options)
    for result in oracle.plain(dout, q, k, v, mask, dlse=dlse, dtype=np.float64, **options):
        for a, b in zip(result, exact, strict=True):
            assert np.allclose(a, b, atol=1e-13)


def test_options_by_hand():
    one = np.ones((1, 1, 1, 1))
    keys, values = np.array([1.0, 3.0]).reshape(1, 1, 2, 1), np.array([5.0, 7.0]).reshape(1, 1, 2, 1)
    mask, weights = np.array([2, 1]).reshape(1, 1, 1, 2), np.array([2.0, 0.0]).reshape(1, 1, 1, 2)
    out, lse = oracle.attention(one, keys, values, mask, 1.0, softcap=2.0, bias=np.array([0.5, -1.0]),
                                sinks=np.array([0.25]), weights=weights)
    first, second = 2 * np.exp(2 * np.tanh(0.5) + 0.5), np.exp(2 * np.tanh(1.5) - 1)
    total = first + second + np.exp(0.25)
    assert np.isclose(lse.item(), np.log(total)) and np.isclose(out.item(), 2 * first / total * 5)


def _mixed(r, word):
    """One step of the dropout's numbers in whole Python numbers."""
    r = (r + 0x9E3779B9 * word) % 2**32
    r = (r ^ r >> 16) * 0x85EBCA6B % 2**32
    r = (r ^ r >> 13) * 0xC2B2AE35 % 2**32
    return r ^ r >> 16


def test_dropout_by_hand():
    seed = 0x123456789ABCDEF0
    weights = oracle.dropout_weights((2, 2, 3, 5), 0.4, seed)
    for b, h, i, j in np.ndindex(weights.shape):
        r = 0
        for word in (seed % 2**32, seed // 2**32, b, h, i, j):
            r = _mixed(r, word)
        assert weights[b, h, i, j] == (1 / 0.6 if r >= 0.4 * 2**32 else 0)
    assert oracle.dropout_weights((1, 1, 1, 4000), 0.25, 3).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("case", CASES)
def test_gradients_from_stored_statistics_are_the_same(case):
    q, k, v, dout, dlse, mask = _drawn(case)
    exact = oracle.attention(q, k, v, mask) + oracle.gradients(dout, q, k, v, mask, dlse=dlse)
    for result in oracle.plain(dout, q, k, v, mask, dlse=dlse, dtype=np.float64):
        for a, b in zip(result, exact):
            assert np.allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_attention_is_a_softmax_row_by_row(case):
    q, k, v, _, _, mask = _drawn(case)
    out, lse = oracle.attention(q, k, v, mask)
    for b, h, i in np.ndindex(q.shape[:3]):
        kv_head = h * k.shape[1] // q.shape[1]
        row = mask[b * mask.shape[0] // q.shape[0], h * mask.shape[1] // q.shape[1], i]
        weights = np.exp(k[b, kv_head, row] @ q[b, h, i] / np.sqrt(q.shape[3]))
        if not row.any():
            assert not out[b, h, i].any() and lse[b, h, i] == -np.inf
            continue
        assert np.allclose(out[b, h, i], weights @ v[b, kv_head, row] / weights.sum(), atol=1e-14)
        assert np.isclose(lse[b, h, i], np.log(weights.sum()), atol=1e-14)


def test_rules_by_hand():
    window = oracle.sliding_window(4, left=1)[0, 0].astype(int)
    assert window.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert oracle.causal(2, 4)[0, 0].astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert oracle.documents([1, 2], causal=True)[0, 0].astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert oracle.strided(5, stride=2)[0, 0, 4].astype(int).tolist() == [1, 0, 1, 1, 1]
    chunks = oracle.block_local(4, block=2)[0, 0].astype(int)
    assert chunks.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    blocks = oracle.bigbird(6, block_size=1, rand_blocks=[[[4], [4], [1], [0]]])[0, 0].astype(int)
    assert blocks[2].tolist() == [1, 1, 1, 1, 1, 1] and blocks[4].tolist() == [1, 0, 0, 1, 1, 1]
