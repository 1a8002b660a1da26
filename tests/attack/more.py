"""Further models that nobody would make in good faith: graphs that are deep, empty, recursive or doubled, operator sets and
types out of the ordinary, numbers that are none. `make.py` lists them with the others.
"""

import numpy as np
from onnx import SparseTensorProto, TensorProto, TypeProto, helper, numpy_helper

node = helper.make_node
LAST = node("Relu", ["h"], ["y"], name="last")


def value(name, *shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def branch(nodes, output="i"):
    return helper.make_graph(nodes, "branch", [], [value(output, None)])


def nested_ifs(depth):
    inner = branch([node("Identity", ["h"], ["i"])])
    for level in range(depth):
        inner = branch([node("If", ["yes"], ["i"], name=f"bad_{level}", then_branch=inner, else_branch=branch([node("Identity", ["h"], ["i"])]))])
    return [node("If", ["yes"], ["y"], name="bad_if", then_branch=inner, else_branch=inner)]


def chain(op, length, *others, **attributes):
    names = ["h", *(f"c{i}" for i in range(length - 1)), "y"]
    return [node(op, [a, *others], [b], name=f"bad_{i}", **attributes) for i, (a, b) in enumerate(zip(names, names[1:]))]


def ladder(length):
    """y = Add(c, c), over and over: as many ways through it as 2 to the length."""
    names = ["h", *(f"c{i}" for i in range(length - 1)), "y"]
    return [node("Add", [a, a], [b], name=f"bad_{i}") for i, (a, b) in enumerate(zip(names, names[1:]))]


def loop(trips, body, start=("h",)):
    graph = helper.make_graph(body, "body", [value("t", dtype=TensorProto.INT64), value("go", dtype=TensorProto.BOOL), value("s", None, None, None)], [value("on", dtype=TensorProto.BOOL), value("o", None, None, None)])
    return [node("Loop", [trips, "yes", *start], ["y"], name="bad_loop", body=graph)]


YES = dict(yes=np.bool_(True))
ON = node("Identity", ["go"], ["on"])


def odd_graphs():
    """(name, nodes, constants): what any command may do with, but end well."""
    for op in ("Relu", "Identity", "Neg"):
        yield f"chain-{op}", chain(op, 400), {}
    yield "chain-Add", chain("Add", 400, "one"), dict(one=np.float32(0))
    yield "chain-Transpose", chain("Transpose", 300, perm=[0, 2, 1]), {}
    yield "chain-Reshape", chain("Reshape", 300, "to"), dict(to=np.array([0, -1, 8]))
    yield "chain-Dropout", chain("Dropout", 300), {}
    yield "chain-MatMul", chain("MatMul", 60, "w"), {}
    yield "ladder-40", ladder(40), {}
    yield "ladder-600", ladder(600), {}
    for op in ("Sum", "Max"):
        yield f"{op}-of-1500", [node(op, ["h"] * 1_500, ["y"], name="bad_sum")], {}
    yield "concat-of-2000", [node("Concat", ["h"] * 2_000, ["y"], name="bad_concat", axis=1)], {}
    for depth in (5, 12, 15):
        yield f"ifs-{depth}", nested_ifs(depth), YES
    yield "loop-endless", loop("trips", [ON, node("Relu", ["s"], ["o"])]), {**YES, "trips": np.int64(2**62)}
    yield "loop-no-limit", loop("", [ON, node("Relu", ["s"], ["o"])]), YES
    yield "loop-growing", loop("trips", [ON, node("Concat", ["s", "s"], ["o"], axis=0)]), {**YES, "trips": np.int64(60)}
    through = branch([node("Relu", ["y"], ["i"], name="bad_inner")])
    yield "cycle-through-if", [node("If", ["yes"], ["y"], name="bad_if", then_branch=through, else_branch=through)], YES
    shadow = branch([node("Relu", ["h"], ["h2"]), node("Relu", ["h2"], ["i"])])
    yield "branch-shadows", [node("Relu", ["h"], ["h2"]), node("If", ["yes"], ["y"], name="bad_if", then_branch=shadow, else_branch=shadow)], YES
    yield "no-name-twice", [node("Relu", ["h"], ["a"], name="same"), node("Relu", ["a"], ["y"], name="same")], {}
    yield "empty-op", [node("", ["h"], ["y"], name="bad_node")], {}
    yield "empty-domain-name", [node("Relu", ["h"], ["y"], name="bad_node", domain="nobody.knows")], {}
    yield "operator-of-nobody", [node("Frobnicate", ["h"], ["y"], name="bad_node")], {}
    yield "output-without-name", [node("Relu", ["h"], ["", "y"], name="bad_node")], {}
    yield "attribute-twice", [twice(node("Softmax", ["h"], ["y"], name="bad_node", axis=0))], {}
    yield "attribute-of-other-type", [node("Softmax", ["h"], ["y"], name="bad_node", axis=1.5)], {}
    yield "attribute-reference", [reference(node("Softmax", ["h"], ["y"], name="bad_node"))], {}
    yield "size-from-nan", [node("Reshape", ["h", "to"], ["y"], name="bad_node")], dict(to=np.array([np.nan, 8], np.float32))
    yield "scale-zero", [node("QuantizeLinear", ["h", "zero"], ["q"], name="bad_q"), node("DequantizeLinear", ["q", "zero"], ["y"], name="bad_d")], dict(zero=np.float32(0))
    yield "scale-nan", [node("QuantizeLinear", ["h", "nan"], ["q"], name="bad_q"), node("DequantizeLinear", ["q", "nan"], ["y"], name="bad_d")], dict(nan=np.float32(np.nan))
    for name, shape in {"k": (8, 0), "n": (0, 8), "both": (0, 0), "batch": (0, 8, 8)}.items():
        yield f"weight-of-nothing-{name}", [node("MatMul", ["h", "none"], ["y"], name="bad_node")], dict(none=np.zeros(shape, np.float32))
    for name, number in {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 3e38, "denormal": 1e-42}.items():
        w = np.full((8, 8), 0.5, np.float32)
        w[3, 3] = number
        yield f"weight-{name}", [node("MatMul", ["h", "odd"], ["y"], name="bad_node")], dict(odd=w)
        yield f"all-{name}", [node("MatMul", ["h", "odd"], ["y"], name="bad_node")], dict(odd=np.full((8, 8), number, np.float32))
        yield f"gamma-{name}", [node("Mul", ["h", "odd"], ["m"]), node("LayerNormalization", ["m", "odd"], ["l"], name="bad_norm"), node("MatMul", ["l", "w"], ["y"], name="bad_node")], dict(odd=np.full(8, number, np.float32))


def twice(bad):
    bad.attribute.append(bad.attribute[0])
    return bad


def reference(bad):
    bad.attribute.add(name="axis", ref_attr_name="nobody", type=2)
    return bad


def recursive():
    """(name, call, functions)"""
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    function = lambda name, nodes: helper.make_function("f", name, ["a"], ["o"], nodes, sets)  # noqa: E731
    to = lambda name: node(name, ["a"], ["o"], domain="f")  # noqa: E731
    call = [node("Bad0", ["h"], ["y"], domain="f", name="call")]
    yield "itself", call, [function("Bad0", [to("Bad0")])]
    yield "each-other", call, [function("Bad0", [to("Bad1")]), function("Bad1", [to("Bad0")])]
    inner = helper.make_graph([to("Bad0")], "i", [], [value("o", None)])
    yes = node("Constant", [], ["yes"], value=numpy_helper.from_array(np.bool_(True)))
    yield "through-if", call, [function("Bad0", [yes, node("If", ["yes"], ["o"], then_branch=inner, else_branch=inner)])]
    yield "twice", call, [function("Bad0", [node("Relu", ["a"], ["o"])]), function("Bad0", [node("Neg", ["a"], ["o"])])]
    yield "no-output", call, [helper.make_function("f", "Bad0", ["a"], ["nothing"], [node("Relu", ["a"], ["o"])], sets)]
    yield "no-body", call, [helper.make_function("f", "Bad0", ["a"], ["o"], [], sets)]
    yield "more-inputs", [node("Bad0", ["h"] * 5, ["y"], domain="f", name="call")], [function("Bad0", [node("Relu", ["a"], ["o"])])]
    yield "more-outputs", [node("Bad0", ["h"], ["y", "z"], domain="f", name="call")], [function("Bad0", [node("Relu", ["a"], ["o"])])]
    yield "of-the-standard", [LAST], [helper.make_function("", "Relu", ["a"], ["o"], [node("Relu", ["a"], ["o"])], sets)]
    yield "same-names", call, [helper.make_function("f", "Bad0", ["a", "a"], ["o", "o"], [node("Relu", ["a"], ["o"])], sets)]


def edited():
    """(name, a function that changes a good model)"""

    def sets(*pairs):
        def edit(m):
            del m.opset_import[:]
            m.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in pairs)

        return edit

    yield "opset-0", sets(("", 0))
    yield "opset-minus", sets(("", -1))
    yield "opset-far", sets(("", 2**40))
    yield "opset-end", sets(("", 2**63 - 1))
    yield "opset-other-alone", sets(("ai.onnx.ml", 3))
    yield "opset-twice", sets(("", 18), ("", 7))
    yield "opset-ai.onnx", sets(("ai.onnx", 18), ("", 13))
    yield "opset-many", sets(*[("", 18), *((f"d{i}", i) for i in range(5000))])
    for version in (0, -5, 2**40):
        yield f"ir-{version}", lambda m, version=version: setattr(m, "ir_version", version)

    def clear(field):
        return lambda m: m.graph.ClearField(field)

    for field in ("node", "input", "output", "initializer"):
        yield f"no-{field}", clear(field)
    yield "empty-graph", lambda m: m.graph.Clear()
    yield "input-twice", lambda m: m.graph.input.append(m.graph.input[0])
    yield "output-twice", lambda m: m.graph.output.append(m.graph.output[0])
    yield "input-is-output", lambda m: m.graph.output.append(m.graph.input[0])
    yield "initializer-twice", lambda m: m.graph.initializer.append(m.graph.initializer[0])
    yield "initializer-is-input", lambda m: m.graph.input.append(value("w", 8, 8))
    yield "initializer-is-input-of-other-shape", lambda m: m.graph.input.append(value("w", 3, 3))
    yield "initializer-is-output", lambda m: m.graph.output.append(value("w", 8, 8))
    yield "initializer-without-name", lambda m: m.graph.initializer.append(TensorProto(data_type=1, dims=[1], raw_data=bytes(4)))
    yield "input-without-type", lambda m: m.graph.input[0].ClearField("type")
    yield "input-without-shape", lambda m: m.graph.input[0].type.tensor_type.ClearField("shape")
    yield "input-type-99", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99)
    yield "input-string", lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING)
    yield "input-rank-10000", lambda m: m.graph.input[0].CopyFrom(value("x", *[1] * 10_000))

    def sequence(m):
        kind = TypeProto()
        kind.sequence_type.elem_type.tensor_type.elem_type = 1
        m.graph.input[0].type.CopyFrom(kind)

    yield "input-sequence", sequence

    def dim(number):
        return lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", number)

    for number in (0, -1, -(2**63), 2**62):
        yield f"input-dim-{number}", dim(number)

    def strings(m):
        m.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a\xff", b"\x1b[31m"]))
        m.graph.node.append(node("Identity", ["words"], ["z"], name="strings"))
        m.graph.output.append(value("z", 2, dtype=TensorProto.STRING))

    yield "strings", strings

    def strings_short(m):
        strings(m)
        m.graph.initializer[-1].dims[0] = 1_000_000

    yield "strings-short", strings_short

    def sparse(dims, indices, count=2):
        def edit(m):
            values = numpy_helper.from_array(np.ones(count, np.float32), "sparse")
            where = numpy_helper.from_array(np.array(indices, np.int64), "where")
            m.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=where, dims=dims))
            m.graph.node[-1].CopyFrom(node("MatMul", ["h", "sparse"], ["y"], name="last"))

        return edit

    yield "sparse", sparse([8, 8], [0, 9])
    yield "sparse-huge", sparse([2**31, 2**31], [0, 9])
    yield "sparse-outside", sparse([8, 8], [0, 6400])
    yield "sparse-negative", sparse([8, 8], [-1, 6])
    yield "sparse-short", sparse([8, 8], [0])
    yield "sparse-negative-dims", sparse([-8, 8], [0, 9])

    def infos(m):
        m.graph.value_info.extend([value("h", 3, 3), value("h", 2**60, 2**60), value("nobody", -4)])

    yield "value-infos-lie", infos

    def long_names(m):
        name = "n" * 1_000_000
        for n in m.graph.node:
            n.input[:] = [name if i == "h" else i for i in n.input]
            n.output[:] = [name if o == "h" else o for o in n.output]
            n.name += name

    yield "long-names", long_names
    yield "metadata-much", lambda m: [m.metadata_props.add(key=f"k{i % 7}", value="v" * 50) for i in range(2_000)]
    yield "metadata-ours", lambda m: [m.metadata_props.add(key=f"onnx_osplus.{k}", value="\0{[") for k in ("settings", "source", "version", "calibration", "rotations")]
    yield "training", lambda m: m.training_info.add().initialization.CopyFrom(m.graph)
