"""The same function as another exporter could have written it: each changes a model in place and returns it."""

import random

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def replace_nodes(model, nodes):
    nodes = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def forget_types(model):
    del model.graph.value_info[:]
    return model


def weights(model):
    """Each MatMul with a constant matrix, with the matrix."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "MatMul" and len(getattr(constants.get(node.input[1]), "dims", ())) == 2:
            yield node, numpy_helper.to_array(constants[node.input[1]])


def without_names(model):
    for node in model.graph.node:
        node.ClearField("name")
    return model


def named_as_values(model):
    """Every node has the name of a constant or of what another node computes, as ONNX allows."""
    names = [tensor.name for tensor in model.graph.initializer]
    names += [output for node in model.graph.node for output in node.output if output]
    random.Random(1).shuffle(names)
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    return model


def odd_names(model):
    """Spaces, quotes, markup, a tab, other scripts."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    names = {}

    def other(name):
        return name if name in kept else names.setdefault(name, f"ünï {len(names)}/::'\"%s\\ <b>\t{name[:5]}")

    for node in model.graph.node:
        node.input[:] = [other(name) for name in node.input]
        node.output[:] = [other(name) for name in node.output]
        node.name = "节点 " + node.name
    for named in (*model.graph.initializer, *model.graph.value_info):
        named.name = other(named.name)
    return model


def constants_as_nodes(model):
    nodes = [helper.make_node("Constant", [], [t.name], f"constant {t.name}", value=t) for t in model.graph.initializer]
    del model.graph.initializer[:]
    return replace_nodes(model, [*nodes, *model.graph.node])


def weights_through_identity(model):
    nodes, renamed = [], {}
    for tensor in model.graph.initializer:
        if tensor.dims and tensor.data_type in FLOATS:
            renamed[tensor.name] = f"{tensor.name}/again"
            nodes.append(helper.make_node("Identity", [tensor.name], [renamed[tensor.name]]))
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    return replace_nodes(model, [*nodes, *model.graph.node])


def values_through_identity(model):
    outputs = {value.name for value in model.graph.output}
    nodes, renamed = [], {}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name and name not in outputs and node.op_type != "Constant":
                renamed[name] = f"{name}/again"
                nodes.append(helper.make_node("Identity", [name], [renamed[name]]))
    return replace_nodes(model, nodes)


def another_order(model):
    """Any order in which nothing is read before it is computed."""
    rng, rest, ordered = random.Random(3), list(model.graph.node), []
    waited_for = {name for node in rest for name in node.output} - {""}
    while rest:
        ready = [node for node in rest if not waited_for.intersection(node.input)]
        chosen = rng.choice(ready)
        ordered.append(chosen)
        waited_for -= set(chosen.output)
        rest = [node for node in rest if node is not chosen]
    return replace_nodes(model, ordered)


def transposed_weights(model):
    nodes = []
    for node, weight in list(weights(model)):
        name = f"{node.output[0]}/stored"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), name))
        nodes.append(helper.make_node("Transpose", [name], [f"{name}/turned"], perm=[1, 0]))
        node.input[1] = f"{name}/turned"
    return replace_nodes(model, [*nodes, *model.graph.node])


def halves_through_cast(model):
    """Weights in float16, widened where they are read."""
    nodes = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}/half"))
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
    return replace_nodes(model, [*nodes, *model.graph.node])


def in_a_function(model):
    """All nodes in one function, weights and all inputs as its arguments."""
    initializers = [tensor.name for tensor in model.graph.initializer]
    inputs = [value.name for value in model.graph.input] + initializers
    outputs = [value.name for value in model.graph.output]
    nodes = list(model.graph.node)
    model.functions.append(helper.make_function("local", "Whole", inputs, outputs, nodes, list(model.opset_import)))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.ir_version = max(model.ir_version, 8)
    return replace_nodes(forget_types(model), [helper.make_node("Whole", inputs, outputs, "whole", domain="local")])


def in_a_branch(model):
    """All nodes in the branch of an If that is always taken."""
    outputs = list(model.graph.output)

    def value_of(output, name):
        value = ValueInfoProto()
        value.CopyFrom(output)
        value.name = name
        return value

    then = [*model.graph.node, *(helper.make_node("Identity", [o.name], [f"{o.name}/then"]) for o in outputs)]
    zeros = [numpy_helper.from_array(np.zeros([1] * len(o.type.tensor_type.shape.dim), np.float32)) for o in outputs]
    other = [helper.make_node("Constant", [], [f"{o.name}/else"], value=zero) for o, zero in zip(outputs, zeros, strict=True)]
    untyped = [helper.make_tensor_value_info(f"{o.name}/else", TensorProto.FLOAT, None) for o in outputs]
    branches = {
        "then_branch": helper.make_graph(then, "then", [], [value_of(o, f"{o.name}/then") for o in outputs]),
        "else_branch": helper.make_graph(other, "else", [], untyped),
    }
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    node = helper.make_node("If", ["condition"], [o.name for o in outputs], "if", **branches)
    return replace_nodes(forget_types(model), [node])


def without_shapes(model):
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            dimension.Clear()
    return forget_types(model)


def with_leftovers(model):
    """What nothing needs: a constant, nodes."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((7, 9), np.float32), "unused"))
    model.graph.node.append(helper.make_node("Shape", [model.graph.input[0].name], ["dead"], "dead"))
    return model


def swapped_operands(model):
    for node in model.graph.node:
        if node.op_type in ("Add", "Mul", "And", "Or", "Equal", "Max", "Min") and len(node.input) == 2:
            node.input[:] = reversed(node.input)
    return model


def typed_data(model):
    """Elements in the fields of their type, not as bytes."""
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64):
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.flatten().tolist()))
    return model


def einsum(model):
    for node, _ in list(weights(model)):
        node.op_type = "Einsum"
        node.attribute.append(helper.make_attribute("equation", "...k,kn->...n"))
    return model


def einsum_in_a_function(model):
    return in_a_function(einsum(model))


def einsum_in_a_branch(model):
    return in_a_branch(einsum(model))


def convolutions(model):
    """x W as a convolution over the tokens, with a kernel of one."""
    matrices = {node.output[0]: weight for node, weight in weights(model)}
    nodes = []
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        if name not in matrices:
            nodes.append(node)
            continue
        kernel = numpy_helper.from_array(np.ascontiguousarray(matrices[name].T[:, :, None]), f"{name}/kernel")
        model.graph.initializer.append(kernel)
        nodes += [
            helper.make_node("Transpose", [node.input[0]], [f"{name}/turned"], perm=[0, 2, 1]),
            helper.make_node("Conv", [f"{name}/turned", kernel.name], [f"{name}/back"], node.name, kernel_shape=[1]),
            helper.make_node("Transpose", [f"{name}/back"], [name], perm=[0, 2, 1]),
        ]
    return replace_nodes(model, nodes)


ALL = [
    without_names,
    named_as_values,
    odd_names,
    constants_as_nodes,
    weights_through_identity,
    values_through_identity,
    another_order,
    transposed_weights,
    halves_through_cast,
    in_a_function,
    in_a_branch,
    without_shapes,
    with_leftovers,
    swapped_operands,
    typed_data,
    einsum,
    einsum_in_a_function,
    einsum_in_a_branch,
    convolutions,
]
