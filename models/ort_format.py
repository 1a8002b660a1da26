#!/usr/bin/env python3
"""A model in ONNX Runtime's own format (.ort, a flatbuffer) as float ONNX of standard operators.

    .venv/bin/python models/ort_format.py IN.ort OUT.onnx [--branch else_branch]

What its optimizer has fused is written out again (FusedConv, FusedMatMul, SkipLayerNormalization, Gelu, QuickGelu), and weights that are
multiplied as integers become the floats that they stand for. With --branch, one branch of the only If is the model: a decoder
without its past in place of a merged one. The schema of the format comes with the package onnxruntime.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.InferenceSession import InferenceSession
from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.TensorTypeAndShape import TensorTypeAndShape

SYMBOLIC, STATED = 2, 1  # of a dimension
TENSOR = 1  # of a type


def text(raw):
    return raw.decode() if raw else ""


def listed(of, field):
    """The elements of a vector of a flatbuffer."""
    return [getattr(of, field)(i) for i in range(getattr(of, f"{field}Length")())]


def tensor(stored):
    made = TensorProto(name=text(stored.Name()), data_type=stored.DataType(), dims=listed(stored, "Dims"))
    if stored.DataType() == TensorProto.STRING:
        made.string_data.extend(listed(stored, "StringData"))
    elif stored.RawDataLength():
        made.raw_data = stored.RawDataAsNumpy().tobytes()
    return made


def attribute(stored):
    made = AttributeProto(name=text(stored.Name()), type=stored.Type())
    if made.type == AttributeProto.GRAPH:
        made.g.CopyFrom(graph(stored.G()))
    elif made.type == AttributeProto.TENSOR:
        made.t.CopyFrom(tensor(stored.T()))
    elif made.type == AttributeProto.STRING:
        made.s = stored.S() or b""
    elif made.type == AttributeProto.FLOAT:
        made.f = stored.F()
    elif made.type == AttributeProto.INT:
        made.i = stored.I()
    else:
        field = {AttributeProto.FLOATS: "Floats", AttributeProto.INTS: "Ints", AttributeProto.STRINGS: "Strings"}[made.type]
        getattr(made, field.lower()).extend(listed(stored, field))
    return made


def dimension(stored):
    size = stored.Value()
    if size is not None and size.DimType() == STATED:
        return size.DimValue()
    return text(size.DimParam()) if size is not None and size.DimType() == SYMBOLIC else None


def value(stored):
    kind = stored.Type()
    if kind is None or kind.ValueType() != TENSOR:
        return onnx.ValueInfoProto(name=text(stored.Name()))
    stated = TensorTypeAndShape()
    stated.Init(kind.Value().Bytes, kind.Value().Pos)
    shape = stated.Shape()
    dims = None if shape is None else [dimension(d) for d in listed(shape, "Dim")]
    return helper.make_tensor_value_info(text(stored.Name()), stated.ElemType(), dims)


def node(stored):
    made = onnx.NodeProto(name=text(stored.Name()), op_type=text(stored.OpType()), domain=text(stored.Domain()))
    made.input.extend(map(text, listed(stored, "Inputs")))
    made.output.extend(map(text, listed(stored, "Outputs")))
    made.attribute.extend(map(attribute, listed(stored, "Attributes")))
    return made


def read_by(of):
    """Names that a node reads, those that its branches capture included."""
    names = set(of.input)
    for branch in (a.g for a in of.attribute if a.type == AttributeProto.GRAPH):
        own = {name for inner in branch.node for name in inner.output} | {t.name for t in branch.initializer}
        names |= {name for inner in branch.node for name in read_by(inner)} - own
    return names


def in_order(nodes):
    """The nodes, each behind those that it reads: the format has them in any order."""
    maker = {name: i for i, of in enumerate(nodes) for name in of.output if name}
    left, readers = [], defaultdict(list)
    for i, of in enumerate(nodes):
        before = {maker[name] for name in read_by(of) if name in maker}
        left.append(len(before))
        for j in before:
            readers[j].append(i)
    ready, ordered = [i for i, count in enumerate(left) if count == 0], []
    while ready:
        i = ready.pop()
        ordered.append(nodes[i])
        for j in readers[i]:
            left[j] -= 1
            if left[j] == 0:
                ready.append(j)
    return ordered


def graph(stored):
    values = {text(v.Name()): value(v) for v in listed(stored, "NodeArgs")}
    constants = list(map(tensor, listed(stored, "Initializers")))
    known = {constant.name for constant in constants}
    inputs = [values[name] for name in map(text, listed(stored, "Inputs")) if name not in known]
    outputs = [values[text(name)] for name in listed(stored, "Outputs")]
    return helper.make_graph(in_order(list(map(node, listed(stored, "Nodes")))), "main", inputs, outputs, constants)


def attributes_of(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class Standard:
    """The nodes of a graph as standard operators, and the constants they need."""

    def __init__(self, of):
        self.graph, self.nodes = of, []
        self.constants = {t.name: numpy_helper.to_array(t) for t in of.initializer}
        self.float_of = {}  # what is quantized at run time: the value that it was

    def constant(self, name, array):
        self.constants[name] = np.asarray(array)
        return name

    def add(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output

    def node(self, of):
        write = {
            "DequantizeLinear": self.dequantize,
            "DynamicQuantizeLinear": self.dynamic,
            "DynamicQuantizeMatMul": self.product,
            "MatMulIntegerToFloat": self.product,
            "FusedConv": self.conv,
            "FusedMatMul": self.matmul,
            "SkipLayerNormalization": self.skip_norm,
            "Gelu": self.gelu,
            "QuickGelu": self.quick_gelu,
        }.get(of.op_type)
        write(of) if write else self.nodes.append(of)

    def dequantize(self, of):
        """Of rows of a table: those of the table in float."""
        if of.input[0] in self.float_of:
            self.add("Identity", [self.float_of[of.input[0]]], of.output[0])
            return
        rows = next(n for n in self.nodes if of.input[0] in n.output)
        table, scale, zero = (self.constants[name].astype(np.float32) for name in (rows.input[0], *of.input[1:]))
        table = self.constant(f"{rows.input[0]}/float", (table - zero) * scale)
        self.nodes.remove(rows)
        self.float_of[of.input[0]] = self.add("Gather", [table, rows.input[1]], of.output[0])

    def dynamic(self, of):
        self.float_of[of.output[0]] = of.input[0]

    def product(self, of):
        """x · (W − zero point) · scale + b"""
        own = of.op_type == "DynamicQuantizeMatMul"
        scale, zero, bias = (2, 3, 4) if own else (3, 5, 6)
        at = lambda slot: of.input[slot] if len(of.input) > slot and of.input[slot] else None  # noqa: E731
        weight = self.constants[of.input[1]].astype(np.float32)
        weight = (weight - self.constants[at(zero)].astype(np.float32)) * self.constants[at(scale)]
        x, w = of.input[0] if own else self.float_of[of.input[0]], self.constant(f"{of.input[1]}/float", weight)
        product = self.add("MatMul", [x, w], f"{of.name}/product" if at(bias) else of.output[0])
        if at(bias):
            self.add("Add", [product, at(bias)], of.output[0])

    def conv(self, of):
        attributes = attributes_of(of)
        activation = attributes.pop("activation").decode()
        self.add("Conv", list(of.input), f"{of.name}/conv", **attributes)
        self.add(activation, [f"{of.name}/conv"], of.output[0])

    def matmul(self, of):
        """Of factors with four axes, as attention has them."""
        attributes = attributes_of(of)
        factors = list(of.input)
        for i, which in enumerate("AB"):
            axes = [0, 1, 2, 3]
            if attributes.get(f"transBatch{which}"):
                axes = [axes[1], axes[2], axes[0], axes[3]]
            if attributes.get(f"trans{which}"):
                axes[2:] = axes[:1:-1]
            if axes != [0, 1, 2, 3]:
                factors[i] = self.add("Transpose", [factors[i]], f"{of.name}/{which}", perm=axes)
        alpha = attributes.get("alpha", 1.0)
        product = self.add("MatMul", factors, of.output[0] if alpha == 1 else f"{of.name}/product")
        if alpha != 1:
            self.add("Mul", [product, self.constant(f"{of.name}/alpha", np.float32(alpha))], of.output[0])

    def skip_norm(self, of):
        total = of.output[3] if len(of.output) > 3 else f"{of.name}/sum"
        attributes = attributes_of(of)
        self.add("Add", of.input[:2], total)
        self.add("LayerNormalization", [total, *of.input[2:4]], of.output[0], axis=-1, **attributes)

    def gelu(self, of):
        """x · (1 + erf(x / √2)) / 2"""
        parts = {n: f"{of.name}/{n}" for n in ("scaled", "erf", "sum", "product")}
        root, one, half = (self.constant(f"gelu/{v:.3f}", np.float32(v)) for v in (np.sqrt(2), 1, 0.5))
        self.add("Div", [of.input[0], root], parts["scaled"])
        self.add("Erf", [parts["scaled"]], parts["erf"])
        self.add("Add", [parts["erf"], one], parts["sum"])
        self.add("Mul", [of.input[0], parts["sum"]], parts["product"])
        self.add("Mul", [parts["product"], half], of.output[0])

    def quick_gelu(self, of):
        """x · sigmoid(alpha · x); SiLU where alpha is 1"""
        alpha = attributes_of(of).get("alpha", 1.702)
        scaled = of.input[0]
        if alpha != 1:
            scaled = self.add("Mul", [scaled, self.constant(f"{of.name}/alpha", np.float32(alpha))], f"{of.name}/scaled")
        gate = self.add("Sigmoid", [scaled], f"{of.name}/gate")
        self.add("Mul", [of.input[0], gate], of.output[0])

    def done(self):
        for of in self.graph.node:
            of.name = of.name or of.output[0]
            self.node(of)
        made = {name for of in self.nodes for name in of.output}
        read = {name for of in self.nodes for name in of.input}
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in read]
        outputs = [o for o in self.graph.output if o.name in made]
        return helper.make_graph(self.nodes, "main", self.graph.input, outputs, constants)


def branch_of(main, name):
    """A branch of the only If, with what is outside of it; of its results those that it computes."""
    choice = next(of for of in main.node if of.op_type == "If")
    inner = next(a.g for a in choice.attribute if a.name == name)
    nodes = [of for of in main.node if of is not choice] + list(inner.node)
    read = {name for of in nodes for name in read_by(of)}
    inputs = [i for i in main.input if i.name in read]
    return helper.make_graph(nodes, "main", inputs, inner.output, [*main.initializer, *inner.initializer])


def read_model(path, branch=None):
    """A file of ONNX Runtime's format as a ModelProto."""
    stored = InferenceSession.GetRootAs(bytearray(Path(path).read_bytes()), 0).Model()
    main = graph(stored.Graph())
    main = Standard(branch_of(main, branch) if branch else main).done()
    opset = next(o.Version() for o in listed(stored, "OpsetImport") if not text(o.Domain()))
    return helper.make_model(main, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="ort_format")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="ONNX Runtime's format as float ONNX of standard operators.")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--branch", help="the attribute of the only If that is taken: then_branch or else_branch")
    given = parser.parse_args()
    onnx.save(read_model(given.model, given.branch), given.out)
