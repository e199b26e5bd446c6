"""The workloads by name. Each is made when its turn comes: arrays of one at a time."""

from functools import partial

from comparison.workloads.blocks import random_blocks
from comparison.workloads.calls import growing_cache, small_call
from comparison.workloads.causal import causal
from comparison.workloads.decode import decode
from comparison.workloads.options import causal_options, window_options
from comparison.workloads.random_keys import random_keys
from comparison.workloads.scattered import scattered
from comparison.workloads.storage import causal_storage, window_storage
from comparison.workloads.threads import two_threads
from comparison.workloads.window import long_window, short_window

WORKLOADS = {
    "causal-64": partial(causal, head_dim=64),
    "causal-128": partial(causal, head_dim=128),
    "window": long_window,
    "window-short": short_window,
    "blocks": random_blocks,
    "scattered": scattered,
    "storage-causal": causal_storage,
    "storage-window": window_storage,
    "decode-64": partial(decode, head_dim=64),
    "decode-128": partial(decode, head_dim=128),
    "random-keys": random_keys,
    "options-causal": causal_options,
    "options-window": window_options,
    "threads": two_threads,
    "small-call": small_call,
    "growing-cache": growing_cache,
}
