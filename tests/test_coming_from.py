"""The page for those who come from elsewhere: every code line on it, against the rule of what it stands for."""

import pathlib
import re

import numpy as np
import pytest
import scipy.sparse

import oracle
import sparseattn as sa
from sparseattn import Pattern, bias, patterns
from sparseattn.patterns.positional.bigbird_plans import general_plan

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "coming_from.md"
RNG = np.random.default_rng(0)

N, M, ROWS, COLUMNS, W, D, K, B, W2 = 63, 20, 7, 9, 10, 3, 5, 6, 4
LENGTHS, Q_LENGTHS, KV_LENGTHS = [20, 1, 42], [5, 9, 6], [12, 9, 42]
DOCUMENT_ID = np.repeat([0, 1, 2], LENGTHS)
MASK, REAL = RNG.random((M, N)) < 0.3, np.arange(N) < [[50], [31]]
CACHED = np.array([0, 40])
SPARSE = scipy.sparse.random_array((M, N), density=0.2, rng=RNG)
NAMES = {
    "np": np, "Pattern": Pattern, "bias": bias, "patterns": patterns, "n": N, "m": M, "rows": ROWS, "columns": COLUMNS,
    "W": W, "d": D, "K": K, "B": B, "G": 2, "w": W2, "a": 4, "b": 2, "r": 2, "extra": 3, "mask": MASK,
    "attention_mask": REAL.astype(int), "prefix_length": np.array([10, 40]), "lengths": LENGTHS,
    "document_id": DOCUMENT_ID, "q_lengths": Q_LENGTHS, "kv_lengths": KV_LENGTHS,
    "cu_seqlens_q": np.cumsum([0, *Q_LENGTHS]),
    "cu_seqlens_k": np.cumsum([0, *KV_LENGTHS]), "cache_seqlens": CACHED, "matrix": SPARSE,
}


def rows():
    """(title of the table, what stands there, our code) of each row of the page's tables."""
    title = None
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().replace(r"\|", "|").replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and not set(cells[0]) <= {"-"}:
            if title:
                yield title, cells[0], cells[1]
            title = title or cells[0]
        else:
            title = title if cells else None


MASK_MODS, SCORE_MODS, CALLS = [], [], []
for title, theirs, ours in rows():
    {"mask_mod": MASK_MODS, "score_mod": SCORE_MODS}.get(title, CALLS).append((theirs, ours))
i, j = np.arange(N)[:, None], np.arange(N)
LATE = np.arange(M)[:, None] + N - M  # where m queries sit, aligned to the bottom right
TOP = np.arange(M)[:, None]


def _grid(**options):
    return oracle.neighborhood((ROWS, COLUMNS), **options)


def _blocks(size, rule):
    """A rule of blocks (r, c), for tokens."""
    return rule(i // size, j // size)


def _diagonal(rule):
    """A rule (i, j, n_queries, n_keys) in each document, its indices counted there."""
    found = np.zeros((sum(Q_LENGTHS), sum(KV_LENGTHS)), bool)
    for number, (a, b) in enumerate(zip(Q_LENGTHS, KV_LENGTHS)):
        q, k = sum(Q_LENGTHS[:number]), sum(KV_LENGTHS[:number])
        found[q : q + a, k : k + b] = rule(np.arange(a)[:, None], np.arange(b), a, b)
    return found


def _fixed(r, c, local=3):
    """DeepSpeed's "fixed", unidirectional, of blocks: the last one of each window is global, of a short last window the
    last of all."""
    n_blocks = -(-N // 4)
    is_global = (c % local == local - 1) | (c == n_blocks - 1)
    return (c <= r) & ((r // local == c // local) | is_global)


def _bigbird(rand_blocks):
    return oracle.bigbird(N, block_size=B, rand_blocks=rand_blocks)


SAME = DOCUMENT_ID[:, None] == DOCUMENT_ID
N_BLOCKS = -(-N // B)
RULES = {
    "is_causal=True": j <= TOP,
    "attn_mask=mask": MASK,
    "causal=True": j <= LATE,
    "window_size=(a, b)": (j - LATE >= -4) & (j - LATE <= 2),
    "window_size=(a, -1)": j - LATE >= -4,
    "causal=True, window_size=(a, 0)": (j - LATE >= -4) & (j <= LATE),
    "flash_attn_varlen_func(..., cu_seqlens_q, cu_seqlens_k, causal=True)":
        _diagonal(lambda i, j, a, b: j <= i + b - a),
    "flash_attn_with_kvcache(..., cache_seqlens=cache_seqlens, causal=True)":
        j <= CACHED[:, None, None, None] + np.arange(2)[:, None],
    "LowerTriangularMask()": j <= TOP,
    "LowerTriangularFromBottomRightMask()": j <= LATE,
    "LowerTriangularFromBottomRightLocalAttentionMask(W)": (j <= LATE) & (LATE - j < W),
    "LocalAttentionFromBottomRightMask(window_left=a, window_right=b)": (j - LATE >= -4) & (j - LATE <= 2),
    "BlockDiagonalMask.from_seqlens(q_lengths, kv_lengths)": _diagonal(lambda i, j, a, b: (i >= 0) & (j >= 0)),
    "BlockDiagonalCausalMask.from_seqlens(q_lengths, kv_lengths)": _diagonal(lambda i, j, a, b: j <= i),
    "BlockDiagonalCausalFromBottomRightMask.from_seqlens(q_lengths, kv_lengths)":
        _diagonal(lambda i, j, a, b: j <= i + b - a),
    "BlockDiagonalCausalMask.from_seqlens(lengths).make_local_attention(W)": SAME & (j <= i) & (i - j < W),
    "LocalAttention(causal=True, window_size=W)": (j <= i) & (i - j <= W),
    "na1d(q, k, v, kernel_size=K)": oracle.neighborhood((N,), kernel_size=K),
    "na2d(q, k, v, kernel_size=K)": _grid(kernel_size=K),
    "na2d(q, k, v, kernel_size=(4, 3), stride=(2, 1), dilation=(1, 2))":
        _grid(kernel_size=(4, 3), stride=(2, 1), dilation=(1, 2)),
    "na2d(q, k, v, kernel_size=K, is_causal=(True, False))": _grid(kernel_size=K, is_causal=(True, False)),
    "na2d(q, k, v, kernel_size=K, additional_keys=..., additional_values=...)":
        np.concatenate([_grid(kernel_size=K), np.ones((1, 1, N, 3), bool)], axis=3),
    "Longformer attention_window=2 * W": (abs(i - j) <= W) | np.isin(i, [0, 7]) | np.isin(j, [0, 7]),
    # the draws have goldens of their own
    "BigBird block_size=B, num_random_blocks=r in training": _bigbird(general_plan(N_BLOCKS, 2, 2, 3)),
    "BigBird in evaluation": _bigbird(np.zeros((1, N_BLOCKS - 2, 2), int)),
    "Mistral sliding_window=W": (i - W < j) & (j <= i),
    "encoders with sliding_window=W": abs(i - j) <= W,
    "LongT5 local_radius=W": abs(i - j) <= W,
    "PEGASUS-X block_size=B": i // B == j // B,
    "PEGASUS-X, staggered layers": (i + B // 2) // B == (j + B // 2) // B,
    "Reformer local_attn_chunk_length=B, local_num_chunks_before=1, local_num_chunks_after=1":
        np.isin((j // B - i // B) % N_BLOCKS, [0, 1, N_BLOCKS - 1]),
    "Swin window_size=w, odd layers":
        ((i // COLUMNS - 2) // W2 == (j // COLUMNS - 2) // W2) & ((i % COLUMNS - 2) // W2 == (j % COLUMNS - 2) // W2),
    "attention_mask, 1 for tokens": (j <= i) & REAL[:, None, None, :] & REAL[:, None, :, None],
    "packed position_ids": SAME & (j <= i),
    'FixedSparsityConfig(num_heads=2, block=4, num_local_blocks=3, attention="unidirectional")': _blocks(4, _fixed),
    "BSLongformerSparsityConfig(num_heads=2, block=4, num_sliding_window_blocks=3, global_block_indices=[0, 5])":
        _blocks(4, lambda r, c: (abs(r - c) <= 1) | np.isin(r, [0, 5]) | np.isin(c, [0, 5])),
    "LocalSlidingWindowSparsityConfig(num_heads=2, block=4)": _blocks(4, lambda r, c: (r - 1 <= c) & (c <= r)),
    "local-attention: LocalAttention(window_size=B, look_backward=1, causal=True)": (j <= i) & (i // B - j // B <= 1),
    "local-attention: LocalAttention(window_size=B, look_backward=1, causal=True, exact_windowsize=True)":
        (j <= i) & (i // B - j // B <= 1) & (i - j <= B),
    "attention_sinks: attention_sink_size=4, attention_sink_window_size=W": (j <= i) & ((j < 4) | (i - j <= W)),
    'OpenAI\'s Sparse Transformer: attn_mode="local", local_attn_ctx=W': (j <= i) & (i - j < W),
    'OpenAI\'s Sparse Transformer: attn_mode="strided", local_attn_ctx=W': (j <= i) & ((i - j) % W == 0),
    "scipy.sparse": SPARSE.toarray() != 0,
}


@pytest.mark.parametrize("theirs, ours", MASK_MODS)
def test_mask_mods(theirs, ours):
    grid = {"row": lambda x: x // COLUMNS, "column": lambda x: x % COLUMNS, "clip": np.clip}
    batch = {"b": np.arange(2)[:, None, None, None], "q_idx": i, "kv_idx": j}
    _same_pairs(ours, eval(theirs, NAMES | grid | batch))


def test_every_row_has_a_rule_and_every_rule_a_row():
    assert sorted(theirs for theirs, _ in CALLS) == sorted(RULES)
    assert len(MASK_MODS) >= 9 and len(SCORE_MODS) >= 5


@pytest.mark.parametrize("theirs, ours", CALLS)
def test_calls(theirs, ours):
    _same_pairs(ours, RULES[theirs])


def _same_pairs(code, expected):
    found = eval(code, dict(NAMES)).to_dense()
    assert (found == expected).all(), np.argwhere(found != expected)[:5]
    assert found.any() and not found.all()


@pytest.mark.parametrize("theirs, ours", SCORE_MODS)
def test_score_mods(theirs, ours):
    q, k, v = RNG.standard_normal((3, 2, 3, N, 8))
    given = {"slopes": RNG.random(3), "softcap": 1.5, "table": RNG.standard_normal((3, 2 * N - 1)),
             "array": RNG.standard_normal((2, 3, N, N))}
    here = {"b": np.arange(2)[:, None, None, None], "h": np.arange(3)[:, None, None], "q_idx": i, "kv_idx": j,
            "score": q @ k.swapaxes(2, 3) / 8**0.5, "tanh": np.tanh}
    s = np.where(j <= i, eval(theirs, NAMES | given | here), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    options = eval(f"dict({ours})", NAMES | given)
    out = sa.attend(q, k, v, patterns.causal(N), **options)
    np.testing.assert_allclose(out, p @ v / p.sum(-1, keepdims=True), rtol=0, atol=1e-12)


def test_the_old_bias_of_natten():
    rpb, n_heads = RNG.standard_normal((3, 2 * K - 1, 2 * K - 1)), 3
    (code,) = re.findall(r"`(bias\.relative_2d\(rpb[^`]+)`", PAGE.read_text())
    q, k, v = RNG.standard_normal((3, 1, 3, N, 8))
    y, x = j // COLUMNS - i // COLUMNS + K - 1, j % COLUMNS - i % COLUMNS + K - 1
    inside = (y >= 0) & (y < 2 * K - 1) & (x >= 0) & (x < 2 * K - 1)
    array = np.where(inside, rpb[:, np.where(inside, y, 0), np.where(inside, x, 0)], 0)
    pattern = patterns.neighborhood((ROWS, COLUMNS), kernel_size=K)
    found, wanted = (sa.attend(q, k, v, pattern, bias=b)
                     for b in (eval(code, NAMES | {"rpb": rpb, "n_heads": n_heads}), array))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
