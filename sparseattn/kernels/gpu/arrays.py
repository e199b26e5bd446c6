"""Arrays as the kernels take them, and the constants that follow from them."""

from __future__ import annotations

from sparseattn.xp import address, namespace

VECTOR = 16  # bytes that a thread copies at once
FAR = 1 << 31  # bytes between rows that a kernel can count


def readable(x):
    """The array with unit stride along rows and less than 2 GB from row to row (else one copy)."""
    return x if _lies_well(x) else namespace(x).ascontiguousarray(x)


def writable(out):
    """Where kernels write: `out` itself if its rows lie as those that they read, else a new array."""
    return out if _lies_well(out) else namespace(out).empty(out.shape, out.dtype)


def _lies_well(x):
    return (x.strides[3] == x.itemsize or x.shape[3] <= 1) and -FAR < x.strides[2] < FAR


def constants_of(bits, bucket, *arrays):
    """The constants of a call's dtype and widths; WIDE: every row begins at a multiple of 16 bytes."""
    return {"HEAD_DIM": bucket, "BITS": bits, "FP16": int(arrays[0].dtype.name == "float16"),
            "WIDE": int(all(_is_wide(x) for x in arrays))}


def _is_wide(x):
    steps = [step for step, size in zip(x.strides[:3], x.shape[:3]) if size > 1]
    return not any(step % VECTOR for step in (*steps, address(x), x.shape[3] * x.itemsize))


def converter(x):
    """The function that moves a NumPy array to where x is."""
    return namespace(x).asarray
