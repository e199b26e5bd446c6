"""How many threads a call uses, and the pool they come from.

Numba's own thread layers are not used: one aborts the process when two Python threads enter it, another does not
survive a fork, and all add compile time. Kernels release the GIL and draw work items from a shared counter, so calling
one kernel from several threads of a plain pool is enough: any Python threads may call at once, and load balances.
"""

from __future__ import annotations

import contextlib
import contextvars
import operator
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_default: int | None = None
_here: contextvars.ContextVar[int | None] = contextvars.ContextVar("sparseattn_threads", default=None)


def _available() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _checked(n) -> int:
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"the number of threads is {n!r}, a {type(n).__name__}; give an int") from None
    if n < 1:
        raise ValueError(f"the number of threads is {n}; give 1 or more")
    return n


def n_threads() -> int:
    """The number of threads that a call made here may use."""
    return _here.get() or _default or _available()


def set_threads(n):
    """Let every later call use at most `n` threads; None: as many as there are CPUs for this process.

    Parameters
    ----------
    n : int or None
        Threads. Results have the same bits for any number.

    Raises
    ------
    TypeError
        If `n` is neither an int nor None.
    ValueError
        If `n` is below 1.
    """
    global _default
    _default = None if n is None else _checked(n)


@contextlib.contextmanager
def threads(n):
    """Let calls inside the `with` block use at most `n` threads. Other Python threads are not affected.

    Parameters
    ----------
    n : int
        Threads.

    Raises
    ------
    TypeError
        If `n` is not an int.
    ValueError
        If `n` is below 1.
    """
    token = _here.set(_checked(n))
    try:
        yield
    finally:
        _here.reset(token)


def run(worker, n):
    """Call `worker(0)`, ..., `worker(n - 1)` at once, the last of them here: one thread needs no pool."""
    others = [_executor(n - 1).submit(worker, i) for i in range(n - 1)] if n > 1 else []
    worker(n - 1)
    for other in others:
        # A worker that has not started yet (the pool is busy with another call) would find no work left.
        if not other.cancel():
            other.result()


def _executor(n):
    global _pool
    with _lock:
        if _pool is None or _pool._max_workers < n:
            _pool = ThreadPoolExecutor(n, thread_name_prefix="sparseattn")
        return _pool


def _forget():
    """A forked child inherits the pool but not its threads, and the lock in whatever state it was."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
