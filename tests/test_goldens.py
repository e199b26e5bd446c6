"""The families against what published implementations computed; provenance: golden/README.md."""

import json
import pathlib

import numpy as np
import pytest

import sparseattn as sa
from sparseattn import patterns

FOLDER = pathlib.Path(__file__).parent / "golden"


def load(name):
    """(arrays by name, parameters)."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("params")))


def dense(z, params):
    n_queries, n_keys = z["q"].shape[2], z["k"].shape[2]
    return (patterns.causal if params["causal"] else patterns.dense)(n_queries, n_keys)


def mistral(z, params):
    pattern = patterns.sliding_window(z["q"].shape[2], left=params["sliding_window"] - 1)
    if params.get("docs"):
        pattern = pattern & patterns.documents(params["docs"])
    return pattern & patterns.padding(z["key_padding"]) if "key_padding" in z else pattern


def block_local(z, params):
    return patterns.block_local(z["q"].shape[2], block=params["window_size"], back=params["look_backward"],
                                forward=params["look_forward"], causal=params["causal"],
                                exact=params["exact_windowsize"])


def longformer(z, params):
    reach = params["one_sided"]
    pattern = patterns.sliding_window(z["q"].shape[2], left=reach, right=reach, dilation=params["dilation"])
    return pattern & patterns.padding(z["key_padding"]) if "key_padding" in z else pattern


def bigbird(z, params):
    n_heads, _, n_random = z["rand_blocks"].shape
    pattern = patterns.bigbird(z["q"].shape[2], block_size=params["block_size"], n_heads=n_heads, n_random=n_random,
                               rand_blocks=z["rand_blocks"])
    return pattern & patterns.padding(z["key_padding"]) if "key_padding" in z else pattern


GOLDENS = {
    "dense_causal": dense, "dense_cross": dense, "mistral_window": mistral, "mistral_window_odd": mistral,
    "mistral_window_gt_seq": mistral, "mistral_packed": mistral, "mistral_left_padded": mistral,
    "mistral_decode": mistral,
    "blocklocal_bidirectional": block_local, "blocklocal_causal": block_local, "blocklocal_causal_exact": block_local,
    "longformer_window": longformer, "longformer_window_equals_seq": longformer,
    "longformer_dilated_per_head": longformer,
    "longformer_padded_no_global": longformer, "bigbird_train_general": bigbird, "bigbird_train_r3_layer5": bigbird,
    "bigbird_train_smallest_general": bigbird, "bigbird_train_single_plan": bigbird, "bigbird_train_padded": bigbird,
}


@pytest.mark.parametrize("name", GOLDENS)
def test_attention(name, backend):
    z, params = load(name)
    out, vjp = sa.vjp(z["q"], z["k"], z["v"], GOLDENS[name](z, params), backend=backend)
    assert np.abs(out - z["out"]).max() <= 2e-5
    if "dout" in z:
        for key, got in zip(("dq", "dk", "dv"), vjp(z["dout"])):
            assert np.abs(got - z[key]).max() <= 1e-4 * np.abs(z[key]).max(), key


def test_decoding_with_a_cache(backend):
    z, params = load("mistral_decode")
    n, decoded = z["q"].shape[2], params["decode_steps"]
    start = 0
    for size in params["prefill_chunks"]:
        stop = start + size
        pattern = patterns.sliding_window(size, stop, left=params["sliding_window"] - 1)
        chunk = sa.attend(z["q"][:, :, start:stop], z["k"][:, :, :stop], z["v"][:, :, :stop], pattern, backend=backend)
        assert np.abs(chunk - z["out"][:, :, start:stop]).max() <= 2e-5
        start = stop
    for token in range(n - decoded, n):
        kept = slice(token + 1 - z["keys_held"][token], token + 1)
        row = sa.attend(z["q"][:, :, token:token + 1], z["k"][:, :, kept], z["v"][:, :, kept],
                        patterns.dense(1, kept.stop - kept.start), backend=backend)
        assert np.abs(row - z["out"][:, :, token:token + 1]).max() <= 2e-5


@pytest.mark.parametrize("name", [n for n in GOLDENS if n.startswith("bigbird")] + ["bigbird_train_1024_legacy"])
def test_official_random_blocks(name):
    z, params = load(name)
    n_heads, rows, n_random = z["rand_blocks"].shape
    options = {"block_size": params["block_size"], "n_heads": n_heads, "n_random": n_random}
    n_tokens = (rows + 2) * params["block_size"]
    plan = "legacy" if params["plan"] == "legacy" else "official"
    drawn = patterns.bigbird(n_tokens, seed=params["numpy_seed"], plan=plan, **options)
    given = patterns.bigbird(n_tokens, rand_blocks=z["rand_blocks"], **options)
    assert np.array_equal(drawn.to_dense(), given.to_dense())


def test_sparse_transformer_masks():
    z, params = load("openai_sparse_transformer")
    for i, case in enumerate(params["cases"]):
        n, stride = case["n_ctx"], case["local_attn_ctx"]
        factor = {"all": None, "fixed": None, "local": "local", "strided": "column"}[case["attn_mode"]]
        pattern = patterns.strided(n, stride=stride, factor=factor) if factor else patterns.causal(n)
        if case["attn_mode"] == "fixed":
            sub_block = [head % case["num_verts"] for head in range(case["n_heads"])]
            pattern = patterns.fixed(n, stride=stride, n_summary=case["vertsize"] * case["blocksize"],
                                     sub_block=sub_block)
        assert (pattern.to_dense()[0] == z[f"mask_{i}"]).all(), case


def test_packed_document_masks():
    z, params = load("xformers_varlen")
    for i, case in enumerate(params["cases"]):
        pattern = patterns.documents(case["q"], case.get("k"), causal=case["kind"].startswith("causal"),
                                     window=case.get("window"))
        assert np.array_equal(pattern.to_dense()[0, 0], z[f"mask_{i}"]), case
