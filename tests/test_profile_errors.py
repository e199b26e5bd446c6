"""Calls that profile refuses, before it measures anything."""

import numpy as np
import pytest
from test_profile import inputs

import sparseattn as sa
from sparseattn import patterns

Q, K, V = inputs((2, 2, 40, 8), 1, 40, dtype=np.float32)
BAD = np.array([[1.5]])

REFUSED = {
    "one axis": ({"q": np.zeros(3, np.float32)}, ValueError, "q has 1 axes"),
    "a list": ({"q": [[1.0]]}, TypeError, "q is a list; expected a NumPy or CuPy array"),
    "integers": ({"q": Q.astype(int), "k": K.astype(int)}, TypeError, "expected float16, bfloat16, float32 or float64"),
    "other head_dim": ({"k": K[..., :4]}, ValueError, "q has head_dim 8 but k has 4"),
    "no keys": ({"k": K[:, :, :0]}, ValueError, "expected at least one query, key and head"),
    "causal": ({"causal": 1}, TypeError, "causal is 1; expected True or False"),
    "scale": ({"scale": np.inf}, ValueError, "expected a finite number"),
    "rows": ({"rows": "all"}, TypeError, "rows is 'all'; expected None, how many queries"),
    "no rows": ({"rows": 0}, ValueError, "expected at least 1 query to look at"),
    "an empty list of rows": ({"rows": np.zeros(0, int)}, ValueError, "rows is empty"),
    "rows that are not there": ({"rows": [3, 40]}, ValueError, "rows go from 3 to 40; expected 0 to 39"),
    "rows twice": ({"rows": [3, 3]}, ValueError, "rows names a query twice"),
    "rows of fractions": ({"rows": [0.5]}, TypeError, "expected a list of positions"),
    "masses": ({"masses": (0.5, 1.5)}, ValueError, "masses is .*; expected rising numbers above 0 and up to 1"),
    "falling quantiles": ({"quantiles": (0.9, 0.5)}, ValueError, "quantiles is .*; expected rising numbers"),
    "one mass": ({"masses": 0.5}, ValueError, "masses is 0.5; expected a list of numbers"),
    "blocks": ({"block_sizes": (0,)}, ValueError, "block_sizes is .*; expected whole numbers"),
    "valid": ({"valid": np.ones((2, 39), bool)}, ValueError, r"valid is an array of bool with shape \(2, 39\)"),
    "shape": ({"shape": (5, 9)}, ValueError, "has 45 tokens but there are 40 queries"),
    "no shape": ({"shape": (5, 0)}, ValueError, "expected the lengths of the axes of the grid"),
    "targets": ({"targets": np.full(40, 40)}, ValueError, "targets go from 40 to 40"),
    "other targets": ({"targets": np.zeros(7, int)}, ValueError, r"targets has shape \(7,\); expected \(40,\)"),
    "real targets": ({"targets": np.zeros(40)}, TypeError, "targets is an array of float64"),
    "names": ({"names": ("a",)}, ValueError, "names has 1 entries but q has 2 heads"),
    "a candidate": ({"candidates": [3]}, TypeError, "candidate 'pattern 0' is a int; expected a Pattern"),
    "equal names": ({"candidates": [("a", patterns.dense(40)), ("a", patterns.dense(40))]}, ValueError,
                    "two candidates are named 'a'"),
    "a pattern of other tokens": ({"candidates": [patterns.dense(39)]}, ValueError, "'pattern 0' is a pattern for"),
    "a pattern of other heads": ({"candidates": [patterns.random_blocks(40, per_row=1, n_heads=3)]}, ValueError,
                                 "whose heads do not fit"),
    "no pattern": ({"candidates": {"own": lambda q, k: None}}, TypeError, "'own' gave a NoneType; expected a Pattern"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, error, words = REFUSED[name]
    given = {"q": Q, "k": K, "v": V, "candidates": []} | options
    if "k" in options and "v" not in options:
        given["v"] = None
    with pytest.raises(error, match=words):
        sa.profile(given.pop("q"), given.pop("k"), given.pop("v"), **given)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(which, value):
    given = [x.copy() for x in (Q, K, V)]
    given[which][1, 0, 17, 3] = value
    with pytest.raises(ValueError, match=f"{'qkv'[which]} holds NaN or infinity at batch item 1, head 0, token 17"):
        sa.profile(*given, candidates=[])
    valid = np.arange(40) != 17
    assert np.isfinite(sa.profile(*given, candidates=[], valid=valid).entropy).all()


def test_scores_beyond_float32():
    with pytest.raises(ValueError, match="scores of batch item 0, head 0 are beyond float32"):
        sa.profile(Q * np.float32(1e25), K * np.float32(1e25), candidates=[])
    assert np.isfinite(sa.profile(Q.astype(float) * 1e25, K.astype(float) * 1e25, candidates=[]).entropy).all()
