"""What attend would do with a call, and what it would cost, without doing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparseattn import checks, dispatch


@dataclass(frozen=True, repr=False)
class Explanation:
    """What a call would run, and its predicted cost.

    Attributes
    ----------
    backend : str
        Name of the backend.
    backward : bool
        Whether the call is the gradient.
    parts : tuple
        One entry a part of the pattern with its `kernel`, `block_size`, `order`, `n_blocks`, `stored_pairs` (in the
        blocks), `kept_pairs` (attended), `flops`, `bytes` and `seconds` (of one thread). Empty for a backend without
        parts.
    flops, bytes : int
        Of the call: floating-point operations, and bytes of inputs and results.
    seconds : float or None
        Predicted time on `n_threads` threads; None where the backend has no model of it.
    n_threads : int or None
        Threads that the call may use; None where the backend does not say.
    dense_flops : int
        What the same call takes without sparsity.
    refused : dict of str to str
        Why not each of the other backends.
    """

    backend: str
    backward: bool
    parts: tuple[Any, ...]
    flops: int
    bytes: int
    seconds: float | None
    n_threads: int | None
    dense_flops: int
    refused: dict[str, str]

    def __repr__(self):
        return "\n".join([self._summary(), *map(_part_line, self.parts),
                          *(f"  not {name}: {reason}" for name, reason in self.refused.items())])

    def _summary(self):
        time = "" if self.seconds is None else f", about {_scaled(self.seconds, 's')} on {_threads(self.n_threads)}"
        share = f" ({self.flops / self.dense_flops:.1%} of dense)" if self.dense_flops else ""
        return (f"{self.backend}, {'backward' if self.backward else 'forward'}: {_scaled(self.flops, 'FLOP')}{share}, "
                f"{_scaled(self.bytes, 'B')}{time}")


def explain(q, k, v, pattern, *, backward=False, scale=None, bias=None, softcap=None, sinks=None, dropout=0.0,
            seed=None, return_lse=False, out=None, backend=None):
    """What `attend` would do with this call: backend, kernels, tiles, cost; and why not the other backends.

    Parameters
    ----------
    q, k, v : array
        As in `attend`; only their shapes and dtypes matter.
    pattern : Pattern
        As in `attend`.
    backward : bool
        Explain `attend_backward` instead.
    scale, bias, softcap, sinks, dropout, seed, return_lse, out, backend : optional
        As in `attend`; refused where `attend` refuses them. A bias that counts pairs is in the cost, the arithmetic of
        other options is not.

    Returns
    -------
    Explanation
        A record whose repr is made to be read.

    Notes
    -----
    On the CPU the predicted time is a sum over the parts of the pattern: so many nanoseconds for each computed pair,
    for each query, and for each key that is gathered, growing with head_dim, and a constant for the call. These rates
    are fitted to measurements of all families; two small calls, run once in a process, say how fast this machine is
    beside the one of the fit. `benchmarks/cost_model.py` compares predictions with measurements.
    """
    call = checks.check_options(checks.check_call(q, k, v, pattern, scale), bias, softcap, sinks, dropout, seed)
    if out is not None:
        checks.check_out(out, call)
    arrays = call.q, call.k, call.v, call.pattern
    chosen = dispatch.choose(call.library, *arrays, backend)
    cost = chosen.estimate(*arrays, backward=backward)
    others = {name: _refusal(name, chosen, backend, call.library, arrays)
              for name in dispatch.KNOWN if name != chosen.NAME}
    return Explanation(chosen.NAME, backward, cost.parts, cost.flops, cost.bytes, cost.seconds, cost.n_threads,
                       _dense_flops(call, backward), others)


def _refusal(name, chosen, asked_for, library, arrays):
    """Why `name` does not run a call that `chosen` runs."""
    reason = dispatch.refusal(name, library, *arrays)
    if reason is not None:
        return reason
    if asked_for is not None:
        return f"{asked_for} was asked for by name"
    return "runs only when asked for by name" if name in dispatch.BY_NAME else f"{chosen.NAME} comes before it"


def _dense_flops(call, backward):
    """Forward two products a pair, backward three along the keys' head_dim and two along the values'."""
    (batch, n_heads, n_queries, qk_dim), n_keys, v_dim = call.q.shape, call.k.shape[2], call.v.shape[3]
    return 2 * batch * n_heads * n_queries * n_keys * (3 * qk_dim + 2 * v_dim if backward else qk_dim + v_dim)


def _part_line(part):
    useful = f" ({part.kept_pairs / part.stored_pairs:.0%})" if part.stored_pairs else ""
    return (f"  {part.kernel}: {part.n_blocks} blocks of {part.block_size[0]} x {part.block_size[1]}, {part.order}; "
            f"{part.kept_pairs:,} of {part.stored_pairs:,} pairs attended{useful}")


def _threads(n):
    return "1 thread" if n == 1 else f"{n} threads"


def _scaled(x, unit):
    """A quantity with three digits and a prefix: 12.3 ms, 4.56 GFLOP."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "u")):
        if abs(x) >= factor:
            return f"{x / factor:.3g} {prefix}{unit}"
    return f"{x:.3g} {unit}"
