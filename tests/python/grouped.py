"""Models whose nodes are grouped into model-local functions and If branches, as exporters leave them."""

import onnx
from onnx import helper


def names_read(nodes):
    """What nodes read, at any depth, in order; names defined in subgraphs are left out."""
    read = []
    for node in nodes:
        read += [n for n in node.input if n]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                graph = attribute.g
                own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
                own |= {o for n in graph.node for o in n.output}
                inner = names_read(graph.node) + [o.name for o in graph.output]
                read += [n for n in inner if n not in own]
    return list(dict.fromkeys(read))


def as_function(domain, name, nodes, needed, opsets, parameters=(), defaults_too=False):
    """(function, call) for nodes; `needed`: names read outside. Attributes called as in `parameters` become those.

    With `defaults_too`, every second one is a default of the function in place of an argument of the call.
    """
    defined = [o for n in nodes for o in n.output if o]
    inputs = [n for n in names_read(nodes) if n not in defined]
    outputs = [o for o in defined if o in needed]
    formal = {n: f"in{i}" for i, n in enumerate(inputs)} | {n: f"v{i}" for i, n in enumerate(defined)}
    body, given, defaults = [], [], []
    for i, node in enumerate(nodes):
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:] = [formal.get(n, n) for n in node.input]
        new.output[:] = [formal.get(n, n) for n in node.output]
        new.name = f"n{i}"
        del new.attribute[:]
        for attribute in node.attribute:
            if attribute.name not in parameters:
                new.attribute.append(attribute)
                continue
            parameter = f"{attribute.name}_{i}"
            reference = new.attribute.add(name=attribute.name, type=attribute.type)
            reference.ref_attr_name = parameter
            value = onnx.AttributeProto()
            value.CopyFrom(attribute)
            value.name = parameter
            (given, defaults)[i % 2 if defaults_too else 0].append(value)
        body.append(new)
    function = helper.make_function(
        domain,
        name,
        [formal[n] for n in inputs],
        [formal[n] for n in outputs],
        body,
        opsets,
        attributes=[a.name for a in given],
        attribute_protos=defaults,
    )
    call = helper.make_node(name, inputs, outputs, name=f"/{name}", domain=domain)
    call.attribute.extend(given)
    return function, call


def pack(model, size, nested=4, parameters=("epsilon", "axis", "perm", "to"), defaults_too=False):
    """`model` with every `size` nodes in a function, of which every `nested` are one in turn."""
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    opsets = list(model.opset_import)
    inner_opsets = opsets + [helper.make_opsetid("test.inner", 1)]
    outputs = {o.name for o in model.graph.output}

    def group(nodes, size, domain, prefix, opsets, outside):
        calls = []
        for start in range(0, len(nodes), size):
            part = nodes[start : start + size]
            rest = nodes[:start] + nodes[start + size :]
            needed = set(names_read(rest)) | outside
            name = f"{prefix}_{start // size}"
            function, call = as_function(domain, name, part, needed, opsets, parameters, defaults_too)
            packed.functions.append(function)
            calls.append(call)
        return calls

    calls = group(list(model.graph.node), size, "test.outer", "Block", inner_opsets, outputs)
    del packed.graph.node[:]
    packed.graph.node.extend(calls)
    for function in list(packed.functions):
        nodes = list(function.node)
        if len(nodes) <= nested:
            continue
        # A parameter can be referred to in the function that declares it only.
        referring = any(a.ref_attr_name for n in nodes for a in n.attribute)
        if referring:
            continue
        calls = group(nodes, nested, "test.inner", f"{function.name}_Part", opsets, set(function.output))
        del function.node[:]
        function.node.extend(calls)
    for domain in ("test.outer", "test.inner"):
        packed.opset_import.append(helper.make_opsetid(domain, 1))
    packed.ir_version = max(packed.ir_version, 9)
    # What was inside is no longer a value of the graph.
    visible = {n for c in packed.graph.node for n in c.output}
    kept = [v for v in packed.graph.value_info if v.name in visible]
    del packed.graph.value_info[:]
    packed.graph.value_info.extend(kept)
    onnx.checker.check_model(packed)
    return packed


def same_up_to_names(left, right):
    """Whether two graphs have the same nodes in the same order, their values and nodes renamed."""
    there, back = {}, {}

    def pair(a, b):
        return there.setdefault(a, b) == b and back.setdefault(b, a) == a

    def graphs(a, b):
        if len(a.node) != len(b.node):
            return False
        for x, y in zip(a.initializer, b.initializer):
            if not pair(x.name, y.name) or x.raw_data != y.raw_data:
                return False
        return all(nodes(x, y) for x, y in zip(a.node, b.node)) and all(
            pair(x.name, y.name) for x, y in zip(a.output, b.output)
        )

    def nodes(a, b):
        if (a.op_type, a.domain, a.overload) != (b.op_type, b.domain, b.overload):
            return False
        if len(a.input) != len(b.input) or len(a.output) != len(b.output):
            return False
        if not all(pair(x, y) for x, y in zip([*a.input, *a.output], [*b.input, *b.output])):
            return False
        left, right = ({x.name: x for x in n.attribute} for n in (a, b))
        if left.keys() != right.keys():
            return False
        for name, attribute in left.items():
            if attribute.type == onnx.AttributeProto.GRAPH:
                if not graphs(attribute.g, right[name].g):
                    return False
            elif helper.get_attribute_value(attribute) != helper.get_attribute_value(right[name]):
                return False
        return True

    return graphs(left, right)
