"""The sum of attention along each axis of a grid, every axis with its own projections."""

from typing import Any, NamedTuple

from sparseattn import checks, patterns
from sparseattn.attention import vjp as attend_vjp
from sparseattn.patterns.positional.grids import axes_of, lengths
from sparseattn.xp import compute_dtype, device_of, on_its_device

Array = Any


class AxialSumGradients(NamedTuple):
    """Gradients of `axial_sum`: lists of one for each axis."""

    dqs: list[Array]
    dks: list[Array]
    dvs: list[Array]


@on_its_device
def axial_sum(qs, ks, vs, shape, *, causal_axes=(), scale=None, backend=None):
    """Attend along each axis of a grid with q, k, v of its own, and add the results.

    Parameters
    ----------
    qs, ks, vs : sequence of array, one for each axis
        As `attend` takes them, of the grid's tokens in raster order. All results have one shape and dtype.
    shape : tuple of int
        Lengths of the grid's axes.
    causal_axes : int or sequence of int
        Axes along which no token sees a later one.
    scale : float, optional
        Factor of the scores; None: 1 / sqrt(head_dim), of each axis.
    backend : str, optional
        As in `attend`.

    Returns
    -------
    out : array
        Sum over the axes, in the dtype of q.
    vjp : function
        ``vjp(dout)`` gives the named tuple (dqs, dks, dvs), lists of one gradient an axis.

    Raises
    ------
    TypeError, ValueError
        A type, dtype, shape or number of arrays does not fit; nothing was computed.

    Notes
    -----
    ``out = sum_a softmax(scale * qs[a] ks[a]^T over the pairs of axial(shape, a)) vs[a]``: a softmax for each axis, in
    each of which a token meets itself. The results, each in the dtype of q, are added in float32 (float64 for float64).
    A model with an output projection for each axis calls `attend` with `patterns.axial` for each of them instead.

    References
    ----------
    .. [1] Ho et al., Axial Attention in Multidimensional Transformers, arXiv:1912.12180.
    """
    shape = lengths(shape)
    for name, arrays in (("qs", qs), ("ks", ks), ("vs", vs)):
        _check_count(name, arrays, shape)
    causal_axes = axes_of(causal_axes, len(shape), "causal_axes")
    along = [patterns.axial(shape, axis, causal_axes=[axis] if axis in causal_axes else ()) for axis in range(len(qs))]
    along = [pattern.to(device_of(q)) for pattern, q in zip(along, qs)]
    _check_calls([checks.check_call(*call, scale) for call in zip(qs, ks, vs, along)])
    results = [attend_vjp(*call, scale=scale, backend=backend) for call in zip(qs, ks, vs, along)]
    out = sum((part for part, _ in results[1:]), results[0][0].astype(compute_dtype(results[0][0].dtype)))

    @on_its_device
    def vjp(dout):
        return AxialSumGradients(*(list(x) for x in zip(*(back(dout)[:3] for _, back in results))))

    return out.astype(results[0][0].dtype, copy=False), vjp


def _check_count(name, arrays, shape):
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{name} is a {type(arrays).__name__}; expected a list of arrays, one for each axis")
    if len(arrays) != len(shape):
        raise ValueError(f"{name} holds {len(arrays)} arrays but the grid has {len(shape)} axes; give one for each")


def _check_calls(calls):
    """Raise where results could not be added."""
    first = calls[0]
    for axis, call in enumerate(calls):
        if call.q.dtype != first.q.dtype:
            raise TypeError(f"qs[{axis}] has dtype {call.q.dtype} but qs[0] {first.q.dtype}; compute all axes in one "
                            "dtype")
        if (call.out_shape, call.ndim) != (first.out_shape, first.ndim):
            lead = 4 - first.ndim, 4 - call.ndim
            raise ValueError(f"the axes 0 and {axis} give results of shapes {first.out_shape[lead[0]:]} and "
                             f"{call.out_shape[lead[1]:]}, which cannot be added; use equal numbers of heads and "
                             "head_dim in v")
