"""Routing Transformer against what a published implementation computed; provenance: golden/README.md."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn.checks import check_call
from sparseattn.patterns.content.clusters import members_of
from sparseattn.variants.reformer import unit_keys
from sparseattn.variants.routing import over_members
from test_goldens import FOLDER, load

ROUTING = sorted(path.stem for path in FOLDER.glob("routing_*.npz"))


def agrees(z, got):
    for name, x in got.items():
        most = 2e-5 if name == "out" else 1e-4 * np.abs(z[name]).max()
        assert np.abs(x - z[name]).max() <= most, name


def members(z, params):
    q = z["q"]
    return members_of(q, q if params["shared_qk"] else z["k_raw"], z["means"], params["window_size"], None)


@pytest.mark.parametrize("name", ROUTING)
def test_members(name):
    z, params = load(name)
    for got, key in zip(members(z, params), ("q_idx", "k_idx")):
        assert np.array_equal(got, np.sort(z[key], axis=-1))


@pytest.mark.parametrize("name", [name for name in ROUTING if not name.endswith("padded")])
def test_routing(name, backend):
    z, params = load(name)
    keys, to_raw = (unit_keys(z["k_raw"], "l2_unit") if params["key_norm"] else (z["k_raw"], lambda d: d))
    memory = {"memory_k": z["mem_key"], "memory_v": z["mem_value"]} if params["memory_kv"] else {}
    out, vjp = sa.variants.routing(
        z["q"], keys, z["v"], z["means"], window=params["window_size"], causal=params["causal"],
        shared_qk=params["shared_qk"], exclude_self=params["self_penalty"] is not None, **memory,
        denominator_eps=params["denominator_eps"], scale=params["scale"], backend=backend)
    gradients = vjp(z["dout"])
    agrees(z, {"out": out, "dq": gradients.dq, "dk_raw": to_raw(gradients.dk), "dv": gradients.dv})
    assert (out == 0).all(-1).sum() == params["uncovered_queries"]


def test_padding_that_takes_up_places(backend):
    """There padded tokens are taken by means like others, and then attend themselves alone: ``out[i] = v[i]``."""
    z, params = load("routing_shared_padded")
    keys, to_raw = unit_keys(z["k_raw"], "l2_unit")
    valid, eps = z["valid"], params["denominator_eps"]
    taken = members(z, params)[0]
    real = valid[np.arange(2)[:, None, None, None], taken]
    kept = np.sort(np.where(real, taken, 1000), axis=-1)
    kept[kept == 1000] = -1
    call = check_call(z["q"], keys, z["v"], sa.Pattern((), (valid.shape[1],) * 2), params["scale"])
    out, vjp = over_members(call, (kept, kept), None, params["causal"], True, eps, backend)
    dq, dk, dv = vjp(z["dout"])[:3]
    times = np.array([[np.bincount(head.ravel(), minlength=valid.shape[1]) for head in item] for item in taken])
    share = (np.where(valid[:, None], 0, times) / (times + eps)).astype(np.float32)[..., None]
    agrees(z, {"out": out + share * z["v"], "dq": dq, "dk_raw": to_raw(dk), "dv": dv + share * z["dout"]})
