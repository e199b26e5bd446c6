"""Weights of an ONNX file by name."""

from models import wheels


def read(path):
    """(the initializers, a dict of arrays; of each bias that a product is added to, the matrix of that product).

    Exporters number the matrices of linear layers and keep the names of biases, so a matrix is found by its bias. The
    matrix is (inputs, outputs), as the product takes it.
    """
    onnx = wheels.module("onnx", "onnx")
    graph = onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name in [name for name in arrays if name.endswith("_q") and name[:-2] + "_scale" in arrays]:
        arrays[name[:-2]] = arrays.pop(name) * arrays.pop(name[:-2] + "_scale")  # int8 rows, a scale each
    return arrays, _by_bias(graph, arrays)


def _by_bias(graph, arrays):
    factor = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {}
    for node in graph.node:
        biases = [name for name in node.input if name.endswith(".bias")]
        for name in node.input if node.op_type == "Add" and biases else ():
            if factor.get(name) in arrays:
                found[biases[0]] = arrays[factor[name]]
    return found
