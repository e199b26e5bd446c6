"""Single keys at random: no tile holds two of them, and each is a row of k and v read for one query."""

import numpy as np

import sparseattn as sa
from comparison import ours
from comparison.contest import Contestant, Workload, share, speedup, times_as_long
from comparison.peers import numpy_dense, scipy_csr, torch_sdpa
from suite import cases
from suite.cases import HEADS

HEAD_DIM = 64


def random_keys(settings):
    n, each = settings.n_tokens, settings.n_scattered
    q, k, v, dout = cases.inputs(n, head_dim=HEAD_DIM)
    pattern = sa.Pattern.from_csr(np.arange(n + 1) * each, _keys(n, each).ravel(), n)
    n_bytes = pattern.nnz * HEADS * 2 * HEAD_DIM * q.itemsize
    out, lse = sa.attend(q, k, v, pattern, return_lse=True)
    mask = np.ascontiguousarray(pattern.to_dense()[0, 0])
    forward = Contestant("forward", lambda: ours.forward(q, k, v, pattern), n_bytes=n_bytes)
    backward = Contestant("backward", lambda: lambda: sa.attend_backward(dout, q, k, v, out, lse, pattern)[:3])
    peers = [
        Contestant("scipy CSR", lambda: scipy_csr.forward(q, k, v, pattern), "forward", n_bytes=n_bytes, peer=True),
        Contestant("SDPA, mask", lambda: torch_sdpa.forward(q, k, v, mask=mask), "forward", n_bytes=n_bytes,
                   peer=True),
        Contestant("NumPy, dense", lambda: numpy_dense.forward(q, k, v, pattern), "forward", n_bytes=n_bytes,
                   peer=True),
    ]
    return Workload(f"{each} random keys a query, {n:,} tokens", [forward, backward, *peers], [
        share(forward, 0.45, 0.75),
        times_as_long("backward", "forward", "the forward", 3.0),
        *(speedup("forward", peer.name) for peer in peers),
    ])


def _keys(n, each):
    """Int (n, each): different keys for every query."""
    rng = np.random.default_rng(2)
    return np.stack([np.sort(rng.choice(n, each, replace=False)) for _ in range(n)])
