"""Models of images in ONNX."""

import onnx
from onnx import TensorProto, helper


def model(path, shape, kind=TensorProto.FLOAT, axes=(2, 3), pooled=True, **about):
    """A model whose features are an image's mean colour."""
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT)]
    wanted = [helper.make_node("ReduceMean", ["x"], ["y"], axes=list(axes), keepdims=0)]
    nodes += wanted if pooled else [helper.make_node("Identity", ["x"], ["y"])]
    given = helper.make_tensor_value_info("images", kind, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "mean", [given], [made])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    helper.set_model_props(whole, {name: str(value) for name, value in about.items()})
    onnx.save(whole, path)
    return path
