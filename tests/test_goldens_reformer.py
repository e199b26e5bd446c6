"""Reformer against what published implementations computed; provenance: golden/README.md."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import Pattern, patterns
from sparseattn.index_ops.pairs import without_repeats
from sparseattn.patterns.content.lsh import bucket_factors, hash_rounds
from sparseattn.selection.hashing import hash_buckets
from sparseattn.variants.reformer import unit_keys
from test_goldens import FOLDER, load

HASHED = sorted(path.stem for path in FOLDER.glob("reformer_*.npz") if path.stem != "reformer_local")


def options_of(z, params):
    names = ("n_buckets", "n_hashes", "chunk_length", "chunks_before", "chunks_after", "causal", "same_bucket")
    return {name: params[name] for name in names} | {"rotations": z["rotations"]}


def key_norm(params):
    return params["key_norm"].split()[0]


def agrees(z, got):
    for name, x in got.items():
        most = 2e-5 if name == "out" else 1e-4 * np.abs(z[name]).max()
        assert np.abs(x - z[name]).max() <= most, name


def times_met(z, params, valid):
    """How often each pair meets, of the parts that count."""
    parts, *axes = hash_rounds(z["q"], **options_of(z, params), valid=valid, once=False)
    single = [piece for part in parts for piece in without_repeats(part)]
    return sum(Pattern.from_parts([p], *axes).to_dense().astype(int) for p in single)


@pytest.mark.parametrize("name", HASHED)
def test_buckets(name):
    z, params = load(name)
    factors = bucket_factors(params["n_buckets"])
    rotations = z["rotations"].reshape(-1, *z["rotations"].shape[-4:])
    got = hash_buckets(z["q"], rotations, factors, np.arange(z["q"].shape[1]))
    per_round = np.prod(factors)
    if "valid" in z and name.startswith("reformer_hf"):  # there padding has a bucket of its own
        got = np.where(z["valid"][:, None, None], got, per_round)
        per_round += 1
    assert np.array_equal(got + per_round * np.arange(params["n_hashes"])[:, None], z["buckets"])


@pytest.mark.parametrize("name", [name for name in HASHED if not name.endswith("padded")])
def test_hashed(name, backend):
    z, params = load(name)
    if params["duplicates"] == "count":
        assert np.array_equal(times_met(z, params, None), z["count"])
    else:
        pattern = patterns.lsh(z["q"], **options_of(z, params))
        assert np.array_equal(pattern.to_dense(), z["count"] > 0)
    out, vjp = sa.variants.reformer(z["q"], z["v"], key_norm=key_norm(params), duplicates=params["duplicates"],
                                    **options_of(z, params), backend=backend)
    dqk, dv = vjp(z["dout"])
    agrees(z, {"out": out, "dqk": dqk, "dv": dv})


def test_padding_in_a_bucket_of_its_own(backend):
    """There padded queries attend; here they do not, and their rows are computed from the recorded counts."""
    z, params = load("reformer_hf_factored_padded")
    valid = z["valid"]
    count = np.where(valid[:, None, :, None], z["count"], 0)
    assert np.array_equal(times_met(z, params, valid), count)
    out, vjp = sa.variants.reformer(z["q"], z["v"], duplicates="count", valid=valid, **options_of(z, params),
                                    backend=backend)
    dqk, dv = vjp(z["dout"])
    rest = counted(z, params, np.where(valid[:, None, :, None], 0, z["count"]), backend)
    agrees(z, {"out": out + rest[0], "dqk": dqk + rest[1], "dv": dv + rest[2]})


def test_padding_among_the_buckets(backend):
    """There padded tokens are hashed like others, and then only attend themselves."""
    z, params = load("reformer_pt_padded")
    valid = z["valid"]
    count = times_met(z, params, None) * (valid[:, None, :, None] & valid[:, None, None, :])
    alone = count.sum(-1) == 0
    count[np.nonzero(alone) + np.nonzero(alone)[2:]] = 1
    assert np.array_equal(count, z["count"])
    agrees(z, dict(zip(("out", "dqk", "dv"), counted(z, params, count, backend))))


def counted(z, params, count, backend):
    """out, dqk and dv over pairs that count so often."""
    keys, to_qk = unit_keys(z["q"], key_norm(params))
    out, vjp = sa.vjp(z["q"], keys, z["v"], Pattern.from_mask(count > 0), scale=params["scale"],
                      bias=sa.bias.log_count(count.astype(int)), backend=backend)
    dq, dk, dv = vjp(z["dout"])[:3]
    return out, dq + to_qk(dk), dv


def test_chunks_in_order(backend):
    z, params = load("reformer_local")
    pattern = patterns.block_local(z["q"].shape[2], block=params["chunk_length"], back=params["chunks_before"],
                                   forward=params["chunks_after"], causal=params["causal"], wrap=params["wraps"])
    out, vjp = sa.vjp(z["q"], z["k"], z["v"], pattern, scale=params["scale"], backend=backend)
    agrees(z, {"out": out, **dict(zip(("dq", "dk", "dv"), vjp(z["dout"])))})
