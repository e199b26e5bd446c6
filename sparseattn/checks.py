"""The checks of a call: every rule once, before anything is computed, in words that say how to mend it."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np

from sparseattn.counts import Counts
from sparseattn.options import PLAIN, Options
from sparseattn.pattern import Pattern
from sparseattn.terms import Bias, Dense
from sparseattn.xp import compute_dtype, library, namespace

Array = Any

_FLOAT32_MAX, _FLOAT32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_MOST_KINDS = 64  # of calls that a pattern remembers
_LAYOUT = "(batch, n_heads, n_tokens, head_dim), (n_heads, n_tokens, head_dim) or (n_tokens, head_dim)"


class Call(NamedTuple):
    """A checked call: 4-D views of q, k, v, the pattern to run over, the scale as a float, the arrays' library, the
    number of axes of q, the options as backends take them, and what the bias of those was bound from."""

    q: Array
    k: Array
    v: Array
    pattern: Pattern
    scale: float
    library: str
    ndim: int
    options: Options = PLAIN
    bias: Bias | None = None

    @property
    def lse_dtype(self):
        return compute_dtype(self.q.dtype)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.q.shape[:3] + self.v.shape[3:]

    @property
    def lse_shape(self) -> tuple[int, ...]:
        return self.q.shape[:3]


def check_call(q, k, v, pattern, scale) -> Call:
    """The call of q, k, v (2-D to 4-D) over `pattern`, or the error that says what is wrong with it."""
    lib, ndim = _check_arrays(q, k, v, pattern)
    if ndim < 4:
        q, k, v = (batched(x) for x in (q, k, v))
    return Call(q, k, v, pattern, _checked_scale(scale, q), lib, ndim)


def _check_arrays(q, k, v, pattern):
    """(library, axes of q) of arrays that fit together and to the pattern; it remembers those that did."""
    if pattern.__class__ is not Pattern:
        return _compare_arrays(q, k, v, pattern)
    kind = [(x.__class__, getattr(x, "shape", None), getattr(x, "dtype", None)) for x in (q, k, v)]
    if q.__class__ is not np.ndarray:
        kind += [getattr(getattr(x, "data", None), "device_id", None) for x in (q, k, v)]
    fitting, kind = pattern.memo.get("calls that fit", dict), tuple(kind)
    found = fitting.get(kind)
    if found is None:
        found = _compare_arrays(q, k, v, pattern)
        if len(fitting) >= _MOST_KINDS:
            fitting.clear()
        fitting[kind] = found
    return found


def _compare_arrays(q, k, v, pattern):
    lib = _check_library(q, k, v)
    _check_dtypes(q, k, v)
    ndim = _check_axes(q, k, v)
    q, k, v = (batched(x) for x in (q, k, v))
    _check_shapes(q.shape, k.shape, v.shape)
    if lib == "cupy":
        _check_devices(q, k, v)
    _check_pattern(pattern, q.shape, k.shape, lib, q.device if lib == "cupy" else None)
    return lib, ndim


def check_options(call: Call, bias, softcap, sinks, dropout, seed) -> Call:
    """The call with its options, or the error that says what is wrong with them."""
    plain = bias is None and softcap is None and sinks is None and seed is None
    if plain and dropout.__class__ is float and dropout == 0.0:
        return call
    dropout, seed = _checked_dropout(dropout, seed)
    softcap, sinks = _checked_softcap(softcap, call.q), _checked_sinks(sinks, call)
    pattern, term = call.pattern, None
    if isinstance(bias, Counts):
        q, k = call.q.shape, call.k.shape
        pattern, bias = bias.of(pattern, q[0], (1, k[1], q[1])), None
    elif bias is not None:
        bias = _checked_bias(bias)
        term = bias.bind(call.q, call.k, call.ndim)
    return call._replace(pattern=pattern, options=Options(softcap, term, sinks, dropout, seed), bias=bias)


def check_out(out, call: Call):
    """The 4-D view of the array that `out=` names, fit to be written into."""
    view = check_like("out", out, call.out_shape, call.q.dtype, call)
    if call.library != "numpy":
        return view
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writeable array, or out=None for a new one")
    if any(step == 0 and size > 1 for step, size in zip(out.strides, out.shape)):
        raise ValueError("out repeats elements (a stride of 0, as np.broadcast_to gives); pass out.copy()")
    for name, x in (("q", call.q), ("k", call.k), ("v", call.v)):
        if np.may_share_memory(out, x) and np.shares_memory(out, x):
            raise ValueError(f"out overlaps {name}, which is read while out is written; pass an array of its own")
    return view


def check_like(name, x, shape, dtype, call: Call):
    """The 4-D (3-D for an lse) view of `x`, which must have this 4-D (3-D) `shape` less the axes that q lacks."""
    if library(x) != call.library:
        raise TypeError(f"{name} is {_described(x)}; expected {_articled(call.library)} array like q{_cure(name, x)}")
    if x.dtype != dtype:
        raise TypeError(f"{name} has dtype {x.dtype}; expected {dtype}: {name}.astype({_spelled(dtype)})")
    expected = shape[4 - call.ndim:]
    if x.shape != expected:
        raise ValueError(f"{name} has shape {x.shape}; expected {expected}, one {_row(name)} for each query of q")
    return x[(None,) * (4 - call.ndim)]


def check_parts(parts) -> list[tuple[Array, Array]]:
    """The (out, lse) pairs of a merge as a list, fit to be added."""
    parts = list(parts)
    if not parts:
        raise ValueError("merge got no parts; give it at least one (out, lse)")
    for i, part in enumerate(parts):
        if not isinstance(part, (tuple, list)) or len(part) != 2:
            raise TypeError(f"part {i} is {_described(part)}; expected a list of pairs: "
                            f"merge([(out1, lse1), (out2, lse2)])")
        _check_part(i, *part, *parts[0])
    return parts


def _check_part(i, out, lse, first_out, first_lse):
    for name, x, like in (("out", out, first_out), ("lse", lse, first_lse)):
        if library(x) is None or library(x) != library(first_out):
            raise TypeError(f"{name} of part {i} is {_described(x)}; expected a NumPy or CuPy array, of one library in "
                            f"all parts")
        if x.dtype != like.dtype:
            raise TypeError(f"{name} of part {i} has dtype {x.dtype} but that of part 0 {like.dtype}; compute all "
                            f"parts in one dtype")
        if x.shape != like.shape:
            raise ValueError(f"{name} of part {i} has shape {x.shape} but that of part 0 {like.shape}; all parts must "
                             f"be about the same queries")
    wide = compute_dtype(out.dtype)
    if wide is None:
        raise TypeError(f"out of part {i} has dtype {out.dtype}; expected float16, bfloat16, float32 or float64")
    if lse.dtype != wide:
        raise TypeError(f"lse of part {i} has dtype {lse.dtype} beside out in {out.dtype}; expected {wide}: "
                        f"lse.astype(np.{wide})")
    if out.ndim < 2 or lse.shape != out.shape[:-1]:
        raise ValueError(f"part {i} has out {out.shape} and lse {lse.shape}; expected (..., n_queries, head_dim) and "
                         f"(..., n_queries)")


def batched(x):
    """x (2-D to 4-D) as (batch, n_heads, n_tokens, head_dim)."""
    ndim = x.ndim
    return x if ndim == 4 else x[None] if ndim == 3 else x[None, None]


def _check_library(q, k, v):
    lib = library(q)
    if lib is not None and library(k) == lib and library(v) == lib:
        return lib
    for name, x in (("q", q), ("k", k), ("v", v)):
        if library(x) is None:
            raise TypeError(f"{name} is {_described(x)}; expected a NumPy or CuPy array{_cure(name, x)}")
    held = ", ".join(f"{name} {library(x)}" for name, x in (("q", q), ("k", k), ("v", v)))
    raise TypeError(f"q, k and v are arrays of different libraries ({held}); move them to one: cupy.asarray or "
                    f"cupy.asnumpy")


def _check_devices(q, k, v):
    for name, x in (("k", k), ("v", v)):
        if x.device != q.device:
            raise ValueError(f"q is on GPU {q.device.id} but {name} on GPU {x.device.id}; move them to one device")


def _check_dtypes(q, k, v):
    dtype = q.dtype
    if compute_dtype(dtype) is not None and k.dtype == dtype and v.dtype == dtype:
        return
    for name, x in (("q", q), ("k", k), ("v", v)):
        if compute_dtype(x.dtype) is None:
            raise TypeError(f"{name} has dtype {x.dtype}; expected float16, bfloat16, float32 or float64: "
                            f"{name}.astype(np.float32)")
    raise TypeError(f"q is {dtype}, k {k.dtype} and v {v.dtype}; all three must have one dtype: k.astype(q.dtype)")


def _check_axes(q, k, v):
    ndim = q.ndim
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not 2 <= x.ndim <= 4:
            raise ValueError(f"{name} has {x.ndim} axes, shape {x.shape}; expected {_LAYOUT}")
        if x.ndim != ndim:
            raise ValueError(f"q has {ndim} axes but {name} has {x.ndim}; give both the same axes, size 1 where there "
                             f"is one head or batch item: {'q' if x.ndim > ndim else name}[None]")
    return ndim


def _check_shapes(q, k, v):
    (batch, n_heads, _, head_dim), n_kv_heads = q, k[1]
    for name, shape in (("k", k), ("v", v)):
        if shape[0] != batch:
            raise ValueError(f"q has batch {batch} but {name} has {shape[0]}; give {name} the batch of q "
                             f"(np.broadcast_to repeats it without a copy)")
    if k[3] != head_dim:
        raise ValueError(f"q has head_dim {head_dim} but k has {k[3]}; project both to one size (v alone may differ)")
    if head_dim < 1 or v[3] < 1:
        raise ValueError(f"head_dim is {head_dim} in q and k, {v[3]} in v; expected at least 1")
    if v[2] != k[2]:
        raise ValueError(f"k has {k[2]} tokens but v has {v[2]}; each key needs one value")
    if v[1] != n_kv_heads:
        raise ValueError(f"k has {n_kv_heads} heads but v has {v[1]}; each key head needs one value head")
    if n_heads % n_kv_heads if n_kv_heads else n_heads:
        raise ValueError(f"q has {n_heads} heads but k and v have {n_kv_heads}; n_heads must be a multiple of "
                         f"n_kv_heads, so that each key head serves as many query heads")


def _check_pattern(pattern, q, k, lib, q_device):
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern is {_described(pattern)}; expected a sparseattn.Pattern, which the functions in "
                        f"sparseattn.patterns and Pattern.from_mask, from_csr, from_scipy and from_blocks build")
    (batch, n_heads, n_queries, _), n_kv_heads, n_keys = q, k[1], k[2]
    if pattern.shape != (n_queries, n_keys):
        _refuse_sizes(pattern.shape, n_queries, n_keys)
    if pattern.n_heads not in (1, n_kv_heads, n_heads):
        raise ValueError(f"pattern has {pattern.n_heads} heads but q has {n_heads} and k {n_kv_heads}; build it for 1 "
                         f"head{''.join(f' or {n}' for n in sorted({n_kv_heads, n_heads} - {0, 1}))}")
    if pattern.batch not in (1, batch):
        raise ValueError(f"pattern has batch {pattern.batch} but q has {batch}; build it for 1 or {batch}, or slice "
                         f"it: pattern[:{batch}]")
    if pattern.parts:
        _check_pattern_device(pattern, lib, q_device)


def _refuse_sizes(shape, n_queries, n_keys):
    for wanted, got, name, x in ((shape[0], n_queries, "queries", "q"), (shape[1], n_keys, "keys", "k")):
        if wanted != got:
            raise ValueError(f"pattern is for {wanted} {name} but {x} has {got}; build it with n_{name}={got} or "
                             f"{'pad' if got < wanted else 'cut'} {x} to {wanted} tokens")


def _check_pattern_device(pattern, lib, device):
    """`device`: that of q, k and v where they are CuPy arrays."""
    held, here = pattern.device, "cpu" if lib == "numpy" else f"cuda:{device.id}"
    if held == here:
        return
    if held == "cpu" or here == "cpu":
        kinds = {"numpy": "cupy", "cupy": "numpy"}
        raise ValueError(f"pattern is held in {kinds[lib]} arrays but q, k and v are {lib} arrays; move it once with "
                         f"pattern.to({'cpu' if lib == 'numpy' else 'cuda'!r})")
    raise ValueError(f"pattern is on {held} but q on {here}; move it once with pattern.to(q.device)")


def _checked_scale(scale, q):
    if scale is None:
        return q.shape[3] ** -0.5
    if not _is_real(scale):
        raise TypeError(f"scale is {scale!r}; expected a number, or None for 1 / sqrt(head_dim)")
    scale = float(scale)
    if not math.isfinite(scale):
        raise ValueError(f"scale is {scale}; expected a finite number, or None for 1 / sqrt(head_dim)")
    if abs(scale) > _FLOAT32_MAX and compute_dtype(q.dtype) == np.float32:
        raise ValueError(f"scale is {scale}, beyond the float32 that {q.dtype} inputs are computed in; pass a smaller "
                         f"scale or float64 arrays")
    return scale


def _checked_bias(bias):
    if isinstance(bias, Bias):
        return bias
    if library(bias) is None:
        raise TypeError(f"bias is {_described(bias)}; expected an array or what a function in sparseattn.bias returns"
                        f"{_cure('bias', bias)}")
    return Dense(bias)


def _checked_softcap(softcap, q):
    if softcap is None:
        return 0.0
    if not _is_real(softcap):
        raise TypeError(f"softcap is {softcap!r}; expected a number, or None for no cap")
    softcap = float(softcap)
    if not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap}; expected a finite number > 0, or None for no cap")
    if not _FLOAT32_TINY <= softcap <= _FLOAT32_MAX and compute_dtype(q.dtype) == np.float32:
        raise ValueError(f"softcap is {softcap}, beyond the float32 that {q.dtype} inputs are computed in; pass "
                         f"another softcap or float64 arrays")
    return softcap


def _checked_sinks(sinks, call):
    """Sinks (n_heads,) as backends take them."""
    if sinks is None:
        return None
    n_heads, wide = call.q.shape[1], compute_dtype(call.q.dtype)
    if library(sinks) != call.library:
        raise TypeError(f"sinks is {_described(sinks)}; expected {_articled(call.library)} array like q"
                        f"{_cure('sinks', sinks)}")
    if sinks.dtype not in (call.q.dtype, wide):
        raise TypeError(f"sinks has dtype {sinks.dtype}; expected {wide}: sinks.astype(np.{wide})")
    if sinks.shape != (n_heads,):
        raise ValueError(f"sinks has shape {sinks.shape}; expected ({n_heads},), one logit for each head of q")
    return namespace(sinks).ascontiguousarray(sinks, wide)


def _checked_dropout(dropout, seed):
    """(dropout, seed) as backends take them."""
    if seed is not None and not _is_int(seed):
        raise TypeError(f"seed is {seed!r}; expected None or an int")
    if not _is_real(dropout):
        raise TypeError(f"dropout is {dropout!r}; expected a number, 0 <= dropout < 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; expected the share of pairs to drop, 0 <= dropout < 1")
    if dropout and seed is None:
        raise ValueError(f"dropout is {dropout} but seed is None; pass seed=, an int, another one for each call that "
                         f"shall drop other pairs")
    return (float(dropout), int(seed) % 2**64) if dropout else (0.0, 0)


def _is_real(x):
    return x.__class__ is float or (isinstance(x, numbers.Real) and not isinstance(x, (bool, np.bool_)))


def _is_int(x):
    return isinstance(x, numbers.Integral) and not isinstance(x, (bool, np.bool_))


def _described(x):
    if x is None:
        return "None"
    kind = type(x)
    return _articled(f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."))


def _articled(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _cure(name, x):
    """How to make an array of `x`, as the end of a sentence."""
    if isinstance(x, np.ma.MaskedArray):
        return f": pass {name}.filled(0) and say in the pattern which keys count (patterns.padding)"
    if type(x).__module__.partition(".")[0] == "torch":
        return f": {name}.detach().numpy(), or cupy.from_dlpack({name}) on a GPU"
    if library(x) is not None:
        return "; cupy.asarray or cupy.asnumpy moves it"
    return "" if x is None else f": np.asarray({name}, np.float32)"


def _spelled(dtype):
    return "q.dtype" if dtype.itemsize == 2 else f"np.{dtype}"


def _row(name):
    return "number" if "lse" in name else "row as wide as v's"
