"""Work that falls into pieces of its own, on several threads. Matrix products stay outside: a library shares them."""


def for_each(work, items):
    """Call ``work(item)`` for each item, on the threads that a call may use."""
    # one of two imports against the direction of the layers: how many threads there are is said in one place
    from sparseattn.kernels.numba_cpu.threads import n_threads, run

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
