"""How full tiles are: the figure that each family's docstring states, for what it is stated."""

import inspect
import re

import numpy as np
import pytest

from sparseattn import patterns

STATED = [
    ("dense", "1", lambda: patterns.dense(4096)),
    ("causal", "0.98", lambda: patterns.causal(4096)), ("causal", "0.99", lambda: patterns.causal(16384)),
    ("sliding_window", "0.6", lambda: patterns.sliding_window(16384, left=64, right=63, dilation=4)),
    ("block_local", "1", lambda: patterns.block_local(4096, block=128)),
    ("block_local", "0.92", lambda: patterns.block_local(4096, block=128, causal=True)),
    ("attention_sinks", "0.89", lambda: patterns.attention_sinks(16384, n_sinks=4, recent=511)),
    ("prefix_lm", "0.98", lambda: patterns.prefix_lm(4096, 1024)),
    ("documents", "0.89", lambda: patterns.documents([1000] * 16)),
    ("documents", "0.54", lambda: patterns.documents([100] * 40, causal=True)),
    ("padding", "0.99", lambda: patterns.padding(np.arange(4096) < 3000)),
    ("strided", "0.79", lambda: patterns.strided(16384, stride=128)),
    ("fixed", "0.8", lambda: patterns.fixed(2048, stride=128, n_summary=32)),
    ("global_tokens", "0.99", lambda: patterns.global_tokens(16384, range(0, 16384, 256))),
    ("longformer", "0.94", lambda: patterns.longformer(16384, window=512, global_tokens=range(0, 16384, 256))),
    ("etc", "0.81", lambda: patterns.etc(16384, 512, radius=84).long),
    ("etc", "1", lambda: patterns.etc(16384, 512, radius=84).globals),
    ("random_blocks", "1", lambda: patterns.random_blocks(4096, per_row=3)),
    ("bigbird", "1", lambda: patterns.bigbird(4096)),
    ("deepspeed_layout", "1", lambda: patterns.deepspeed_layout("fixed", 4096)),
    ("axial", "0.99", lambda: patterns.axial((128, 128), [0, 1])),
    ("swin", "0.93", lambda: patterns.swin((128, 128), window=8, shift=4)),
    ("neighborhood", "0.66", lambda: patterns.neighborhood((64, 64), kernel_size=13)),
]


@pytest.mark.parametrize("family, figure, build", STATED)
def test_density_in_tiles_is_what_the_docstring_states(family, figure, build):
    notes = " ".join(inspect.getdoc(getattr(patterns, family)).split())
    stated = re.search(r"`density_in_tiles`.{1,450}", notes).group()
    assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d]|\.\d)", stated)
    assert build().density_in_tiles >= float(figure)


def test_every_family_from_sizes_states_it():
    from_sizes = {name for name in patterns.__all__ if ".positional." in getattr(patterns, name).__module__}
    assert {family for family, _, _ in STATED} == from_sizes
