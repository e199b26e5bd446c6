"""Packed documents: patterns behind each other on the diagonal, each restarting at its document's first token."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import over, pattern_of, shapes
from test_algebra import same
from test_attend import compared, drawn

import families
import oracle
import sparseattn as sa
from sparseattn import Pattern, patterns
from sparseattn.structure import BlockCSR, Ranges

LENGTHS = [37, 0, 64, 1, 20, 64]

# what restarts in each document: a family, its arguments but the tokens
FAMILIES = [
    ("dense", {}), ("causal", {}), ("sliding_window", {"left": 5}), ("sliding_window", {"left": 3, "dilation": 4}),
    ("sliding_window", {"left": 3, "right": 2, "dilation": [1, 3, 3, 2]}), ("block_local", {"block": 16}),
    ("block_local", {"block": 10, "back": 1, "forward": 1, "wrap": True}), ("strided", {"stride": 9}),
    ("strided", {"stride": 9, "factor": "column"}), ("fixed", {"stride": 12, "n_summary": 3}),
    ("prefix_lm", {"prefix": 9}), ("attention_sinks", {"n_sinks": 2, "recent": 6}),
    ("longformer", {"window": 6, "dilation": [1, 2]}),
]


def diagonal(masks):
    """Booleans (batch, heads, n_queries, n_keys) behind each other; axes of 1 and of several meet."""
    batch, n_heads = (max(m.shape[axis] for m in masks) for axis in (0, 1))
    whole = np.zeros((batch, n_heads, sum(m.shape[2] for m in masks), sum(m.shape[3] for m in masks)), bool)
    q = k = 0
    for mask in masks:
        whole[:, :, q : q + mask.shape[2], k : k + mask.shape[3]] = over(mask, batch, n_heads)
        q, k = q + mask.shape[2], k + mask.shape[3]
    return whole


@pytest.mark.parametrize("name, options", FAMILIES, ids=str)
def test_families_restart(name, options):
    packed = Pattern.block_diagonal([getattr(patterns, name)(n, **options) for n in LENGTHS])
    same(packed, diagonal([getattr(oracle, name)(n, **options) for n in LENGTHS]))


@pytest.mark.parametrize("case", families.POSITIONAL, ids=lambda case: case.name)
def test_every_family_has_its_place(case):
    """Behind another pattern, before it, and beside a twin."""
    own, between = case.build(), patterns.strided(13, stride=4)
    masks = [oracle.strided(13, stride=4), case.mask, case.mask, oracle.strided(13, stride=4), case.mask]
    same(Pattern.block_diagonal([between, own, own, between, own]), diagonal(masks))
    same(Pattern.block_diagonal([own, own]), diagonal([case.mask] * 2))


@pytest.mark.parametrize("lengths", [[37, 0, 64, 20], [64, 64, 30], [64, 0, 64]], ids=str)
def test_global_tokens_restart(lengths):
    positions = [[0, 5, n - 1] if n else [] for n in lengths]
    packed = Pattern.block_diagonal([patterns.global_tokens(n, p) for n, p in zip(lengths, positions, strict=True)])
    same(packed, diagonal([oracle.global_tokens(n, p) for n, p in zip(lengths, positions, strict=True)]))


def _bigbird(n, n_heads=2):
    """Both sides of a block family."""
    n_blocks = -(-n // 8)
    rand_blocks = np.random.default_rng(n).integers(0, n_blocks, (n_heads, n_blocks - 2, 1))
    options = {"block_size": 8, "rand_blocks": rand_blocks}
    return patterns.bigbird(n, n_heads=n_heads, **options), oracle.bigbird(n, **options)


@pytest.mark.parametrize("lengths", [[50, 33, 90], [64, 32, 40], [40, 40, 40], [44, 44]], ids=str)
def test_blocks_restart(lengths):
    packed, mask = zip(*map(_bigbird, lengths))
    same(Pattern.block_diagonal(packed), diagonal(mask))


def test_windows_are_those_of_documents():
    packed = Pattern.block_diagonal([patterns.sliding_window(n, left=6) for n in LENGTHS])
    assert packed.same_pairs(patterns.documents(LENGTHS, window=7))
    cross = Pattern.block_diagonal([patterns.causal(q, k) for q, k in ((5, 9), (0, 4), (8, 3), (7, 7))])
    assert cross.same_pairs(patterns.documents([5, 0, 8, 7], [9, 4, 3, 7], causal=True))


@given(st.data())
def test_any_patterns(data):
    each = data.draw(st.lists(shapes().flatmap(pattern_of), min_size=1, max_size=4))
    same(Pattern.block_diagonal(each), diagonal([p.to_dense() for p in each]))


@pytest.mark.parametrize("n", [64, 50])
def test_equal_documents_keep_an_affine_order(n):
    for one in (patterns.strided(n, stride=8, factor="column"), patterns.bigbird(n, block_size=16, n_random=1)):
        packed = Pattern.block_diagonal([one] * 3)
        same(packed, diagonal([one.to_dense()] * 3))
        assert all(o is None or o.is_affine for p in packed.parts for o in (p.q_order, p.k_order))


def test_documents_on_blocks_need_no_order():
    part, = Pattern.block_diagonal([patterns.bigbird(n, block_size=16, n_random=1) for n in (64, 160, 75)]).parts
    assert isinstance(part, BlockCSR) and part.q_order is None and part.k_order is None


def test_parts_of_one_kind_become_one():
    """However many documents; what all heads share stays shared."""
    def one(n):
        return patterns.sliding_window(n, left=3) | patterns.strided(n, stride=7, factor="column")

    packed = Pattern.block_diagonal([one(n) for n in range(20, 60)])
    assert len(packed.parts) == len(one(20).parts)
    window, = Pattern.block_diagonal([patterns.sliding_window(n, left=3) for n in (9, 30, 5)]).parts
    assert isinstance(window, Ranges) and window.q_order is None and window.k_order is None
    mixed = Pattern.block_diagonal([patterns.causal(30), patterns.bigbird(90, block_size=8, n_heads=4, n_random=1)])
    assert mixed.n_heads == 4 and [p.lead for p in mixed.parts] == [(1, 1), (1, 4)]


def _batch_of_documents():
    """Two batch items of other documents, one of them empty: (pattern, mask)."""
    items = [[_bigbird(50, 1), _bigbird(41, 1)],
             [_bigbird(28, 1), (patterns.dense(0), oracle.dense(0)), _bigbird(63, 1)]]
    packed, masks = zip(*[(Pattern.block_diagonal([p for p, _ in item]), diagonal([m for _, m in item]))
                          for item in items])
    return Pattern.per_batch(packed), np.concatenate(masks)


def test_documents_per_batch_item():
    same(*_batch_of_documents())


def _mixed_documents():
    """Ranges, reordered ranges and blocks with heads of their own: (pattern, mask)."""
    bigbird, mask = _bigbird(45, 2)
    strided = patterns.strided(30, stride=7), oracle.strided(30, stride=7)
    dilated = (patterns.sliding_window(26, left=4, dilation=[1, 3]), oracle.sliding_window(26, left=4, dilation=[1, 3]))
    each = [strided, (bigbird, mask), (patterns.dense(1), oracle.dense(1)), dilated]
    return Pattern.block_diagonal([p for p, _ in each]), diagonal([m for _, m in each])


@pytest.mark.parametrize("made", [_batch_of_documents, _mixed_documents])
@pytest.mark.parametrize("layout", [(2, 1, 16, 16), (1, 1, 20, 8)], ids=str)
def test_attention_over_documents(made, layout, backend):
    pattern, mask = made()
    compared(pattern, mask, *drawn(1, mask, layout, np.float32), backend)


def test_attention_over_documents_is_that_of_each_alone(backend):
    lengths = [50, 33, 90]
    q, k, v, dout = np.random.default_rng(0).standard_normal((4, 1, 2, sum(lengths), 16))
    each = [_bigbird(n)[0] for n in lengths]
    out, vjp = sa.vjp(q, k, v, Pattern.block_diagonal(each), backend=backend)
    got = [out, *vjp(dout)[:3]]
    ends = np.cumsum(lengths)[:-1]
    cuts = zip(each, *(np.split(x, ends, axis=2) for x in (q, k, v, dout)), strict=True)
    alone = [_alone(*cut, backend) for cut in cuts]
    for whole, parts in zip(got, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts, axis=2), rtol=0, atol=1e-13)


def _alone(pattern, q, k, v, dout, backend):
    out, vjp = sa.vjp(q, k, v, pattern, backend=backend)
    return [out, *vjp(dout)[:3]]


def test_a_thousand_documents_in_under_a_second():
    rng = np.random.default_rng(0)
    lengths = np.diff(np.r_[0, np.sort(rng.choice(131071, 999, replace=False)) + 1, 131072])
    for build in (lambda n: patterns.block_local(n, block=64), lambda n: patterns.strided(n, stride=32),
                  lambda n: patterns.bigbird(n, block_size=16)):
        each = [build(int(n)) for n in lengths]
        start = time.process_time()
        packed = Pattern.block_diagonal(each)
        assert time.process_time() - start < 1
        assert packed.nnz == sum(p.nnz for p in each) and len(packed.parts) <= 2
