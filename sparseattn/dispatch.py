"""Which backend runs a call, or every backend's reason why not."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

# first to last choice; those BY_NAME take arrays of any library and never run unasked
BACKENDS: dict[str, tuple[str, ...]] = {"numpy": ("numba_cpu",), "cupy": ()}
BY_NAME = ("reference",)
LIBRARIES = {"numpy": "NumPy", "cupy": "CuPy"}
KNOWN = tuple(dict.fromkeys(name for names in (*BACKENDS.values(), BY_NAME) for name in names))


def choose(library, q, k, v, pattern, name=None):
    """The first backend for arrays of `library` that can run this call; with a `name` that one, or an error."""
    candidates = BACKENDS[library] if name is None else (name,)
    reasons = {}
    for candidate in candidates:
        backend = named(candidate)
        reason = _refuses(backend, library) or backend.why_not(q, k, v, pattern)
        if reason is None:
            return backend
        reasons[candidate] = reason
    raise NotImplementedError(_refusal(library, reasons))


def refusals(library, q, k, v, pattern) -> dict[str, str]:
    """The reason of every backend that cannot run this call."""
    reasons = {name: _refuses(named(name), library) or named(name).why_not(q, k, v, pattern) for name in KNOWN}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def named(name):
    """The backend module of this name, imported on first use."""
    if not isinstance(name, str) or name not in KNOWN:
        raise ValueError(f"backend is {name!r}; expected None or one of {', '.join(map(repr, KNOWN))}")
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


def _refuses(backend, library):
    """Why a backend does not take the arrays of a library; None where it does."""
    if backend.NAME in BACKENDS[library] + BY_NAME:
        return None
    return f"it does not take {LIBRARIES[library]} arrays; move q, k and v to the library it runs on"


def _refusal(library, reasons):
    if not reasons:
        return (f"no {LIBRARIES[library]} backend is installed in this version; move q, k and v to NumPy, or ask for "
                f"backend='reference', which is dense")
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"no backend can run this call ({listed}); backend='reference' takes any call, densely"
