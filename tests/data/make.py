"""Writes the models of this folder, each with the package it is named after.

    python tests/data/make.py onnx     # onnx==1.20.1
    python tests/data/make.py torch    # torch==2.15.0 onnx==1.20.1 onnxscript==0.7.2
    python tests/data/make.py tf2onnx  # tensorflow-cpu==2.21.0 tf2onnx==1.17.0

The tests want to know whether a file by these packages survives loading and saving byte for byte, so the files are
committed as the packages wrote them. Running this again gives models that differ in their random weights and perhaps in
the names that a newer package chooses.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
WIDTH = 8


def write_onnx():
    """Every kind of field that the onnx package's helpers can make, in one model that runs."""
    import numpy as np
    import onnx
    from onnx import TensorProto as T
    from onnx import helper as h

    rng = np.random.default_rng(7)
    values = rng.standard_normal(12).astype(np.float32)
    x = h.make_tensor_value_info("x", T.FLOAT, ["batch", 3], doc_string="the input")
    y = h.make_tensor_value_info("y", T.FLOAT, ["batch", 3])
    flag = h.make_tensor_value_info("flag", T.BOOL, [])

    def branch(name, op):
        out = h.make_tensor_value_info(f"{name}_out", T.FLOAT, ["batch", 3])
        inner = h.make_tensor(f"{name}_w", T.FLOAT, [3], [0.5, -1.0, 2.0])
        node = h.make_node(op, ["captured", f"{name}_w"], [f"{name}_out"], name=f"{name}_{op}")
        return h.make_graph([node], name, [], [out], [inner])

    initializers = [
        h.make_tensor("w_raw", T.FLOAT, [3, 4], values.tobytes(), raw=True),
        h.make_tensor("w_typed", T.FLOAT, [4, 3], values),
        h.make_tensor("w_f16", T.FLOAT16, [3], np.float16([1, -2, 0.1])),
        h.make_tensor("w_bf16", T.BFLOAT16, [3], [1.0, -2.0, 0.1]),
        h.make_tensor("w_f64", T.DOUBLE, [3], [1.0, -2.0, 0.1]),
        h.make_tensor("i8", T.INT8, [3], [-128, 0, 127]),
        h.make_tensor("u8", T.UINT8, [3], [0, 1, 255]),
        h.make_tensor("i4", T.INT4, [3], [-8, 0, 7]),
        h.make_tensor("i64", T.INT64, [2], [-(2**62), 3]),
        h.make_tensor("u64", T.UINT64, [2], [2**63, 3]),
        h.make_tensor("flags", T.BOOL, [3], [True, False, True]),
        h.make_tensor("words", T.STRING, [2], [b"one", b"\xff\xfe"]),
        h.make_tensor("empty", T.FLOAT, [0], []),
    ]
    initializers[0].doc_string = "weights"
    sparse = h.make_sparse_tensor(
        h.make_tensor("sparse", T.FLOAT, [2], [1.0, 2.0]),
        h.make_tensor("sparse_indices", T.INT64, [2], [0, 5]),
        [6],
    )
    nodes = [
        h.make_node("MatMul", ["x", "w_raw"], ["h"], name="first", doc_string="a product"),
        h.make_node("MatMul", ["h", "w_typed"], ["captured"], name="second"),
        h.make_node("Constant", [], ["c"], value=h.make_tensor("", T.FLOAT, [3], [1.0, 2.0, 3.0])),
        h.make_node("Constant", [], ["cs"], sparse_value=sparse),
        h.make_node("Constant", [], ["ci"], value_ints=[1, -2, 3]),
        h.make_node("Constant", [], ["cf"], value_floats=[1.5, -0.0]),
        h.make_node("Constant", [], ["cstr"], value_string="text"),
        h.make_node("If", ["flag"], ["b"], then_branch=branch("then", "Add"), else_branch=branch("else", "Mul")),
        h.make_node("Twice", ["b"], ["d"], domain="local", name="call", scale=0.25),
        h.make_node("Clip", ["d", "", "w_max"], ["y"], name="last"),
    ]
    nodes[0].metadata_props.add(key="pkg", value="made by hand")
    initializers.append(h.make_tensor("w_max", T.FLOAT, [], [3.0]))
    graph = h.make_graph(nodes, "main", [x, flag], [y], initializers, doc_string="all of it", sparse_initializer=[sparse])
    graph.value_info.append(h.make_tensor_value_info("h", T.FLOAT, ["batch", 4]))
    graph.value_info.append(h.make_tensor_sequence_value_info("s", T.INT64, ["n"]))
    quant = graph.quantization_annotation.add(tensor_name="h")
    quant.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w_max")

    opsets = [h.make_opsetid("", 21), h.make_opsetid("local", 1)]
    body = [h.make_node("Constant", [], ["s"]), h.make_node("Mul", ["v", "s"], ["u"]), h.make_node("Add", ["u", "u"], ["r"])]
    reference = body[0].attribute.add(name="value_float", ref_attr_name="scale")
    reference.type = onnx.AttributeProto.FLOAT
    twice = h.make_function("local", "Twice", ["v"], ["r"], body, opsets, attribute_protos=[h.make_attribute("scale", 0.5)])
    model = h.make_model(graph, functions=[twice], opset_imports=opsets, producer_name="make.py", doc_string="é")
    h.set_model_props(model, {"key": "value"})
    onnx.checker.check_model(model)
    onnx.save(model, HERE / "onnx.onnx")


def write_torch():
    """One pre-norm feed-forward block, by both exporters of torch."""
    import torch

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(WIDTH)
            self.up = torch.nn.Linear(WIDTH, 2 * WIDTH)
            self.down = torch.nn.Linear(2 * WIDTH, WIDTH)

        def forward(self, x):
            return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))

    torch.manual_seed(7)
    block, x = Block().eval(), torch.randn(2, 5, WIDTH)
    axes = {"x": {0: "batch", 1: "seq"}}
    for name, options in {
        "torch_script_14": dict(dynamo=False, opset_version=14, dynamic_axes=axes),
        "torch_script_17": dict(dynamo=False, opset_version=17, dynamic_axes=axes),
        "torch_dynamo_18": dict(dynamo=True, opset_version=18, external_data=False),
    }.items():
        torch.onnx.export(block, (x,), str(HERE / f"{name}.onnx"), input_names=["x"], output_names=["y"], **options)


def write_tf2onnx():
    """A dense block, from a tf.function."""
    import tensorflow as tf
    import tf2onnx

    tf.random.set_seed(7)
    up = tf.Variable(tf.random.normal([WIDTH, 2 * WIDTH]))
    down = tf.Variable(tf.random.normal([2 * WIDTH, WIDTH]))

    @tf.function
    def block(x):
        mean = tf.reduce_mean(x, axis=-1, keepdims=True)
        spread = tf.reduce_mean(tf.math.squared_difference(x, mean), axis=-1, keepdims=True)
        return x + tf.matmul(tf.nn.relu(tf.matmul((x - mean) * tf.math.rsqrt(spread + 1e-6), up)), down)

    spec = [tf.TensorSpec([None, None, WIDTH], tf.float32, name="x")]
    tf2onnx.convert.from_function(block, spec, opset=17, output_path=str(HERE / "tf2onnx.onnx"))


if __name__ == "__main__":
    {"onnx": write_onnx, "torch": write_torch, "tf2onnx": write_tf2onnx}[sys.argv[1]]()
