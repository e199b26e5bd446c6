"""Patterns moved between the memory of the CPU (NumPy) and of a GPU (CuPy)."""

from dataclasses import fields, replace

import numpy as np

from sparseattn.structure import Order


def move(pattern, device):
    """The pattern with its arrays on "cpu" or "cuda"; itself, where they are there already."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device is {device!r}; expected "cpu" or "cuda"')
    if device == device_of(pattern):
        return pattern
    convert = _to_numpy if device == "cpu" else _to_cupy()
    return replace(pattern, parts=tuple(_converted(p, convert) for p in pattern.parts))


def device_of(pattern):
    """Where the arrays of a pattern are: "cpu" or "cuda"."""
    on_gpu = any(hasattr(getattr(p, f.name), "__cuda_array_interface__") for p in pattern.parts for f in fields(p))
    return "cuda" if on_gpu else "cpu"


def _converted(record, convert):
    """A part or order with every array converted."""
    changes = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Order):
            changes[field.name] = _converted(value, convert)
        elif hasattr(value, "__array_interface__") or hasattr(value, "__cuda_array_interface__"):
            changes[field.name] = convert(value)
    return replace(record, **changes)


def _to_numpy(x):
    return x if isinstance(x, np.ndarray) else x.get()


def _to_cupy():
    try:
        import cupy
    except ImportError:
        raise ImportError("moving a pattern to a GPU needs CuPy; install it with: pip install 'sparseattn[cuda12]' or "
                          "'sparseattn[cuda13]'") from None
    return cupy.asarray
