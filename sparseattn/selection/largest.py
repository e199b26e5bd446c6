"""The largest scores of each row of a CuPy array, by the kernel in largest.cu."""

import functools
import importlib.resources

import numpy as np

from sparseattn.xp import namespace

THREADS = 256  # of a thread block, which takes a row


def text() -> str:
    """The kernel's text."""
    return (importlib.resources.files(__package__) / "largest.cu").read_text()


def of_rows(scores, n_selected, limits):
    """As `topk.top_of_rows`, of CuPy's scores. Nothing waits for the GPU."""
    xp, (n_rows, n_cols) = namespace(scores), scores.shape[-2:]
    chosen = xp.empty((*scores.shape[:-1], n_selected), np.int32)
    if not chosen.size or not n_cols:
        chosen.fill(-1)
        return chosen
    limits = xp.asarray(limits, np.int32)
    kernel = _kernel(xp, 8 * scores.itemsize, scores.device.id)
    kernel((chosen.size // n_selected,), (THREADS,), (xp.ascontiguousarray(scores), limits, np.int32(n_rows),
                                                     np.int32(n_cols), np.int32(n_selected), chosen))
    return chosen


@functools.cache
def _kernel(xp, bits, device):
    """The kernel on a GPU, on which the caller works."""
    return xp.RawModule(code=text(), options=("-std=c++17", f"-DSCORE_BITS={bits}")).get_function("largest")
