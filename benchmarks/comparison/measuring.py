"""Timing contestants in turns, after checking that they agree."""

from dataclasses import dataclass

import numpy as np

from comparison.contest import Missing, Workload
from suite import machine
from suite.turns import medians


@dataclass
class Result:
    workload: Workload
    seconds: dict[str, float]  # of one call; of a FLOP and of a byte for the machine's own two
    missing: dict[str, str]  # contestant: why it did not run
    differences: dict[str, float]  # contestant: largest difference to what it must equal


def run(workload, settings) -> Result:
    """Make, check and time every contestant of a workload, the machine's own rates among them."""
    jobs, missing, differences, results = {}, {}, {}, {}
    for contestant in workload.contestants:
        try:
            jobs[contestant.name] = job = contestant.make()
            results[contestant.name] = contestant.shown(job())
            _check(contestant, results, differences)
        except (Missing, NotImplementedError) as reason:  # the second: an option that no backend has
            jobs.pop(contestant.name, None)
            missing[contestant.name] = str(reason)
    del results
    product, flop = machine.matrix_product(settings.matrix)
    reading, n_bytes = machine.read(settings.n_read)
    seconds = medians({"matrix product": product, "read": reading, **jobs}, settings.repeats, settings.pause)
    seconds["matrix product"] /= flop
    seconds["read"] /= n_bytes
    for contestant in workload.contestants:
        if contestant.name in seconds:
            seconds[contestant.name] /= contestant.calls
    return Result(workload, seconds, missing, differences)


def _check(contestant, results, differences):
    """Compare with what the contestant must equal; Missing where it does not or where that is missing."""
    if contestant.like not in results:
        return
    got, expected = (x if isinstance(x, (tuple, list)) else (x,) for x in
                     (results[contestant.name], results[contestant.like]))
    largest = max(float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max())
                  for a, b in zip(got, expected))
    differences[contestant.name] = largest
    if not largest <= contestant.tolerance:  # NaN too
        raise Missing(f"its result differs from that of {contestant.like!r} by {largest:.1e}, more than "
                      f"{contestant.tolerance:.0e}: it was not timed")
