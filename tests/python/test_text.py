"""Reads the text form of models back with ONNX's own parser, in full and short, the architectures of the table too.

`cargo test --test all text::` writes the texts to target/tmp/text; that must have been run before.
"""

import os
from pathlib import Path

import onnx
import onnx.parser
import pytest
from conftest import run_tool
from onnx import AttributeProto, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
TEXTS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "tmp" / "text"
MODELS = sorted(
    path.relative_to(ROOT)
    for folder in ("tests/data", "tests/data/opset", "models/tiny", "models/tiny-decomposed", "models/tiny-llama")
    for path in (ROOT / folder).glob("*.onnx")
)
ARCHITECTURES = sorted((ROOT / "models/architectures").glob("*.onnx"))


def read(model, kind):
    path = TEXTS / f"{str(model).replace(os.sep, '+')}.{kind}.txt"
    if not path.exists():
        pytest.fail(f"{path} is missing; make it with: cargo test --test all text::")
    return path.read_text()


def tensor(proto):
    if proto.data_type == onnx.TensorProto.STRING:
        values = [s.decode(errors="replace") for s in proto.string_data]
    else:
        values = numpy_helper.to_array(proto).tobytes()
    return proto.data_type, tuple(proto.dims), values


def is_identifier(name):
    return name.isascii() and name.isidentifier()


def value_type(proto):
    """The type without what the syntax cannot hold: symbolic lengths that are no identifiers, denotations."""
    copy = onnx.TypeProto.FromString(proto.SerializeToString())
    for dim in copy.tensor_type.shape.dim if copy.HasField("tensor_type") else []:
        dim.ClearField("denotation")
        if dim.WhichOneof("value") == "dim_param" and not is_identifier(dim.dim_param):
            dim.ClearField("dim_param")
    copy.ClearField("denotation")
    return copy.SerializeToString(deterministic=True)


def infos(values):
    return [(v.name, value_type(v.type)) for v in values]


def attribute(proto):
    value = onnx.helper.get_attribute_value(proto) if not proto.ref_attr_name else proto.ref_attr_name
    if proto.type == AttributeProto.TENSOR and not proto.ref_attr_name:
        value = tensor(value)
    elif proto.type == AttributeProto.GRAPH:
        value = graph(value)
    elif proto.type == AttributeProto.TYPE_PROTO:
        value = value_type(value)
    elif proto.type in (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS):
        value = list(value)
    return proto.name, proto.type, value


def node(proto):
    # The syntax has no sparse constants.
    attributes = [attribute(a) for a in proto.attribute if a.type != AttributeProto.SPARSE_TENSOR]
    return proto.name, proto.domain, proto.op_type, proto.overload, list(proto.input), list(proto.output), attributes


def graph(proto):
    return (
        [node(n) for n in proto.node],
        [(t.name, *tensor(t)) for t in proto.initializer],
        infos(proto.input),
        infos(proto.output),
        infos(proto.value_info),
    )


def header(proto):
    opsets = [(o.domain, o.version) for o in proto.opset_import]
    metadata = [(e.key, e.value) for e in proto.metadata_props]
    facts = (proto.ir_version, proto.producer_name, proto.producer_version, proto.domain, proto.model_version)
    return facts, proto.doc_string, opsets, metadata, proto.graph.name


def function(proto):
    opsets = [(o.domain, o.version) for o in proto.opset_import]
    attributes = [attribute(a) for a in proto.attribute_proto]
    names = proto.domain, proto.name, proto.overload, proto.doc_string, list(proto.input), list(proto.output)
    return names, list(proto.attribute), attributes, opsets, infos(proto.value_info), [node(n) for n in proto.node]


def test_there_are_models():
    assert len(MODELS) >= 30 and len(ARCHITECTURES) >= 129


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_full_text_is_the_model(path):
    original, parsed = onnx.load(ROOT / path), onnx.parser.parse_model(read(path, "full"))
    assert header(parsed) == header(original)
    assert graph(parsed.graph) == graph(original.graph)
    assert [function(f) for f in parsed.functions] == [function(f) for f in original.functions]


@pytest.mark.parametrize("path", MODELS, ids=str)
def test_short_text_has_the_same_nodes(path):
    original, parsed = onnx.load(ROOT / path), onnx.parser.parse_model(read(path, "short"))
    named = lambda model: [(n.name, n.op_type, list(n.input), list(n.output)) for n in model.graph.node]
    assert named(parsed) == named(original)
    types = lambda model: [(t.name, t.data_type, tuple(t.dims)) for t in model.graph.initializer]
    assert types(parsed) == types(original)


@pytest.mark.parametrize("path", ARCHITECTURES, ids=lambda p: p.stem)
def test_the_text_of_every_architecture_can_be_read(path):
    """Nodes, types and shapes are there in both forms, and the same text comes again."""
    original = onnx.load(path)
    for options in ((), ("--weights",)):
        done = run_tool("text", path, *options)
        assert done.returncode == 0, done.stderr
        parsed = onnx.parser.parse_model(done.stdout)
        assert header(parsed) == header(original)
        nodes = lambda model: [(n.name, n.op_type, list(n.input), list(n.output)) for n in model.graph.node]  # noqa: E731
        assert nodes(parsed) == nodes(original)
        types = lambda model: [(t.name, t.data_type, tuple(t.dims)) for t in model.graph.initializer]  # noqa: E731
        assert types(parsed) == types(original)
        if options:
            assert graph(parsed.graph) == graph(original.graph)
            assert [function(f) for f in parsed.functions] == [function(f) for f in original.functions]
        assert run_tool("text", path, *options).stdout == done.stdout


def test_short_text_is_short():
    assert len(read(Path("models/tiny/model.onnx"), "short")) < 40_000
