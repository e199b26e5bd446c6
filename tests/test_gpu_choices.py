"""Patterns chosen from CuPy's arrays: the tests of content patterns run once more, their arrays taken to the GPU and
their patterns back. Skipped, with the reason, where there is no CuPy or no device."""

# ruff: noqa: F401
# The imported tests are collected here once more; a fixture stands between them and the families.

import functools

import numpy as np
import pytest

from devices import cupy_or_skip, moved
from sparseattn import Pattern, patterns, variants
from test_content_clusters import test_rule as test_rule_of_clusters
from test_content_clusters import test_ties_go_to_the_lower_index_and_nan_is_never_taken
from test_content_lsh import test_new_queries_over_a_cache
from test_content_lsh import test_rule as test_rule_of_hash_rounds
from test_content_prefill import test_axes_and_dtypes as test_axes_and_dtypes_of_estimators
from test_content_prefill import (
    test_choice,
    test_everything_is_plain_causal_attention,
    test_keys_that_are_no_numbers_hold_no_mass,
    test_more_is_a_superset,
    test_no_queries,
    test_ties_go_to_the_lower_index,
)
from test_content_selection import (
    test_an_infinite_score_is_the_best,
    test_dtypes_and_axes,
    test_hardly_any_tokens,
    test_of_equal_keys_the_first_is_chosen,
    test_rules,
    test_tiles_are_speed_only,
    test_unfit_scores_are_never_chosen,
)
from test_routing import test_a_mean_without_tokens_stays, test_means_move_towards_their_tokens

CHOICES = ("block_top_k", "clusters", "flex_prefill", "from_block_scores", "indexer_top_k", "lsh", "moba",
           "nsa_selection", "quest", "sparge", "top_k", "vertical_slash", "xattention")


@pytest.fixture(autouse=True)
def chosen_there(monkeypatch):
    """As long as a test runs, families and `update_means` take NumPy's arrays to the GPU and their results back."""
    cupy_or_skip()
    for where, name in [*((patterns, name) for name in CHOICES), (variants, "update_means")]:
        monkeypatch.setattr(where, name, there_and_back(getattr(where, name)))


def there_and_back(function):
    @functools.wraps(function)
    def run(*arguments, **options):
        result = function(*moved(arguments), **moved(options))
        if not isinstance(result, Pattern):
            return result.get()
        assert result.device.startswith("cuda") or not result.parts
        return result.to("cpu")

    return run


def test_masks_and_positions_of_either_library():
    """Builders that no q tells a device copy such arrays to the CPU."""
    valid = np.arange(40).reshape(2, 20) % 7 > 0
    sentence = np.arange(20) // 5
    for build, x in ((patterns.padding, valid), (lambda x: patterns.global_tokens(20, x), valid),
                     (lambda x: patterns.longformer(20, window=4, global_tokens=x), np.array([3, 9])),
                     (patterns.documents, np.array([8, 12])), (lambda x: patterns.prefix_lm(20, x), np.array([4, 9])),
                     (lambda x: patterns.etc(20, 4, radius=3, sentence=x, hard=True).long, sentence)):
        assert build(moved(x)) == build(x)


def test_a_valid_of_cupy_needs_a_q_of_cupy(monkeypatch):
    monkeypatch.undo()
    q, valid = np.random.default_rng(0).standard_normal((1, 1, 8, 4), np.float32), np.arange(8) != 3
    options = {"n_buckets": 2, "n_hashes": 1, "chunk_length": 4}
    with pytest.raises(TypeError, match=r"valid is a cupy array but the tokens are numpy arrays; give valid.get\(\)"):
        patterns.lsh(q, valid=moved(valid), **options)
    with pytest.raises(TypeError, match="q is a numpy array but k a cupy array; move them to one"):
        patterns.top_k(q, moved(q), n_selected=2)
    here = patterns.lsh(q, valid=valid, **options)
    for mask in (valid, moved(valid)):
        assert patterns.lsh(moved(q), valid=mask, **options).to("cpu") == here


def test_the_gpu_of_q_chooses():
    cupy = cupy_or_skip()
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU; this needs two")
    q = np.random.default_rng(0).standard_normal((1, 2, 90, 8), np.float32)
    with cupy.cuda.Device(1):
        there = moved(q)
    pattern = patterns.moba.__wrapped__(there, there, chunk_size=16, top_k=2)
    assert pattern.device == "cuda:1" and pattern.to("cpu") == patterns.moba.__wrapped__(q, q, chunk_size=16, top_k=2)
    listed = patterns.top_k(there, there, n_selected=5).prepare()
    assert listed.device == listed.T.device == "cuda:1" and listed.T.to("cpu") == listed.to("cpu").T
