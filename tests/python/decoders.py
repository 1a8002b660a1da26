"""Small decoders with past keys and values, alone or merged into one If, with outliers planted in their norms.

The form is that of optimum's decoder_model_merged.onnx: both branches are whole decoders whose values have the same
names, their weights are initializers of the graph around them, and `use_cache_branch` chooses.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, INNER, LAYERS = 50, 32, 2, 64, 2
HEAD = WIDTH // HEADS


def weights(seed=0):
    random = np.random.default_rng(seed)
    made = {"embedding": random.normal(size=(VOCABULARY, WIDTH))}
    for i in range(LAYERS):
        for name, shape in {
            "q": (WIDTH, WIDTH),
            "k": (WIDTH, WIDTH),
            "v": (WIDTH, WIDTH),
            "o": (WIDTH, WIDTH),
            "up": (WIDTH, INNER),
            "down": (INNER, WIDTH),
        }.items():
            made[f"layer.{i}.{name}.weight"] = random.normal(size=shape) / np.sqrt(shape[0])
            made[f"layer.{i}.{name}.bias"] = random.normal(size=shape[1]) * 0.1
        for norm in ("norm1", "norm2"):
            gamma, beta = random.normal(size=(2, WIDTH)) * 0.2 + [[1], [0]]
            gamma[[3, 17]] *= 40
            beta[17] += 30
            made[f"layer.{i}.{norm}.weight"], made[f"layer.{i}.{norm}.bias"] = gamma, beta
    made["head"] = random.normal(size=(WIDTH, VOCABULARY)) / np.sqrt(WIDTH)
    return {name: value.astype(np.float32) for name, value in made.items()}


def body(past):
    """Nodes and constants of one decoder; the weights are defined elsewhere."""
    nodes, constants = [], {}

    def constant(name, value):
        constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def linear(x, name, y):
        return node("Add", [node("MatMul", [x, f"{name}.weight"], f"{y}/product"), f"{name}.bias"], y)

    heads = constant("heads_shape", np.array([0, 0, HEADS, HEAD], np.int64))
    merged = constant("merged_shape", np.array([0, 0, WIDTH], np.int64))
    scale = constant("scale", np.float32(HEAD**-0.5))
    float_mask = node("Cast", ["attention_mask"], "mask/float", to=TensorProto.FLOAT)
    off = node("Sub", [constant("one", np.float32(1)), float_mask], "mask/off")
    off = node("Mul", [off, constant("low", np.float32(-1e4))], "mask/low")
    mask = node("Unsqueeze", [off, constant("mask_axes", np.array([1, 2], np.int64))], "mask")
    x = node("Gather", ["embedding", "input_ids"], "hidden")
    for i in range(LAYERS):
        layer = f"layer.{i}"

        def norm(x, name):
            names = [x, f"{layer}.{name}.weight", f"{layer}.{name}.bias"]
            return node("LayerNormalization", names, f"{layer}/{name}", axis=-1)

        def transposed(x, y):
            return node("Transpose", [x], y, perm=[0, 1, 3, 2])

        def heads_of(x, name):
            projected = linear(x, f"{layer}.{name}", f"{layer}/{name}")
            reshaped = node("Reshape", [projected, heads], f"{layer}/{name}/4d")
            return node("Transpose", [reshaped], f"{layer}/{name}/heads", perm=[0, 2, 1, 3])

        n = norm(x, "norm1")
        q, k, v = (heads_of(n, name) for name in "qkv")
        if past:
            k = node("Concat", [f"past_key_values.{i}.key", k], f"{layer}/k/all", axis=2)
            v = node("Concat", [f"past_key_values.{i}.value", v], f"{layer}/v/all", axis=2)
        key = node("Identity", [k], f"{layer}/present_key")
        value = node("Identity", [v], f"{layer}/present_value")
        scores = node("MatMul", [q, transposed(k, f"{layer}/k/transposed")], f"{layer}/scores")
        scores = node("Mul", [scores, scale], f"{layer}/scaled")
        probabilities = node("Softmax", [node("Add", [scores, mask], f"{layer}/masked")], f"{layer}/softmax", axis=-1)
        mixed = node("MatMul", [probabilities, v], f"{layer}/mixed")
        mixed = node("Transpose", [mixed], f"{layer}/mixed/tokens", perm=[0, 2, 1, 3])
        mixed = node("Reshape", [mixed, merged], f"{layer}/mixed/merged")
        x = node("Add", [x, linear(mixed, f"{layer}.o", f"{layer}/o")], f"{layer}/residual1")
        up = node("Relu", [linear(norm(x, "norm2"), f"{layer}.up", f"{layer}/up")], f"{layer}/relu")
        x = node("Add", [x, linear(up, f"{layer}.down", f"{layer}/down")], f"{layer}/residual2")
    node("MatMul", [x, "head"], "branch_logits")
    outputs = ["branch_logits"]
    for i in range(LAYERS):
        outputs += [f"layer.{i}/present_key", f"layer.{i}/present_value"]
    return nodes, list(constants.values()), outputs


def inputs(past, switch=False):
    infos = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    for i in range(LAYERS * past):
        for part in ("key", "value"):
            shape = ["batch", HEADS, "past", HEAD]
            infos.append(helper.make_tensor_value_info(f"past_key_values.{i}.{part}", TensorProto.FLOAT, shape))
    if switch:
        infos.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    return infos


def graph_outputs(names=None):
    shapes = {"logits": ["batch", "sequence", VOCABULARY]}
    for i in range(LAYERS):
        for part in ("key", "value"):
            shapes[f"present.{i}.{part}"] = ["batch", HEADS, "out", HEAD]
    names = names or list(shapes)
    return [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes.values())
    ]


def model_of(graph):
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def initializers(seed=0):
    return [numpy_helper.from_array(value, name) for name, value in weights(seed).items()]


def decoder(past):
    """A decoder as a model of its own."""
    nodes, constants, names = body(past)
    return model_of(helper.make_graph(nodes, "decoder", inputs(past), graph_outputs(names), initializers() + constants))


def merged(order=("then_branch", "else_branch"), own_weights=(), factor=1):
    """Both decoders in one If. `own_weights`: those of which the branch without past has its own copy, times `factor`."""
    branches = {}
    for branch, past in (("then_branch", True), ("else_branch", False)):
        nodes, constants, names = body(past)
        if not past:
            stored = weights()
            for name in own_weights:
                constants.append(numpy_helper.from_array(stored[name] * np.float32(factor), f"own.{name}"))
                for node in nodes:
                    node.input[:] = [f"own.{name}" if n == name else n for n in node.input]
        branches[branch] = helper.make_graph(nodes, branch, [], graph_outputs(names), constants)
    node = helper.make_node("If", ["use_cache_branch"], [o.name for o in graph_outputs()], name="optimum::if")
    node.attribute.extend(helper.make_attribute(name, branches[name]) for name in order)
    graph = helper.make_graph([node], "merged", inputs(True, True), graph_outputs(), initializers())
    return model_of(graph)


def data(rows, sequence, past, seed, switch=None):
    """Inputs for a run; `past` tokens in the cache."""
    random = np.random.default_rng(seed)
    feeds = {
        "input_ids": random.integers(0, VOCABULARY, size=(rows, sequence)),
        "attention_mask": np.ones((rows, past + sequence), np.int64),
    }
    for i in range(LAYERS):
        for part in ("key", "value"):
            feeds[f"past_key_values.{i}.{part}"] = random.normal(size=(rows, HEADS, past, HEAD)).astype(np.float32)
    if switch is not None:
        feeds["use_cache_branch"] = np.array([switch])
    return feeds
