"""Bad arguments of builders, families and patterns: what was got, what was expected, how to mend it."""

import numpy as np
import pytest

from sparseattn import Pattern, patterns

CAUSAL = patterns.causal(8)

CASES = [
    (lambda: patterns.dense(-1), ValueError, r"n_queries is -1; expected 0 <= n_queries < 2\*\*31 tokens"),
    (lambda: patterns.dense(3.0), TypeError, "n_queries is float; expected a whole number of tokens"),
    (lambda: patterns.causal(4, True), TypeError, "n_keys is bool; expected a whole number"),
    (lambda: patterns.causal(4, offset=1.5), TypeError, "offset is an array of float64 with 0 axes"),
    (lambda: patterns.causal(4, offset=[[1]]), TypeError, "offset is an array of int64 with 2 axes"),
    (lambda: patterns.causal(4, block_size=0), ValueError, "block_size is 0; expected sides from 1 to 4096"),
    (lambda: patterns.causal(4, block_size="big"), TypeError, "block_size is 'big'; expected a whole number or"),
    (lambda: patterns.sliding_window(4, left=-1), ValueError, "left is -1; expected at least 0, or None for no limit"),
    (lambda: patterns.sliding_window(4, left=1, right=-2), ValueError, "right is -2"),
    (lambda: patterns.sliding_window(4, left=1.0), TypeError,
     "left is float; expected a whole number of tokens, or None"),
    (lambda: patterns.sliding_window(4, left=1, dilation=0), ValueError, "dilation is 0; expected at least 1"),
    (lambda: patterns.sliding_window(4, left=1, dilation=[1, 0]), ValueError, "dilation is 0; expected at least 1"),
    (lambda: patterns.block_local(4, block=0), ValueError, "block is 0; expected at least 1"),
    (lambda: patterns.block_local(4, block=2, back=-1), ValueError, "back is -1"),
    (lambda: patterns.block_local(4, block=2, exact=True, wrap=True), ValueError, "takes exact or wrap, not both"),
    (lambda: patterns.global_tokens(4, [4]), ValueError, "positions holds 4 to 4; expected tokens from 0 to 3"),
    (lambda: patterns.global_tokens(4, [0.5]), TypeError, "positions is an array of float64 with 1 axes"),
    (lambda: patterns.global_tokens(4, np.ones(3, bool)), ValueError,
     r"positions has shape \(3,\); expected bool \(4,\)"),
    (lambda: patterns.padding(np.ones((2, 4))), TypeError, "valid is an array of float64 with 2 axes; expected bool"),
    (lambda: patterns.padding(np.ones((2, 4), bool), np.ones((3, 4), bool)), ValueError,
     "valid has 2 batch items and query_valid 3"),
    (lambda: patterns.padding(np.ones((2, 4), bool), n_queries=5), ValueError,
     "n_queries is 5 but valid has only 4 tokens; give query_valid"),
    (lambda: patterns.padding(np.ones((2, 4), bool), np.ones((2, 3), bool), 4), ValueError,
     "query_valid is for 3 queries but n_queries is 4"),
    (lambda: patterns.documents([3, -1]), ValueError, "lengths holds -1; expected lengths of at least 0"),
    (lambda: patterns.documents([3.0]), TypeError, "lengths must be whole numbers"),
    (lambda: patterns.documents([3, 1], [4]), ValueError, r"lengths lists \[2\] documents and key_lengths \[1\]"),
    (lambda: patterns.documents([[3, 1], [2, 1]]), ValueError,
     r"lengths add up to \[3, 4\] tokens in different batch items"),
    (lambda: patterns.documents([3], window=0), ValueError, "window is 0; expected at least 1"),
    (lambda: patterns.strided(8, stride=0), ValueError, "stride is 0; expected at least 1"),
    (lambda: patterns.strided(8, stride=2, factor="row"), ValueError,
     "factor is 'row'; expected \"local\", \"column\" or None"),
    (lambda: patterns.bigbird(8, block_size=0), ValueError, "block_size is 0; expected at least 1"),
    (lambda: patterns.bigbird(8, n_window=2), ValueError, "n_window is 2; expected an odd number of blocks"),
    (lambda: patterns.bigbird(8, n_random=-1), ValueError, "n_random is -1; expected a whole number from 0"),
    (lambda: patterns.bigbird(8, plan="best"), ValueError,
     "plan is 'best'; expected \"uniform\", \"official\" or \"legacy\""),
    (lambda: patterns.bigbird(640, block_size=64, plan="official"), ValueError,
     "the official plan finds .* use plan='uniform'"),
    (lambda: patterns.bigbird(8192, plan="legacy"), ValueError,
     "the legacy plan is for at most max_length=4096 tokens"),
    (lambda: patterns.bigbird(512, rand_blocks=np.zeros((1, 3, 2), int)), ValueError,
     r"rand_blocks has shape \(1, 3, 2\); expected \(n_heads=1, n_rows - 2=6, n_random\)"),
    (lambda: patterns.bigbird(512, rand_blocks=np.full((1, 6, 2), 9)), ValueError,
     "rand_blocks holds 9 to 9; expected blocks"),
    (lambda: Pattern.from_ranges([0.5], [1], 4), TypeError, "starts has dtype float64; expected integers"),
    (lambda: Pattern.from_ranges([0, 1], [1], 4), ValueError, "starts are for 2 queries and stops for 1"),
    (lambda: Pattern.from_csr([0, 2], [1, 1], 4), ValueError,
     "key 1 stands twice in row 0; list each key of a query once"),
    (lambda: Pattern.from_csr([0, 1], [4], 4), ValueError, "indices holds key 4, but there are n_keys=4 keys"),
    (lambda: Pattern.from_csr([0, 3], [1, 2], 4), ValueError, r"indptr must rise from 0 to at most len\(indices\) = 2"),
    (lambda: Pattern.from_csr([2, 0], [1, 2], 4), ValueError, "indptr must rise"),
    (lambda: Pattern.from_csr([0, 1], [[1]], 4), ValueError, "indices has 2 axes; expected one"),
    (lambda: Pattern.from_scipy(np.ones((2, 2))), TypeError,
     "from_scipy takes a scipy.sparse matrix or array, got ndarray"),
    (lambda: Pattern.from_blocks(np.ones((2, 2)), block_size=4), TypeError, "layout has dtype float64; expected bool"),
    (lambda: Pattern.from_blocks(np.ones(2, bool), block_size=4), ValueError, "layout has 1 axes; expected 2 to 4"),
    (lambda: Pattern.from_blocks(np.ones((2, 2), bool), block_size=4, shape=(9, 8)), ValueError,
     "shape has n_queries 9, which takes 3 blocks of 4, but the layout has 2; give 5 to 8 tokens"),
    (lambda: Pattern.from_buckets([0.1], [1]), TypeError, "q_class has dtype float64; expected integers"),
    (lambda: Pattern.from_mask(np.ones((2, 2))), TypeError, "mask has dtype float64; expected bool"),
    (lambda: Pattern.from_mask(np.ones((2, 2), bool), (3, 2)), ValueError,
     r"mask is for \(2, 2\) .* but shape= says \(3, 2\)"),
    (lambda: Pattern.from_mask(lambda i, j: i >= j), ValueError, "from_mask of a function needs shape="),
    (lambda: Pattern.from_mask(lambda i, j: i - j, (2, 2)), TypeError,
     "the mask function must return booleans, got int64"),
    (lambda: Pattern.from_mask(lambda i, j: np.ones(3, bool), (2, 2)), ValueError,
     r"the mask function returned shape \(3,\)"),
    (lambda: Pattern.from_mask(lambda i, j: i >= j, (2,)), ValueError,
     r"shape is \(2,\); expected \(n_queries, n_keys\)"),
    (lambda: CAUSAL | patterns.causal(9), ValueError, r"shapes \(8, 8\) and \(9, 9\) differ"),
    (lambda: CAUSAL & np.ones((8, 8), bool), TypeError, "pattern & ndarray: both sides must be patterns"),
    (lambda: Pattern.per_head([CAUSAL, patterns.dense(8)]) - Pattern.per_head(
        [CAUSAL, CAUSAL, patterns.dense(8)]), ValueError,
     "n_heads 2 and 3 do not fit"),
    (lambda: CAUSAL[::-1], ValueError, "batch slice has step -1; a pattern's slices need a positive step"),
    (lambda: CAUSAL[:, :, 9], IndexError, "queries index 9 is out of range for a pattern with 8"),
    (lambda: CAUSAL[[0]], TypeError, "batch of a pattern are indexed by slices or whole numbers, got list"),
    (lambda: CAUSAL[0, 0, 0, 0, 0], IndexError, "at most four slices"),
    (lambda: CAUSAL[:, 1:1], ValueError, "heads slice 1:1 of 1 is empty"),
    (lambda: Pattern.concatenate([], 2), ValueError, "no patterns to put together"),
    (lambda: Pattern.concatenate([CAUSAL, 3], 2), TypeError, "expected patterns, got int"),
    (lambda: Pattern.concatenate([CAUSAL, patterns.causal(9)], 2), ValueError, r"patterns have \[8, 9\] keys"),
    (lambda: Pattern.concatenate([CAUSAL], 4), ValueError, "axis 4: expected 0"),
    (lambda: Pattern.per_head([patterns.causal(3), patterns.causal(4)]), ValueError, r"patterns have \[3, 4\] queries"),
    (lambda: CAUSAL.to("tpu"), ValueError, 'device is \'tpu\'; expected "cpu" or "cuda"'),
    (lambda: patterns.padding(np.ones((2, 4), bool)).to_scipy(), ValueError,
     "2 batch items and 1 heads, a SciPy matrix one of"),
]


@pytest.mark.parametrize(("call", "error", "words"), CASES)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_gpu_without_cupy_is_named():
    try:
        import cupy  # noqa: F401, TID251
    except ImportError:
        with pytest.raises(ImportError, match=r"need CuPy; install it with: pip install 'sparseattn\[cuda12\]'"):
            CAUSAL.to("cuda")
    else:
        pytest.skip("CuPy is installed")
