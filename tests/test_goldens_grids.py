"""Patterns over grids against what published implementations computed; provenance: golden/README.md."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns
from test_goldens import FOLDER, load

NATTEN = sorted(path.stem for path in FOLDER.glob("natten_*.npz"))
AXIAL = ["axial_2d_sequence", "axial_2d_sum", "axial_3d_sum"]
SWIN = ["swin_plain", "swin_shifted", "swin_shifted_padded", "swin_window_covers_grid"]


def mask_of(z):
    return np.unpackbits(z["mask_bits"], axis=-1)[..., :z["q"].shape[2]].astype(bool)


def agrees(z, out, gradients, suffix=""):
    assert np.abs(out - z["out" + suffix]).max() <= 2e-5
    for key, got in gradients.items():
        assert np.abs(got - z[key + suffix]).max() <= 1e-4 * np.abs(z[key + suffix]).max(), key


@pytest.mark.parametrize("name", NATTEN)
def test_neighborhoods(name, backend):
    z, params = load(name)
    pattern = patterns.neighborhood(tuple(params["grid"]), kernel_size=params["kernel_size"], stride=params["stride"],
                                    dilation=params["dilation"], is_causal=params["causal"])
    assert np.array_equal(pattern.to_dense()[0, 0], mask_of(z))
    (out, lse), vjp = sa.vjp(z["q"], z["k"], z["v"], pattern, return_lse=True, scale=params["scale"], backend=backend)
    assert np.abs(lse - z["lse"]).max() <= 2e-5
    agrees(z, out, dict(zip(("dq", "dk", "dv"), vjp(z["dout"]))))


@pytest.mark.parametrize("name", SWIN)
def test_windows_with_their_bias(name, backend):
    z, params = load(name)
    pattern = patterns.swin(tuple(params["grid"]), window=params["window"], shift=params["shift"], pad="attend")
    assert np.array_equal(pattern.to_dense()[0, 0], mask_of(z))
    bias = sa.bias.relative_2d(z["bias_table"], tuple(params["padded_grid"]), params["window"])
    out, vjp = sa.vjp(z["q"], z["k"], z["v"], pattern, scale=params["scale"], bias=bias, backend=backend)
    agrees(z, out, dict(zip(("dq", "dk", "dv", "dbias_table"), vjp(z["dout"]))))


def test_windows_of_the_second_version(backend):
    z, params = load("swin_v2_shifted")
    factor = np.exp(np.minimum(z["logit_scale"], np.log(100, dtype=np.float32)))[:, None, None]
    q_length, k_length = (np.linalg.norm(z[x], axis=-1, keepdims=True) for x in "qk")
    q, k = z["q"] / q_length, z["k"] / k_length
    pattern = patterns.swin(tuple(params["grid"]), window=params["window"], shift=params["shift"])
    assert np.array_equal(pattern.to_dense()[0, 0], mask_of(z))
    bias = sa.bias.relative_2d(z["bias_table"], tuple(params["grid"]), params["window"])
    out, vjp = sa.vjp(factor * q, k, z["v"], pattern, scale=1, bias=bias, backend=backend)
    dq, dk, dv = vjp(z["dout"])[:3]
    dq, dk = (back_through_length(x, unit, length) for x, unit, length in ((factor * dq, q, q_length),
                                                                           (dk, k, k_length)))
    agrees(z, out, {"dq": dq, "dk": dk, "dv": dv})


def back_through_length(d, unit, length):
    """The gradient of x, from that of x / |x|."""
    return (d - unit * (unit * d).sum(-1, keepdims=True)) / length


@pytest.mark.parametrize("name", AXIAL)
def test_single_axes(name, backend):
    z, params = load(name)
    for axis in range(len(params["grid"])):
        q, k, v, dout = (z[f"{x}{axis}"] for x in ("q", "k", "v", "dout"))
        out, vjp = sa.vjp(q, k, v, patterns.axial(tuple(params["grid"]), axis), scale=params["scale"], backend=backend)
        agrees(z, out, dict(zip(("dq", "dk", "dv"), vjp(dout))), str(axis))


@pytest.mark.parametrize("name", ["axial_2d_sum", "axial_3d_sum"])
def test_sum_of_axes(name, backend):
    z, params = load(name)
    shape = tuple(params["grid"])
    qs, ks, vs = ([z[f"{x}{axis}"] for axis in range(len(shape))] for x in "qkv")
    out, vjp = sa.variants.axial_sum(qs, ks, vs, shape, scale=params["scale"], backend=backend)
    assert np.abs(out - sum(z[f"out{axis}"] for axis in range(len(shape)))).max() <= 2e-5
    for axis in range(len(shape)):  # the peer's gradients arrive through an output projection an axis
        gradients = vjp(z[f"dout{axis}"])
        for name, got in zip(("dq", "dk", "dv"), gradients):
            assert np.abs(got[axis] - z[f"{name}{axis}"]).max() <= 1e-4 * np.abs(z[f"{name}{axis}"]).max(), name
