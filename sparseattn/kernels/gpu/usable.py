"""What both backends refuse, with reason and cure: machines without a GPU, arrays that their tiles do not hold."""

from __future__ import annotations

DTYPES = ("float16", "bfloat16", "float32")
WIDEST = 256  # head_dim


def why_no_gpu() -> str | None:
    """None where CuPy finds a GPU."""
    try:
        import cupy
    except ImportError:
        return "CuPy is not installed; pip install 'sparseattn[cuda12]' or 'sparseattn[cuda13]'"
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            return "CuPy finds no GPU; install one, or its driver"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy finds no GPU ({error}); install one, or its driver"
    return None


def why_not_arrays(q, v) -> str | None:
    """None for arrays of a checked call that the kernels take."""
    if q.dtype.itemsize > 4:  # of the dtypes of a checked call
        return f"q is {q.dtype}; convert q, k and v to one of {', '.join(DTYPES)}"
    if max(q.shape[3], v.shape[3]) > WIDEST:
        return f"head_dim is {q.shape[3]} in q and k, {v.shape[3]} in v; split them to at most {WIDEST} columns"
    return None
