"""Patterns of best keys, blocks, chunks and pages against what published implementations computed; provenance:
golden/README.md."""

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns
from test_goldens import load
from test_goldens_grids import agrees


def of_blocks(chosen, size, n):
    """Chosen blocks as pairs: bool (..., n_queries, n_blocks) to (..., n_queries, n)."""
    return np.repeat(chosen, size, axis=-1)[..., :n]


def listed(index, n):
    """Chosen numbers (..., m), -1 for none, as bool (..., n)."""
    chosen = np.zeros((*index.shape[:-1], n + 1), bool)
    np.put_along_axis(chosen, index, True, axis=-1)
    return chosen[..., :-1]


def bits(packed, n):
    return np.unpackbits(packed, axis=-1)[..., :n].astype(bool)


def runs(z, params, pattern, mask, backend):
    """The pattern holds these pairs, and attention over it is the peer's."""
    assert np.array_equal(pattern.check().to_dense(), mask)
    out, vjp = sa.vjp(z["q"], z["k"], z["v"], pattern, scale=params["scale"], backend=backend)
    agrees(z, out, dict(zip(("dq", "dk", "dv"), vjp(z["dout"]))) if "dout" in z else {})


@pytest.mark.parametrize("name", ["topk_bidirectional", "topk_causal"])
def test_top_k(name, backend):
    z, params = load(name)
    pattern = patterns.top_k(z["q"], z["k"], n_selected=params["k"], causal=params["causal"], scale=params["scale"])
    runs(z, params, pattern, bits(z["mask_bits"], z["k"].shape[2]), backend)


def test_indexer(backend):
    z, params = load("dsa_topk")
    n = z["k"].shape[2]
    pattern = patterns.indexer_top_k(z["index_q"], z["index_k"], z["index_w"], n_selected=params["k"])
    runs(z, params, pattern, (listed(z["index"], n) & np.tri(n, dtype=bool))[:, None], backend)


def test_block_top_k(backend):
    z, params = load("block_topk")
    n, size = z["k"].shape[2], params["block_size"]
    pattern = patterns.block_top_k(z["index_q"], z["index_k"], block_size=size, n_blocks=params["k_blocks"],
                                   local_blocks=params["local_blocks"])
    mask = of_blocks(listed(z["selected"], -(-n // size)), size, n) & np.tri(n, dtype=bool)
    runs(z, params, pattern, mask, backend)


@pytest.mark.parametrize("name", ["moba", "moba_top1"])
def test_moba(name, backend):
    z, params = load(name)
    n, size = z["k"].shape[2], params["chunk_size"]
    pattern = patterns.moba(z["q"], z["k"], chunk_size=size, top_k=params["topk"])
    mask = of_blocks(bits(z["selected_bits"], -(-n // size)), size, n) & np.tri(n, dtype=bool)
    runs(z, params, pattern, mask, backend)


def test_quest(backend):
    z, params = load("quest")
    n, size = z["k"].shape[2], params["page_size"]
    pattern = patterns.quest(z["q"], z["k"], page_size=size, token_budget=params["token_budget"], force_last=False)
    mask = of_blocks(bits(z["selected_bits"], -(-n // size)), size, n)[:, :, None]
    runs(z, params, pattern, mask, backend)


def test_nsa_of_equal_blocks(backend):
    z, params = load("nsa_select")
    n, size = z["k"].shape[2], params["block_size"]
    sizes = {"compress_block": size, "compress_stride": size, "select_block": size,
             "n_selected": params["num_selected_blocks"]}
    visible = np.arange(z["ck"].shape[2]) * size + size - 1 <= np.arange(n)[:, None]
    seen = sa.Pattern.from_ranges(np.zeros(n, int), visible.sum(1), z["ck"].shape[2])
    compressed, lse = sa.attend(z["q"], z["ck"], z["cv"], seen, scale=params["scale"], return_lse=True, backend=backend)
    assert np.abs(compressed - z["out_compress"]).max() <= 2e-5
    with np.errstate(invalid="ignore"):
        p = np.where(visible, np.exp(params["scale"] * z["q"] @ z["ck"].swapaxes(-1, -2) - lse[..., None]), 0)
    pattern = patterns.nsa_selection(p, n_kv_heads=params["kv_heads"], n_tokens=n, **sizes)
    mask = of_blocks(listed(z["selected"], n // size), size, n) & np.tri(n, dtype=bool)
    runs(z, params, pattern, mask, backend)
    for branch, expected in ((0, "out_compress"), (1, "out")):
        gates = np.zeros((*z["q"].shape[:3], 3), np.float32)
        gates[..., branch] = 1
        out, _ = sa.variants.nsa(z["q"], z["k"], z["v"], z["ck"], z["cv"], gates, **sizes, window=5,
                                 scale=params["scale"], backend=backend)
        assert np.abs(out - z[expected]).max() <= 2e-5


@pytest.mark.parametrize("name", ["nsa_branches", "nsa_branches_equal_blocks"])
def test_nsa_by_the_rules_of_the_package(name, backend):
    """Branches by `attend`, each with the pattern that the package has for it."""
    z, params = load(name)
    n, size, stride = z["k"].shape[2], params["selection_block_size"], params["compress_stride"]
    memory = params["memory_compressed"]
    n_compressed = z["ck"].shape[2] - memory
    scale = params["scale"]
    position, last = np.arange(n), stride * (np.arange(n_compressed) + 1) - 1  # blocks end with their stride
    seen = (last < position[:, None]).sum(1)
    compress = sa.Pattern.from_ranges(np.zeros(n, int), memory + seen, memory + n_compressed)
    compressed = sa.attend(z["q_unrotated"], z["ck"], z["cv"], compress, scale=scale, backend=backend)
    assert np.abs(compressed - z["out_compress"]).max() <= 2e-5

    group = z["q"].shape[1] // z["k"].shape[1]
    logits = scale * z["q_unrotated"] @ np.repeat(z["ck"][:, :, memory:], group, axis=1).swapaxes(-1, -2)
    logits = logits.reshape(1, -1, group, n, n_compressed).mean(2)
    parts, n_blocks = size // stride, -(-n // size)
    whole = n_compressed // parts
    scores = np.full((*logits.shape[:3], n_blocks), -np.inf, np.float32)
    scores[..., :whole] = logits[..., : whole * parts].reshape(*logits.shape[:3], whole, parts).mean(-1)
    scores[:, :, np.arange(n_blocks) >= seen[:, None] // parts] = -np.inf  # a candidate once all of it is visible
    pattern = patterns.from_block_scores(scores, block_size=(1, size), shape=(n, n),
                                         k=params["num_selected_blocks"] + 1)
    selected = np.where(z["selected_valid"], z["selected"], -1)
    chosen = listed(selected, n_blocks) | (np.arange(n_blocks) == position[:, None] // size)
    assert np.array_equal(pattern.check().to_dense(), of_blocks(chosen, size, n) & np.tri(n, dtype=bool))

    sliding = patterns.sliding_window(n, left=params["sliding_keys"] - 1)
    branches = [compressed] + [sa.attend(z["q"], z["k"], z["v"], p, scale=scale, backend=backend)
                               for p in (pattern, sliding)]
    for out, branch in zip(branches[1:], ("selected", "sliding")):
        assert np.abs(out - z[f"out_{branch}"]).max() <= 2e-5
    assert np.abs(sum(z["gate"][..., i, None] * out for i, out in enumerate(branches)) - z["out"]).max() <= 2e-5


@pytest.mark.parametrize("name", ["nsa_branches", "nsa_branches_equal_blocks"])
def test_nsa_variant_by_the_rules_of_the_package(name, backend):
    z, params = load(name)
    for gates, expected in [(z["gate"], "out"), *((np.eye(3, dtype=np.float32)[i] + 0 * z["gate"], f"out_{branch}")
                                                 for i, branch in enumerate(("compress", "selected", "sliding")))]:
        out, _ = sa.variants.nsa(
            z["q"], z["k"], z["v"], z["ck"], z["cv"], gates, compress_block=params["compress_block_size"],
            compress_stride=params["compress_stride"], select_block=params["selection_block_size"],
            n_selected=params["num_selected_blocks"], window=params["sliding_window_size"], rules="package",
            compressed_q=z["q_unrotated"], scale=params["scale"], backend=backend)
        assert np.abs(out - z[expected]).max() <= 2e-5
