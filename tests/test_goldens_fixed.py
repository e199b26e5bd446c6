"""Fixed patterns in the models that published them, against what those computed; provenance: golden/README.md."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import Pattern, patterns, variants
from test_goldens import load

DEEPSPEED = ["deepspeed_bigbird", "deepspeed_bslongformer", "deepspeed_fixed", "deepspeed_local", "deepspeed_variable"]


def agree(z, **got):
    """Outputs within 2e-5, gradients within 1e-4 of the largest entry."""
    for key, value in got.items():
        allowed = 1e-4 * np.abs(z[key]).max() if key.startswith("d") else 2e-5
        assert np.abs(value - z[key]).max() <= allowed, key


def attended(z, pattern, backend, **options):
    """Output and gradients of q, k, v against the golden's; the vjp's whole result."""
    out, vjp = sa.vjp(z["q"], z["k"], z["v"], pattern, backend=backend, **options)
    agree(z, out=out)
    if "dout" not in z:
        return None
    gradients = vjp(z["dout"])
    agree(z, dq=gradients.dq, dk=gradients.dk, dv=gradients.dv)
    return gradients


@pytest.mark.parametrize("name", ["bigbird_eval_zeros", "bigbird_train_1024_legacy"])
@pytest.mark.parametrize("as_log", [False, True])
def test_bigbird_counts_blocks(name, as_log, backend):
    z, params = load(name)
    size, n = params["block_size"], z["q"].shape[2]
    counts = z["block_count"].astype(np.int32).repeat(size, 1).repeat(size, 2)
    drawn = np.zeros_like(z["rand_blocks"]) if params["mode"] == "eval" else z["rand_blocks"]
    pattern = patterns.bigbird(n, block_size=size, n_heads=2, n_random=3, rand_blocks=drawn)
    assert np.array_equal(pattern.to_dense()[0], counts > 0)
    attended(z, pattern, backend,
             bias=np.log(np.maximum(counts, 1).astype(np.float32)) if as_log else sa.bias.log_count(counts))


@pytest.mark.parametrize("name", ["longformer_global_first", "longformer_global_mixed_padded",
                                  "longformer_layer0_of_2", "longformer_layer1_of_2"])
def test_longformer_with_global_projections(name, backend):
    z, params = load(name)
    arrays = [z[key] for key in ("q", "k", "v", "qg", "kg", "vg")]
    out, vjp = variants.longformer(*arrays, window=params["attention_window"], global_tokens=z["global_mask"],
                                   valid=z.get("key_padding"), backend=backend)
    agree(z, out=out)
    agree(z, **dict(zip(("dq", "dk", "dv", "dqg", "dkg", "dvg"), vjp(z["dout"]))))


def test_longt5_local(backend):
    z, params = load("longt5_local_bias")
    n, radius = z["q"].shape[2], params["local_radius"]
    pattern = patterns.sliding_window(n, left=radius, right=radius) & patterns.padding(z["key_padding"])
    bias = sa.bias.by_offset(z["bias_by_offset"], left=radius)
    agree(z, dbias_by_offset=attended(z, pattern, backend, scale=1.0, bias=bias).dbias)


def test_longt5_transient_global(backend):
    z, params = load("longt5_transient_global")
    n, g, radius = z["q"].shape[2], params["num_side"], params["local_radius"]
    near = np.arange(n) - np.arange(n)[:, None] + radius
    local = np.where((near >= 0) & (near <= 2 * radius), z["bias_by_offset"][:, near.clip(0, 2 * radius)], 0)
    bias = np.concatenate([z["side_bias"], local[None]], axis=3)
    keys, values = (np.concatenate([z[f"side_{x}"], z[x]], axis=2) for x in "kv")
    out, vjp = sa.vjp(z["q"], keys, values, patterns.etc(n, g, radius=radius).long, scale=1.0, bias=bias,
                      backend=backend)
    agree(z, out=out)
    dq, dk, dv = vjp(z["dout"])[:3]
    agree(z, dq=dq, dside_k=dk[:, :, :g], dk=dk[:, :, g:], dside_v=dv[:, :, :g], dv=dv[:, :, g:])


@pytest.mark.parametrize("name", ["pegasusx_global_local", "pegasusx_staggered"])
def test_pegasusx(name, backend):
    z, params = load(name)
    n, g, block = z["q"].shape[2], params["num_global"], params["block_size"]
    shift = block // 2 if params["stagger"] else 0
    blocks = patterns.block_local(n + shift, block=block, back=0)[:, :, shift:, shift:]
    long, everywhere = Pattern.concatenate([patterns.dense(n, g), blocks], 3), patterns.dense(g, g + n)
    if "key_padding" in z:
        valid = z["key_padding"]
        keys = np.concatenate([np.ones((len(valid), g), bool), valid], axis=1)
        long = long & patterns.padding(keys, query_valid=valid)
        everywhere = everywhere & patterns.padding(keys, query_valid=np.ones((1, g), bool))
    keys, values = (np.concatenate([z[f"{x}_global"], z[x]], axis=2) for x in "kv")
    out, long_vjp = sa.vjp(z["q"], keys, values, long, backend=backend)
    out_global, global_vjp = sa.vjp(z["q_global"], keys, values, everywhere, backend=backend)
    agree(z, out=out, out_global=out_global)
    (dq, *long_grads), (dq_global, *global_grads) = long_vjp(z["dout"])[:3], global_vjp(z["dout_global"])[:3]
    dk, dv = (a + b for a, b in zip(long_grads, global_grads))
    agree(z, dq=dq, dq_global=dq_global, dk_global=dk[:, :, :g], dk=dk[:, :, g:], dv_global=dv[:, :, :g],
          dv=dv[:, :, g:])


@pytest.mark.parametrize("name", ["prefix_lm", "prefix_lm_window"])
def test_prefix_lm(name, backend):
    z, params = load(name)
    pattern = patterns.prefix_lm(z["q"].shape[2], params["prefix"], window=params["sliding_window"])
    assert np.array_equal(pattern.to_dense()[:, 0], z["mask"])
    attended(z, pattern, backend)


@pytest.mark.parametrize("name", ["sinks_evict_after", "sinks_evict_before", "sinks_dense_prompt"])
def test_attention_sinks(name, backend):
    z, params = load(name)
    n, prompt = z["q"].shape[2], params["dense_prompt"]
    recent = params["recent_size"] - ("before" in params["evict"])
    pattern = patterns.attention_sinks(n, n_sinks=params["start_size"], recent=recent)
    pattern = Pattern.concatenate([patterns.causal(n)[:, :, :prompt], pattern[:, :, prompt:]], axis=2)
    assert np.array_equal(pattern.to_dense()[0, 0], z["mask"])
    attended(z, pattern, backend)


@pytest.mark.parametrize("name", DEEPSPEED)
def test_deepspeed_layouts(name):
    z, params = load(name)
    for i, case in enumerate(params["cases"]):
        options = dict(case["kwargs"])
        pattern = patterns.deepspeed_layout(case["cls"], case["seq_len"], n_heads=options.pop("num_heads"),
                                            seed=case["random_seed"], **options)
        layout = pattern.to_dense()[0].reshape(-1, *z[f"layout_{i}"].shape[1:2], 16, *z[f"layout_{i}"].shape[2:], 16)
        assert np.array_equal(layout.any((2, 4)), layout.all((2, 4)))
        assert (layout.any((2, 4)) == z[f"layout_{i}"]).all(), case


def xformers_case(fn, given, n=None, window=None, idx=(), causal=False, block=None, left=0, right=0, cols=(), **shape):
    """The pattern that stands for a call of xformers."""
    if fn == "causal_1d_pattern":
        return patterns.causal(n)
    if fn == "local_1d_pattern":
        return patterns.sliding_window(n, left=window // 2, right=window // 2)
    if fn == "LocalAttention":  # causal ones reach `window` keys back, others half of it to each side
        return patterns.sliding_window(n, left=window if causal else window // 2, right=0 if causal else window // 2)
    if fn == "global_token_pattern":
        return patterns.global_tokens(n, idx)
    if fn == "layout_to_pattern":
        return Pattern.from_blocks(given, block_size=block)
    if fn == "pattern_to_layout":
        seen, none = np.isin(np.arange(n), cols), np.zeros(n, int)
        columns = Pattern.from_buckets(none, np.where(seen, 0, -1))
        return patterns.sliding_window(n, left=left, right=right) | columns
    place = np.arange(shape["H"] * shape["W"])
    residue = place // shape["W"] % shape["k"] * shape["k"] + place % shape["W"] % shape["k"]
    return Pattern.from_buckets(residue, residue)


def test_xformers_patterns():
    z, params = load("xformers_patterns")
    for i, case in enumerate(params["cases"]):
        pattern = xformers_case(case["fn"], z.get(f"input_{i}"), **case["kwargs"])
        found = pattern.to_dense()[0]
        if case["fn"] == "pattern_to_layout":
            found = stored_blocks(pattern, case["kwargs"]["block"])
        assert (found == z[f"mask_{i}"]).all(), case


def stored_blocks(pattern, block):
    """Which blocks of tokens hold a pair, bool (rows, columns): those of the pattern in one natural order."""
    whole = Pattern.from_scipy(pattern.to_scipy(), block_size=block).tiles()[0]
    found = np.zeros((whole.n_rows, whole.n_cols), bool)
    found[np.repeat(np.arange(whole.n_rows), np.diff(whole.indptr[0, 0])), whole.indices] = True
    return found
