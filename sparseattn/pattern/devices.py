"""Patterns moved between the memory of the CPU (NumPy) and of a GPU (CuPy)."""

import functools
from dataclasses import fields, replace

from sparseattn.structure import Order, is_listed
from sparseattn.xp import at_home, current_gpu, mover


def named(device):
    """"cpu" or "cuda:N" for what `Pattern.to` takes."""
    if hasattr(device, "compute_capability"):  # that of a CuPy array
        return f"cuda:{device.id}"
    if device == "cuda":
        return f"cuda:{current_gpu()}"
    if device == "cpu" or (isinstance(device, str) and device.startswith("cuda:") and device[5:].isdecimal()):
        return device
    raise ValueError(f'device is {device!r}; expected "cpu", "cuda", "cuda:N" or the device of an array')


def move(pattern, device):
    """The pattern with its arrays on "cpu" or "cuda:N". A copy on a GPU keeps the one it was made from."""
    convert = mover(device)
    moved = replace(pattern, parts=tuple(_converted(p, convert) for p in pattern.parts))
    if pattern.memo.get("repeats", lambda: False):  # of `counts.repeating`
        moved.memo.get("repeats", lambda: True)
        moved.memo.get("tiles", lambda: moved.parts)
    if pattern.device == "cpu":
        moved.memo.get(("on", "cpu"), lambda: pattern)
        moved.memo.get("origin", lambda: pattern)
    return moved


def home(pattern):
    """The pattern where structures are made of it: itself on the CPU; of a copy on a GPU the one that it was made from,
    which is there already. What was made on a GPU stays there, if all its orders and numbers of heads are arrays
    there."""
    if pattern.device == "cpu" or all(is_listed(p) for p in pattern.parts):
        return pattern
    return pattern.memo.get("origin", lambda: pattern if all(map(_in_lists, pattern.parts)) else pattern.to("cpu"))


def _in_lists(part):
    return part.heads is None and not any(o is not None and o.is_affine for o in (part.q_order, part.k_order))


def working_on(pattern):
    """A context in which work goes to the GPU of a pattern, if it is on one."""
    return at_home(next((x for part in pattern.parts for x in _gpu_arrays(part)), None))


def where_made(make):
    """A function that makes a pattern of one other and numbers: where that is at `home`, else as `structural`."""
    elsewhere = structural(make)

    @functools.wraps(make)
    def run(pattern, *others):
        if home(pattern) is not pattern:
            return elsewhere(pattern, *others)
        with working_on(pattern):
            return make(pattern, *others)

    return run


def device_of(pattern):
    """Where the arrays of a pattern are."""
    return next((f"cuda:{array.device.id}" for part in pattern.parts for array in _gpu_arrays(part)), "cpu")


def structural(make):
    """A function that makes a pattern of others, alone or in a list: on the CPU, where structures are made.

    Patterns of a GPU are taken from there, which waits for it, and what is made goes back.
    """
    @functools.wraps(make)
    def run(*arguments):
        there = {pattern.device for pattern in _patterns(arguments)}
        if there <= {"cpu"}:
            return make(*arguments)
        if len(there) > 1:
            raise ValueError(f"patterns lie on {' and '.join(sorted(there))}; take them to one place first, as by "
                             f"pattern.to({min(there)!r})")
        return make(*map(_on_cpu, arguments)).to(*there)

    return run


def _patterns(arguments):
    """The patterns among arguments; those without parts are at home everywhere."""
    for x in arguments:
        if isinstance(x, (list, tuple)):
            yield from _patterns(x)
        elif getattr(x, "parts", ()):
            yield x


def _on_cpu(x):
    if isinstance(x, (list, tuple)):
        return type(x)(map(_on_cpu, x))
    return x.to("cpu") if hasattr(x, "parts") else x


def _gpu_arrays(record):
    """The arrays of a GPU that a part or order, or an order within it, holds."""
    for field in fields(record):
        value = getattr(record, field.name)
        if hasattr(value, "__cuda_array_interface__"):
            yield value
        elif isinstance(value, Order):
            yield from _gpu_arrays(value)


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
