"""Which backend runs a call, or every backend's reason why not."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

# first to last choice; those BY_NAME take arrays of any library and never run unasked
BACKENDS: dict[str, tuple[str, ...]] = {"numpy": ("numba_cpu",), "cupy": ("cupy_raw", "numba_cuda")}
BY_NAME = ("reference",)
LIBRARIES = {"numpy": "NumPy", "cupy": "CuPy"}
KNOWN = tuple(dict.fromkeys(name for names in (*BACKENDS.values(), BY_NAME) for name in names))


def choose(library, q, k, v, pattern, name=None):
    """The first backend for arrays of `library` that can run this call; with a `name` that one, or an error."""
    reasons = {}
    for candidate in BACKENDS[library] if name is None else (name,):
        reasons[candidate] = refusal(candidate, library, q, k, v, pattern)
        if reasons[candidate] is None:
            return named(candidate)
    raise NotImplementedError(_no_backend(library, reasons))


def refusal(name, library, q, k, v, pattern) -> str | None:
    """None where backend `name` can run this call, else the reason and the cure."""
    backend = named(name)
    if name not in BACKENDS[library] + BY_NAME:
        return f"it does not take {LIBRARIES[library]} arrays; move q, k and v to the library it runs on"
    return backend.why_not(q, k, v, pattern)


def named(name):
    """The backend module of this name, imported on first use."""
    if not isinstance(name, str) or name not in KNOWN:
        raise ValueError(f"backend is {name!r}; expected None or one of {', '.join(map(repr, KNOWN))}")
    return _imported(name)


@functools.cache
def _imported(name):
    """Kept: asking the import machinery again takes longer than choosing."""
    return importlib.import_module(f"sparseattn.kernels.{name}")


@dataclass(frozen=True, repr=False)
class Backend:
    """Whether a backend can be used on this machine.

    Attributes
    ----------
    name : str
        What ``attend(..., backend=name)`` takes.
    usable : bool
        Whether it runs here.
    reason, cure : str or None
        Why it does not, and what would change that.
    only_by_name : bool
        True for a backend that runs only when asked for by name.
    """

    name: str
    usable: bool
    reason: str | None
    cure: str | None
    only_by_name: bool

    def __repr__(self):
        if not self.usable:
            return f"<{self.name}: not usable: {'; '.join(filter(None, (self.reason, self.cure)))}>"
        return f"<{self.name}: usable{', only by name' if self.only_by_name else ''}>"


def backends() -> tuple[Backend, ...]:
    """What is usable on this machine, and for the rest the reason and the cure.

    Returns
    -------
    tuple of Backend
        In the order in which `attend` tries them.
    """
    return tuple(_record(name) for name in KNOWN)


def _record(name):
    reason, _, cure = (named(name).why_not(None, None, None, None) or "").partition("; ")
    return Backend(name, not reason, reason or None, cure or None, name in BY_NAME)


def _no_backend(library, reasons):
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"no backend can run this call ({listed}); backend='reference' takes any call, densely"
