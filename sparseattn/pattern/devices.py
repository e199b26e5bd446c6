"""Patterns moved between the memory of the CPU (NumPy) and of a GPU (CuPy)."""

from dataclasses import fields, replace

from sparseattn.structure import Order
from sparseattn.xp import converter


def move(pattern, device):
    """The pattern with its arrays on "cpu" or "cuda"."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f'device is {device!r}; expected "cpu" or "cuda"')
    return replace(pattern, parts=tuple(_converted(p, converter(device)) for p in pattern.parts))


def device_of(pattern):
    """Where the arrays of a pattern are: "cpu" or "cuda"."""
    return "cuda" if any(_on_gpu(part) for part in pattern.parts) else "cpu"


def _on_gpu(record):
    """Whether a part or order, or an order within it, holds an array of a GPU."""
    values = [getattr(record, field.name) for field in fields(record)]
    return any(hasattr(v, "__cuda_array_interface__") or (isinstance(v, Order) and _on_gpu(v)) for v in values)


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

