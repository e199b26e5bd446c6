"""Patterns and calls on a GPU's arrays; skipped, with the reason, where there is no CuPy or no device."""

import numpy as np
import pytest

import families
import sparseattn as sa
from devices import cupy_or_skip
from sparseattn import patterns

TABLE = families.POSITIONAL + families.COMPOSED


@pytest.fixture(scope="module")
def cupy():
    """CuPy, with a device to use."""
    return cupy_or_skip()


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_there_and_back(case, cupy):
    pattern = case.build()
    there = pattern.to("cuda")
    assert there.device == (f"cuda:{cupy.cuda.Device().id}" if pattern.parts else "cpu")
    back = there.to("cpu")
    assert back == pattern and back.same_pairs(pattern)
    assert hash(there) == hash(pattern)


def test_the_copy_is_kept(cupy):
    pattern = patterns.strided(200, stride=16)
    assert pattern.to("cuda") is pattern.to("cuda")
    assert pattern.to("cuda").to("cuda") is pattern.to("cuda")


@pytest.mark.parametrize("case", TABLE[::5], ids=lambda case: case.name)
def test_reference_stays_on_the_device(case, cupy):
    pattern, mask = case.build(), case.mask
    rng = np.random.default_rng(0)
    shapes = [(mask.shape[0], mask.shape[1], n, 8) for n in (mask.shape[2], mask.shape[3], mask.shape[3])]
    q, k, v = (rng.standard_normal(shape, np.float32) for shape in shapes)
    expected, vjp = sa.vjp(q, k, v, pattern, backend="reference")
    out, pull = sa.vjp(*(cupy.asarray(x) for x in (q, k, v)), pattern.to("cuda"), backend="reference")
    assert isinstance(out, cupy.ndarray)
    assert np.abs(out.get() - expected).max(initial=0) <= 1e-5
    for there, here in zip(pull(out)[:3], vjp(expected)):
        assert isinstance(there, cupy.ndarray)
        assert np.abs(there.get() - here).max(initial=0) <= 1e-4 * np.abs(here).max(initial=1)


def test_arrays_of_two_devices_are_refused(cupy):
    x = np.zeros((1, 1, 8, 4), np.float32)
    with pytest.raises(TypeError, match="different libraries"):
        sa.attend(x, cupy.asarray(x), cupy.asarray(x), patterns.causal(8))
    with pytest.raises(ValueError, match=r"move it once with pattern.to\('cuda'\)"):
        sa.attend(*3 * [cupy.asarray(x)], patterns.causal(8), backend="reference")
    with pytest.raises(ValueError, match=r"move it once with pattern.to\('cpu'\)"):
        sa.attend(x, x, x, patterns.causal(8).to("cuda"))


def test_merge_of_device_arrays(cupy):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 40, 8), np.float32) for _ in range(3))
    halves = [patterns.dense(40)[..., :20], patterns.dense(40)[..., 20:]]
    there = [sa.attend(*map(cupy.asarray, (q, k[:, :, at], v[:, :, at])), half.to("cuda"), return_lse=True,
                       backend="reference") for half, at in zip(halves, (slice(20), slice(20, 40)))]
    out, lse = sa.merge(there)
    expected, expected_lse = sa.attend(q, k, v, patterns.dense(40), return_lse=True, backend="reference")
    assert np.abs(out.get() - expected).max() <= 1e-5 and np.abs(lse.get() - expected_lse).max() <= 1e-5
