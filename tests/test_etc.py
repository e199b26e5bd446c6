"""ETC's two softmaxes and labels, against their dense formula in float64; gradients by finite differences."""

import itertools

import numpy as np
import pytest

import oracle
from sparseattn import attend, patterns, variants

N, G, D, CLIP = 45, 6, 8, 3
R = 2 * CLIP + 3
NAMES = ("q_long", "k_long", "v_long", "q_global", "k_global", "v_global", "label_vectors", "label_scalars")
SENTENCE = np.arange(N) // 8
SENTENCES = np.random.default_rng(1).integers(-1, G, (2, N))
VALID, VALID_GLOBAL = np.ones((2, N), bool), np.ones((2, G), bool)
VALID[0, 30:] = VALID_GLOBAL[0, 4:] = False
ANY = [np.random.default_rng(2).integers(0, 5, shape) for shape in ((2, 1, N, G + N), (G, G + N))]


def drawn(numbers=((2, R, D), (2, R)), n_kv_heads=2, batch=2, dtype=np.float64):
    """The arrays by name, label numbers of these shapes or None."""
    rng = np.random.default_rng(0)
    heads = (2, n_kv_heads, n_kv_heads)
    shapes = [(batch, h, n, d) for n in (N, G) for h, d in zip(heads, (D, D, 5))] + list(numbers)
    return {name: None if shape is None else rng.standard_normal(shape).astype(dtype)
            for name, shape in zip(NAMES, shapes)}


def published_labels(sentence):
    """Labels of long and global queries by the rule, pair by pair."""
    sentence = np.atleast_2d(sentence)
    between = np.where(sentence[:, :, None] == np.arange(G), 2 * CLIP + 2, 2 * CLIP + 1)
    l2l, g2g = ([[min(j - i, CLIP) if j >= i else CLIP + min(i - j, CLIP) for j in range(n)] for i in range(n)]
                for n in (N, G))
    spread = [np.broadcast_to(x, (len(between), len(x), len(x))) for x in (l2l, g2g)]
    return (np.concatenate([between, spread[0]], 2)[:, None],
            np.concatenate([spread[1], between.swapaxes(1, 2)], 2)[:, None])


def formula(x, masks, labels, scale):
    """Both outputs."""
    keys, values = (np.concatenate([x[f"{name}_global"], x[f"{name}_long"]], 2) for name in "kv")
    outs = []
    for side, (name, mask) in enumerate(zip(("long", "global"), masks)):
        q, bias = x[f"q_{name}"], 0
        if labels is not None:
            at = np.broadcast_to(labels[side], q.shape[:3] + keys.shape[2:3])
            vectors, scalars = (np.zeros(1) if x[key] is None else
                                np.broadcast_to(x[key], (2, 2) + x[key].shape[-axes:])[side]
                                for key, axes in (("label_vectors", 2), ("label_scalars", 1)))
            head = np.arange(2)[:, None, None]
            bias = 0 if x["label_vectors"] is None else np.einsum("bhid,bhijd->bhij", q, vectors[head, at])
            bias = scale * (bias + (0 if x["label_scalars"] is None else scalars[head, at]))
        outs.append(oracle.attention(q, keys, values, mask, scale, bias=bias)[0])
    return outs


CASES = [
    ({"radius": 4}, (None, None)), ({"radius": 4, "hard": True, "sentence": SENTENCE}, (None, None)),
    ({"radius": 4, "labels": CLIP, "sentence": SENTENCE}, ((2, R, D), (2, R))),
    ({"radius": 6, "labels": CLIP, "sentence": SENTENCES, "hard": True}, ((2, 2, R, D), (2, 1, R))),
    ({"radius": 5, "labels": CLIP, "sentence": SENTENCES, "hard": "l2g", "scale": 0.7}, ((R, D), None)),
    ({"radius": 5, "labels": CLIP, "sentence": SENTENCE, "hard": "g2l"}, (None, (2, 2, R))),
    ({"radius": 50, "labels": ANY}, ((1, 5, D), (5,))),
    ({"radius": 4, "labels": CLIP, "sentence": SENTENCE, "valid": VALID, "valid_global": VALID_GLOBAL},
     ((2, R, D), (2, R))),
    ({"radius": 4, "valid": VALID[0]}, (None, None)),
]


def masks_of(radius, sentence=None, hard=False, valid=None, valid_global=None, **_):
    masks = oracle.etc(N, G, radius=radius, sentence=sentence, l2g=hard in (True, "l2g"), g2l=hard in (True, "g2l"))
    valid = np.ones((1, N), bool) if valid is None else np.atleast_2d(valid)
    valid_global = np.ones((1, G), bool) if valid_global is None else valid_global
    keys = np.concatenate([np.broadcast_to(x, (2, x.shape[1])) for x in (valid_global, valid)], 1)
    return [mask & oracle.padding(keys, rows) for mask, rows in zip(masks, (valid, valid_global))]


@pytest.mark.parametrize(("options", "numbers"), CASES)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_formula(options, numbers, n_kv_heads, backend):
    x = drawn(numbers, n_kv_heads)
    outs, vjp = variants.etc(**x, **options, backend=backend)
    labels = options.get("labels")
    labels = published_labels(options["sentence"]) if labels == CLIP else labels
    for got, right in zip(outs, formula(x, masks_of(**options), labels, options.get("scale", D**-0.5))):
        assert np.abs(got - right).max() < 1e-12
    douts = tuple(np.random.default_rng(3).standard_normal(out.shape) for out in outs)
    gradients = vjp(douts)
    for name, gradient in zip(NAMES, gradients):
        if x[name] is None:
            assert gradient is None
            continue
        assert gradient.shape == x[name].shape and gradient.dtype == x[name].dtype
        step = 1e-4 * np.random.default_rng(4).standard_normal(x[name].shape)
        above, below = (variants.etc(**x | {name: x[name] + sign * step}, **options, backend=backend)[0]
                        for sign in (1, -1))
        slope = sum(((a - b) / 2 * dout).sum() for a, b, dout in zip(above, below, douts))
        assert abs((gradient * step).sum() - slope) < 1e-6 * np.abs(gradient * step).sum(), name


def test_without_labels_it_is_two_attends(backend):
    x = drawn((None, None), dtype=np.float32)
    outs, _ = variants.etc(**x, radius=4, backend=backend)
    keys, values = (np.concatenate([x[f"{name}_global"], x[f"{name}_long"]], 2) for name in "kv")
    for out, q, pattern in zip(outs, (x["q_long"], x["q_global"]), patterns.etc(N, G, radius=4)):
        assert np.abs(out - attend(q, keys, values, pattern, backend=backend)).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("lead", [(), (0,), (0, 0)])
def test_axes_and_dtypes(lead, dtype):
    numbers = ((R, D), (R,)) if len(lead) == 2 else ((2, R, D), (2, R))
    x = {name: a[lead] if name[0] in "qkv" else a for name, a in drawn(numbers, dtype=dtype).items()}
    outs, vjp = variants.etc(**x, radius=4, labels=CLIP, sentence=SENTENCE)
    assert all(out.dtype == dtype for out in outs)
    whole = {name: a[(None,) * len(lead)].astype(np.float64) if name[0] in "qkv" else a.astype(np.float64)
             for name, a in x.items()}
    exact, exact_vjp = variants.etc(**whole, radius=4, labels=CLIP, sentence=SENTENCE)
    unit, bare = np.finfo(dtype).eps, (0,) * len(lead)
    for got, right in itertools.chain(zip(outs, exact), zip(vjp(outs)[:6], exact_vjp(exact)[:6])):
        assert got.dtype == dtype and got.shape == right[bare].shape
        assert np.abs(got - right[bare]).max() < 8 * unit * np.abs(right).max()


REFUSED = [
    ({"labels": CLIP}, ValueError, "published labels need sentence="),
    ({"labels": 2, "sentence": SENTENCE}, ValueError, "labels is 2 and there are numbers for 9 labels"),
    ({"labels": None}, ValueError, "labels and the numbers of labels need each other"),
    ({"labels": "all"}, TypeError, "labels is str; expected an int, or two arrays"),
    ({"labels": (ANY[0], ANY[1][:, 1:])}, ValueError, r"labels holds an array of shape \(6, 50\); expected one that"),
    ({"labels": CLIP, "sentence": SENTENCE, "label_scalars": np.zeros((3, R))}, ValueError,
     r"label_scalars has shape \(3, 9\); expected \(\[2,\] \[n_heads=2,\] n_labels\)"),
    ({"labels": CLIP, "sentence": SENTENCE, "label_vectors": np.zeros((2, R, D), np.float32)}, TypeError,
     "label_vectors has dtype float32; expected that of q_long, float64"),
    ({"labels": CLIP, "sentence": SENTENCE, "k_long": np.zeros((2, 2, N - 1, D))}, ValueError,
     r"q_long, k_long, v_long have \[45, 44, 45\] tokens; expected as many of each"),
    ({"labels": CLIP, "sentence": SENTENCE, "q_global": np.zeros((2, 1, G, D))}, ValueError,
     r"q_long has shape \(2, 2, 45, 8\) but q_global \(2, 1, 6, 8\); both sequences need equal batches"),
    ({"labels": CLIP, "sentence": SENTENCE, "valid": VALID[:, 1:]}, ValueError,
     r"valid is bool of shape \(2, 44\); expected bool \(45,\) or \(batch, 45\)"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_refused(changes, error, words):
    with pytest.raises(error, match=words):
        variants.etc(**drawn() | changes, radius=4)


def test_gradients_of_both_outputs_are_needed():
    _, vjp = variants.etc(**drawn(), radius=4, labels=CLIP, sentence=SENTENCE)
    with pytest.raises(TypeError, match=r"douts is ndarray; expected a pair \(dout_long, dout_global\)"):
        vjp(np.zeros((2, 2, N, 5)))
    with pytest.raises(ValueError, match=r"dout_global has shape \(2, 2, 45, 5\) but out_global \(2, 2, 6, 5\)"):
        vjp((np.zeros((2, 2, N, 5)), np.zeros((2, 2, N, 5))))
