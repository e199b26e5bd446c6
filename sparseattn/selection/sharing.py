"""Work that falls into pieces of its own, on several threads. Matrix products stay outside: a library shares them."""

from sparseattn.pool import n_threads, run


def for_each(work, items):
    """Call ``work(item)`` for each item, on the threads that a call may use."""
    left = list(items)[::-1]

    def worker(_):
        while True:
            try:
                item = left.pop()  # one at a time, whichever thread asks
            except IndexError:
                return
            work(item)

    if left:
        run(worker, min(n_threads(), len(left)))
