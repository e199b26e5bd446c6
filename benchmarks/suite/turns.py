"""Timing several jobs in turns, so that what disturbs one disturbs all."""

import math
import statistics
import time

SHORT = 0.03  # seconds: a job below is called several times a turn


def medians(jobs, repeats, pause):
    """Median seconds of each job by name.

    BLAS and OpenMP threads spin for a while after a call and hold a core: the pause lets those of the last job go to
    sleep. Short jobs are then called once to wake their own.
    """
    calls = {name: _calls(job) for name, job in jobs.items()}
    times = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            time.sleep(pause)
            times[name].append(_seconds(job, calls[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def _calls(job):
    """Calls a turn, so that it lasts long enough; this is the warm-up too."""
    job()
    start = time.perf_counter()
    job()
    return math.ceil(SHORT / max(time.perf_counter() - start, 1e-6))


def _seconds(job, calls):
    if calls > 1:
        job()
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls
