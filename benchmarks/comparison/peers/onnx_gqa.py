"""ONNX Runtime's GroupQueryAttention: causal, with a window if wanted."""

import numpy as np

from comparison.contest import Missing
from sparseattn.pool import n_threads


def forward(q, k, v, *, window=-1):
    """A job for a causal window of `window` keys, self included; -1: all earlier keys.

    The operator wants (batch, n_tokens, n_heads * head_dim); inputs are laid out so before anything is timed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise Missing(f"{error.name} is not installed; pip install 'sparseattn[compare]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads()
    model = _model(onnx, q.shape[1], k.shape[1], window).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    n = k.shape[2]
    inputs = {name: _tokens_first(x) for name, x in (("q", q), ("k", k), ("v", v))}
    inputs |= {"last": np.full(q.shape[0], n - 1, np.int32), "total": np.array(n, np.int32)}
    return lambda: session.run(["out"], inputs)[0]


def heads_first(out, n_heads):
    """The operator's (batch, n_tokens, n_heads * head_dim) as (batch, n_heads, n_tokens, head_dim)."""
    return out.reshape(out.shape[:2] + (n_heads, -1)).swapaxes(1, 2)


def _tokens_first(x):
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


def _model(onnx, n_heads, n_kv_heads, window):
    """A graph of that one node; without past keys, its inputs are all there are."""
    tensor, types = onnx.helper.make_tensor_value_info, onnx.TensorProto
    node = onnx.helper.make_node(
        "GroupQueryAttention", ["q", "k", "v", "", "", "last", "total"], ["out", "present_k", "present_v"],
        domain="com.microsoft", num_heads=n_heads, kv_num_heads=n_kv_heads, local_window_size=window)
    inputs = [tensor(name, types.FLOAT, ["batch", "tokens", f"{name}_width"]) for name in "qkv"]
    inputs += [tensor("last", types.INT32, ["batch"]), tensor("total", types.INT32, [])]
    outputs = [tensor("out", types.FLOAT, ["batch", "tokens", "q_width"])]
    outputs += [tensor(name, types.FLOAT, ["batch", n_kv_heads, "keys", "head_dim"])
                for name in ("present_k", "present_v")]
    graph = onnx.helper.make_graph([node], "attention", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
