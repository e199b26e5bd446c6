"""Every refusal of a call, by its words: what was got, what was expected, how to mend it."""

import re
import sys
import types

import numpy as np
import pytest
import scipy.sparse

import sparseattn as sa
from sparseattn import patterns

Q = np.ones((2, 4, 10, 8), np.float32)
K = np.ones((2, 2, 12, 8), np.float32)
OUT, LSE = Q, np.zeros((2, 4, 10), np.float32)
PATTERN = patterns.causal(10, 12)


class Tensor:
    """Stands in for torch.Tensor."""


Tensor.__module__, Tensor.__qualname__ = "torch", "Tensor"


def attend(q=Q, k=K, v=K, pattern=PATTERN, **options):
    return sa.attend(q, k, v, pattern, **options)


def backward(dout=OUT, out=OUT, lse=LSE, **options):
    return sa.attend_backward(dout, Q, K, K, out, lse, PATTERN, **options)


def refused(error, text, call, *arguments, **options):
    return pytest.param(error, text, call, arguments, options, id=text[:60])


INPUTS = [
    refused(TypeError, "q is a list; expected a NumPy or CuPy array: np.asarray(q, np.float32)", attend, [[1.0]]),
    refused(TypeError, "v is None; expected a NumPy or CuPy array", attend, v=None),
    refused(TypeError, "k is a torch.Tensor; expected a NumPy or CuPy array: k.detach().numpy(), or "
            "cupy.from_dlpack(k) on a GPU", attend, k=Tensor()),
    refused(TypeError, "q is a numpy.ma.MaskedArray; expected a NumPy or CuPy array: pass q.filled(0) and say in "
            "the pattern which keys count (patterns.padding)", attend, np.ma.masked_array(Q)),
    refused(TypeError, "q has dtype int64; expected float16, bfloat16, float32 or float64: q.astype(np.float32)",
            attend, Q.astype(np.int64)),
    refused(TypeError, "k has dtype complex64; expected", attend, k=K.astype(np.complex64)),
    refused(TypeError, "v has dtype object; expected", attend, v=K.astype(object)),
    refused(TypeError, "q has dtype bool; expected", attend, Q > 0),
    refused(TypeError, "q has dtype >f4; expected", attend, Q.astype(">f4")),
    refused(TypeError, "q is float32, k float64 and v float32; all three must have one dtype: k.astype(q.dtype)",
            attend, k=K.astype(np.float64)),
    refused(ValueError, "q has 1 axes, shape (8,); expected (batch, n_heads, n_tokens, head_dim), (n_heads, "
            "n_tokens, head_dim) or (n_tokens, head_dim)", attend, Q[0, 0, 0]),
    refused(ValueError, "k has 5 axes", attend, k=K[None]),
    refused(ValueError, "q has 4 axes but k has 3; give both the same axes, size 1 where there is one head or batch "
            "item: k[None]", attend, k=K[0]),
    refused(ValueError, "q has 3 axes but v has 4; give both the same axes, size 1 where there is one head or batch "
            "item: q[None]", attend, Q[0], K[0]),
    refused(ValueError, "q has batch 2 but k has 1; give k the batch of q (np.broadcast_to repeats it without a copy)",
            attend, k=K[:1]),
    refused(ValueError, "q has batch 2 but v has 1; give v the batch of q", attend, v=K[:1]),
    refused(ValueError, "q has head_dim 8 but k has 7; project both to one size (v alone may differ)", attend,
            k=K[..., :7]),
    refused(ValueError, "head_dim is 0 in q and k, 8 in v; expected at least 1", attend, Q[..., :0], K[..., :0]),
    refused(ValueError, "head_dim is 8 in q and k, 0 in v; expected at least 1", attend, v=K[..., :0]),
    refused(ValueError, "k has 12 tokens but v has 11; each key needs one value", attend, v=K[:, :, :11]),
    refused(ValueError, "k has 2 heads but v has 1; each key head needs one value head", attend, v=K[:, :1]),
    refused(ValueError, "q has 3 heads but k and v have 2; n_heads must be a multiple of n_kv_heads", attend, Q[:, :3]),
    refused(ValueError, "q has 4 heads but k and v have 0; n_heads must be a multiple", attend, k=K[:, :0], v=K[:, :0]),
]

PATTERNS = [
    refused(TypeError, "pattern is a numpy.ndarray; expected a sparseattn.Pattern, which the functions in "
            "sparseattn.patterns and Pattern.from_mask", attend, pattern=np.ones((10, 12), bool)),
    refused(TypeError, "pattern is None; expected a sparseattn.Pattern", attend, pattern=None),
    refused(ValueError, "pattern is for 12 keys but k has 11; build it with n_keys=11 or pad k to 12 tokens",
            attend, k=K[:, :, :11], v=K[:, :, :11]),
    refused(ValueError, "pattern is for 10 keys but k has 12; build it with n_keys=12 or cut k to 10 tokens",
            attend, pattern=patterns.causal(10)),
    refused(ValueError, "pattern is for 10 queries but q has 9; build it with n_queries=9 or pad q to 10 tokens",
            attend, Q[:, :, :9]),
    refused(ValueError, "pattern has 3 heads but q has 4 and k 2; build it for 1 head or 2 or 4",
            attend, pattern=patterns.sliding_window(10, 12, left=1, dilation=[1, 2, 3])),
    refused(ValueError, "pattern has batch 3 but q has 2; build it for 1 or 2, or slice it: pattern[:2]",
            attend, pattern=patterns.causal(10, 12, offset=[1, 2, 3])),
]

OPTIONS = [
    refused(TypeError, "scale is 'big'; expected a number, or None for 1 / sqrt(head_dim)", attend, scale="big"),
    refused(TypeError, "scale is True; expected a number", attend, scale=True),
    refused(TypeError, "scale is 1j; expected a number", attend, scale=1j),
    refused(ValueError, "scale is nan; expected a finite number, or None for 1 / sqrt(head_dim)", attend, scale=np.nan),
    refused(ValueError, "scale is inf; expected a finite number", attend, scale=np.float32(np.inf)),
    refused(ValueError, "scale is 1e+300, beyond the float32 that float32 inputs are computed in; pass a smaller "
            "scale or float64 arrays", attend, scale=1e300),
    refused(TypeError, "softcap is 'soft'; expected a number, or None for no cap", attend, softcap="soft"),
    refused(TypeError, "softcap is True; expected a number", attend, softcap=True),
    refused(ValueError, "softcap is 0.0; expected a finite number > 0, or None for no cap", attend, softcap=0),
    refused(ValueError, "softcap is -3.0; expected a finite number > 0", attend, softcap=-3.0),
    refused(ValueError, "softcap is nan; expected a finite number > 0", attend, softcap=np.nan),
    refused(ValueError, "softcap is inf; expected a finite number > 0", attend, softcap=np.inf),
    refused(ValueError, "softcap is 1e-300, beyond the float32 that float32 inputs are computed in; pass another "
            "softcap or float64 arrays", attend, softcap=1e-300),
    refused(TypeError, "sinks is a list; expected a numpy array like q: np.asarray(sinks, np.float32)", attend,
            sinks=[0.0] * 4),
    refused(TypeError, "sinks has dtype float64; expected float32: sinks.astype(np.float32)", attend,
            sinks=np.zeros(4)),
    refused(ValueError, "sinks has shape (2,); expected (4,), one logit for each head of q", attend,
            sinks=np.zeros(2, np.float32)),
    refused(ValueError, "sinks has shape (); expected (4,)", attend, sinks=np.zeros((), np.float32)),
    refused(ValueError, "dropout is 0.1 but seed is None; pass seed=, an int, another one for each call", attend,
            dropout=0.1),
    refused(ValueError, "dropout is 1; expected the share of pairs to drop, 0 <= dropout < 1", attend, dropout=1),
    refused(ValueError, "dropout is nan; expected the share", attend, dropout=np.nan),
    refused(TypeError, "dropout is None; expected a number, 0 <= dropout < 1", attend, dropout=None),
    refused(TypeError, "seed is 1.5; expected None or an int", attend, seed=1.5),
    refused(ValueError, "backend is 'cuda'; expected None or one of 'numba_cpu', 'cupy_raw', 'numba_cuda', "
            "'reference'", attend, backend="cuda"),
    refused(ValueError, "backend is ['reference']; expected None or one of", attend, backend=["reference"]),
    refused(TypeError, "softmax_scale", attend, softmax_scale=1.0),
    refused(ValueError, "softcap is -3.0; expected a finite number > 0", backward, softcap=-3.0),
    refused(ValueError, "dropout is 0.1 but seed is None", backward, dropout=0.1),
    refused(ValueError, "backend is 'cuda'", backward, backend="cuda"),
]

ONES = np.ones((4, 5), np.float32)
COUNTS = np.ones((10, 12), int)


def at_call(make):
    """A bias whose mistake shows only beside q and k."""
    return lambda: attend(bias=make())


BIAS = [
    refused(TypeError, "bias is a list; expected an array or what a function in sparseattn.bias returns: "
            "np.asarray(bias, np.float32)", attend, bias=[1.0]),
    refused(TypeError, "bias is a float; expected an array or what a function", attend, bias=1.0),
    refused(TypeError, "bias is an array of bool; pairs are left out by the pattern: pattern & "
            "Pattern.from_mask(mask), or pass a bias of 0 and -inf", attend, bias=np.ones((10, 12), bool)),
    refused(TypeError, "bias has dtype float64; expected float32: bias.astype(np.float32)", attend,
            bias=np.ones((10, 12))),
    refused(TypeError, "bias has dtype float64; expected float32 or float16: bias.astype(np.float32)",
            lambda: sa.attend(*(x.astype(np.float16) for x in (Q, K, K)), PATTERN, bias=np.ones((10, 12)))),
    refused(TypeError, "bias has dtype int64; expected float32", attend, bias=np.ones((10, 12), int)),
    refused(ValueError, "bias has shape (12, 10); expected one that broadcasts to (2, 4, 10, 12), (batch, n_heads, "
            "n_queries, n_keys)", attend, bias=np.ones((12, 10), np.float32)),
    refused(ValueError, "bias has shape (2, 1, 10, 12); expected one that broadcasts to (4, 10, 12), (n_heads, "
            "n_queries, n_keys)", lambda:
            sa.attend(Q[0], K[0], K[0], PATTERN, bias=np.ones((2, 1, 10, 12), np.float32))),
    refused(ValueError, "expected one that broadcasts to (10, 12), (n_queries, n_keys)", lambda:
            sa.attend(Q[0, 0], K[0, 0], K[0, 0], PATTERN, bias=np.ones((1, 10, 12), np.float32))),
    refused(TypeError, "slopes is a list; expected a NumPy or CuPy array (n_heads,): np.asarray(slopes, np.float32)",
            sa.bias.alibi, [0.5]),
    refused(TypeError, "slopes has dtype int64; expected a floating one: slopes.astype(np.float32)", sa.bias.alibi,
            np.ones(4, int)),
    refused(ValueError, "slopes has shape (4, 5); expected (n_heads,)", sa.bias.alibi, ONES),
    refused(TypeError, "offset is 1.5; expected an int, or a sequence of one int per batch item", sa.bias.alibi,
            ONES[:, 0], offset=1.5),
    refused(TypeError, "offset is True; expected an int", sa.bias.alibi, ONES[:, 0], offset=True),
    refused(TypeError, "offset is 0.5; expected an int", sa.bias.alibi, ONES[:, 0], offset=[1, 0.5]),
    refused(ValueError, "offset is 1099511627776; expected -2**31 < offset < 2**31 tokens", sa.bias.alibi, ONES[:, 0],
            offset=2**40),
    refused(ValueError, "bias alibi is for 3 heads but q has 4; build it for 1 or 4",
            at_call(lambda: sa.bias.alibi(np.ones(3)))),
    refused(ValueError, "bias alibi has 3 offsets but q has batch 2; give one, or one per batch item",
            at_call(lambda: sa.bias.alibi(np.ones(4), offset=[1, 2, 3]))),
    refused(TypeError, "left is 1.5; expected an int", sa.bias.by_offset, ONES, left=1.5),
    refused(ValueError, "table has shape (1, 4, 5); expected (n_heads, size) or (size,)", sa.bias.by_offset, ONES[None],
            left=1),
    refused(ValueError, "table has shape (4, 0); expected at least one entry on the last axis", sa.bias.by_offset,
            ONES[:, :0], left=1),
    refused(ValueError, "bias by_offset is for 5 heads but q has 4",
            at_call(lambda: sa.bias.by_offset(ONES.T, left=1))),
    refused(ValueError, "table has 5 rows; expected 9, one for each difference within a window of 2 x 2: pass the "
            "window that the table was made for", sa.bias.relative_2d, ONES.T, (2, 5), 2),
    refused(TypeError, "shape is 10; expected two numbers of tokens, rows and columns", sa.bias.relative_2d, ONES, 10,
            2),
    refused(ValueError, "window is (0, 2); expected sides of at least 1", sa.bias.relative_2d, ONES, (2, 5), (0, 2)),
    refused(ValueError, "bias relative_2d is for the 10 tokens of a 2 x 5 grid but k has 12; pass the shape of the "
            "grid",
            at_call(lambda: sa.bias.relative_2d(np.ones((3, 4)), (2, 5), (1, 2)))),
    refused(TypeError, "labels is a list; expected a NumPy or CuPy array of integers", sa.bias.labels, ONES, [0, 1]),
    refused(TypeError, "labels is an array of float32; expected a NumPy or CuPy array of integers", sa.bias.labels,
            ONES, ONES),
    refused(ValueError, "labels run from 0 to 5, but the table has 5 entries; expected 0 <= label < 5", sa.bias.labels,
            ONES, np.arange(6)),
    refused(ValueError, "labels run from -1 to 1, but the table", sa.bias.labels, ONES, np.array([-1, 1])),
    refused(ValueError, "labels has shape (2, 2); expected it (n,), the label of each distance, with n >= 1; leave out "
            "left= for labels of pairs", sa.bias.labels, ONES, np.zeros((2, 2), int), left=1),
    refused(ValueError, "labels has shape (1, 1, 1, 1, 2); expected it broadcastable to (batch", sa.bias.labels, ONES,
            np.zeros((1, 1, 1, 1, 2), int)),
    refused(ValueError, "offset is for labels by distance; give left= too, or leave offset out", sa.bias.labels, ONES,
            np.zeros(12, int), offset=1),
    refused(ValueError, "labels has shape (11,); expected one that broadcasts to (2, 4, 10, 12)",
            at_call(lambda: sa.bias.labels(ONES, np.zeros(11, int)))),
    refused(ValueError, "table of bias labels has shape (4, 9, 5); expected (n_heads, n_labels) or ([batch,] n_heads, "
            "n_queries, n_labels) for batch 2 and 10 queries",
            at_call(lambda: sa.bias.labels(np.ones((4, 9, 5)), np.zeros(12, int)))),
    refused(TypeError, "counts is None; expected a sequence of patterns, or a scipy.sparse matrix or an array of int",
            sa.bias.log_count, None),
    refused(ValueError, "counts is empty; expected at least one pattern", sa.bias.log_count, []),
    refused(TypeError, "counts[1] is an array of int64; expected a sparseattn.Pattern", sa.bias.log_count,
            [PATTERN, COUNTS]),
    refused(ValueError, "counts[1] has shape (10, 10) but counts[0] (10, 12); build all for the same queries and keys",
            sa.bias.log_count, [PATTERN, patterns.causal(10)]),
    refused(TypeError, "counts has dtype float32; expected integers: counts.astype(np.int32)", sa.bias.log_count, ONES),
    refused(ValueError, "counts holds -1; expected numbers >= 0", sa.bias.log_count, -COUNTS),
    refused(ValueError, "counts holds -1; expected numbers >= 0", sa.bias.log_count, scipy.sparse.csr_array(-COUNTS)),
    refused(ValueError, "counts has shape (10,); expected ([[batch,] n_heads,] n_queries, n_keys)", sa.bias.log_count,
            COUNTS[:, 0]),
    refused(ValueError, "bias log_count counts pairs of 12 queries and 10 keys but the pattern is for 10 and 12",
            at_call(lambda: sa.bias.log_count(COUNTS.T))),
    refused(ValueError, "bias log_count has counts of batch 1 and 3 heads but q has batch 2 and 4 heads; give counts "
            "for 1 or all of them", at_call(lambda: sa.bias.log_count(np.stack([COUNTS] * 3)))),
]


def read_only():
    out = np.empty_like(Q)
    out.flags.writeable = False
    return out


OUTPUTS = [
    refused(TypeError, "out is a list; expected a numpy array like q: np.asarray(out, np.float32)", attend, out=[1]),
    refused(TypeError, "out has dtype float64; expected float32: out.astype(np.float32)", attend,
            out=Q.astype(np.float64)),
    refused(ValueError, "out has shape (2, 4, 10, 7); expected (2, 4, 10, 8), one row as wide as v's for each query "
            "of q", attend, out=Q[..., :7].copy()),
    refused(ValueError, "out is read-only; pass a writeable array, or out=None for a new one", attend, out=read_only()),
    refused(ValueError, "out repeats elements (a stride of 0, as np.broadcast_to gives); pass out.copy()",
            attend, out=np.lib.stride_tricks.as_strided(np.empty(8, np.float32), Q.shape, (0, 0, 0, 4))),
    refused(ValueError, "out overlaps q, which is read while out is written; pass an array of its own", attend, out=Q),
    refused(ValueError, "out overlaps v", lambda: sa.attend(Q[0, 0], K[0, 0], K[0, 1], PATTERN, out=K[0, 1, 2:])),
    refused(ValueError, "dout has shape (2, 4, 9, 8); expected (2, 4, 10, 8), one row", backward, Q[:, :, :9]),
    refused(TypeError, "dout has dtype float64; expected float32: dout.astype(np.float32)", backward,
            Q.astype(np.float64)),
    refused(TypeError, "dout is None; expected a numpy array like q", backward, None),
    refused(ValueError, "out has shape (4, 10, 8); expected (2, 4, 10, 8)", backward, out=OUT[0]),
    refused(TypeError, "out has dtype float16; expected float32", backward, out=OUT.astype(np.float16)),
    refused(ValueError, "lse has shape (2, 4, 10, 1); expected (2, 4, 10), one number for each query of q", backward,
            lse=LSE[..., None]),
    refused(TypeError, "lse has dtype float64; expected float32: lse.astype(np.float32)", backward,
            lse=LSE.astype(np.float64)),
    refused(TypeError, "lse is None; expected a numpy array like q", backward, lse=None),
    refused(ValueError, "dlse has shape (4, 10); expected (2, 4, 10), one number", backward, dlse=LSE[0]),
    refused(TypeError, "dlse has dtype int32; expected float32", backward, dlse=LSE.astype(np.int32)),
]

MERGE = [
    refused(ValueError, "merge got no parts; give it at least one (out, lse)", sa.merge, []),
    refused(TypeError, "part 0 is a numpy.ndarray; expected a list of pairs: merge([(out1, lse1), (out2, lse2)])",
            sa.merge, (OUT, LSE)),
    refused(TypeError, "part 1 is a tuple", sa.merge, [(OUT, LSE), (OUT,)]),
    refused(TypeError, "out of part 0 is a list; expected a NumPy or CuPy array, of one library in all parts",
            sa.merge, [([1.0], LSE)]),
    refused(TypeError, "lse of part 1 is None; expected a NumPy or CuPy array", sa.merge, [(OUT, LSE), (OUT, None)]),
    refused(TypeError, "out of part 1 has dtype float64 but that of part 0 float32; compute all parts in one dtype",
            sa.merge, [(OUT, LSE), (OUT.astype(np.float64), LSE)]),
    refused(TypeError, "out of part 0 has dtype int64; expected float16, bfloat16, float32 or float64",
            sa.merge, [(OUT.astype(np.int64), LSE)]),
    refused(TypeError, "lse of part 0 has dtype float64 beside out in float32; expected float32: "
            "lse.astype(np.float32)", sa.merge, [(OUT, LSE.astype(np.float64))]),
    refused(ValueError, "out of part 1 has shape (4, 10, 8) but that of part 0 (2, 4, 10, 8); all parts must be "
            "about the same queries", sa.merge, [(OUT, LSE), (OUT[0], LSE[0])]),
    refused(ValueError, "part 0 has out (2, 4, 10, 8) and lse (2, 4, 9); expected (..., n_queries, head_dim) and "
            "(..., n_queries)", sa.merge, [(OUT, LSE[..., :9])]),
]


@pytest.mark.parametrize("error, text, call, arguments, options", INPUTS + PATTERNS + OPTIONS + BIAS + OUTPUTS + MERGE)
def test_refusal(error, text, call, arguments, options):
    with pytest.raises(error, match=re.escape(text)):
        call(*arguments, **options)


@pytest.mark.parametrize("function", [sa.attend, sa.vjp, sa.explain])
def test_all_functions_check_alike(function):
    with pytest.raises(ValueError, match="pattern is for 10 keys but k has 12"):
        function(Q, K, K, patterns.causal(10))
    with pytest.raises(ValueError, match="backend is 'cuda'"):
        function(Q, K, K, PATTERN, backend="cuda")
    with pytest.raises(ValueError, match="sinks has shape"):
        function(Q, K, K, PATTERN, sinks=Q)
    with pytest.raises(TypeError, match="seed is 'x'"):
        function(Q, K, K, PATTERN, seed="x")


def test_nothing_is_written_when_refused():
    out = np.full_like(Q, 7)
    with pytest.raises(ValueError, match="backend is"):
        attend(out=out, backend="cuda")
    assert (out == 7).all()


@pytest.fixture
def cupy(monkeypatch):
    """A module with an array class in CuPy's place: enough for every check that comes before a computation."""

    class ndarray:
        def __init__(self, x):
            self.dtype, self.shape, self.ndim = x.dtype, x.shape, x.ndim
            self.device = types.SimpleNamespace(id=0)

    module = types.ModuleType("cupy")
    module.ndarray = ndarray
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_arrays_of_two_libraries(cupy):
    text = "q, k and v are arrays of different libraries (q numpy, k cupy, v numpy); move them to one: cupy.asarray"
    with pytest.raises(TypeError, match=re.escape(text)):
        attend(k=cupy.ndarray(K))
    with pytest.raises(TypeError, match="expected a numpy array like q; cupy.asarray or cupy.asnumpy moves it"):
        attend(out=cupy.ndarray(Q))


def test_pattern_in_another_library(cupy):
    text = "pattern is held in numpy arrays but q, k and v are cupy arrays; move it once with pattern.to('cuda')"
    with pytest.raises(ValueError, match=re.escape(text)):
        attend(*(cupy.ndarray(x) for x in (Q, K, K)))


def test_options_in_another_library(cupy):
    with pytest.raises(TypeError, match="sinks is a .*ndarray; expected a numpy array like q; cupy.asarray or"):
        attend(sinks=cupy.ndarray(Q[0, :, 0, 0]))
    slopes = cupy.ndarray(Q[0, :, 0, 0])
    for bias in (sa.bias.alibi(slopes), sa.bias.by_offset(slopes, left=0)):
        with pytest.raises(TypeError, match="holds cupy arrays but q is a numpy array; build it from numpy arrays"):
            attend(bias=bias)
    with pytest.raises(TypeError, match="bias array holds cupy arrays but q is a numpy array"):
        attend(bias=slopes)


def test_no_backend_for_cupy(cupy, monkeypatch):
    from sparseattn import dispatch
    from sparseattn.kernels import cupy_raw, numba_cuda

    for backend in (cupy_raw, numba_cuda):
        monkeypatch.setattr(backend, "_why_not_here", lambda: "CuPy is not installed; pip install it")

    words = r"no backend can run this call \(cupy_raw: CuPy is not installed; pip install it; numba_cuda: CuPy is not"
    with pytest.raises(NotImplementedError, match=words):
        dispatch.choose("cupy", None, None, None, None)
    with pytest.raises(NotImplementedError, match="numba_cpu: it does not take CuPy arrays"):
        dispatch.choose("cupy", None, None, None, None, "numba_cpu")
    assert dispatch.choose("cupy", None, None, None, None, "reference").NAME == "reference"
