"""What the three runtimes make of a model file: ONNX Runtime, OpenVINO, and TensorRT-RTX, which needs no GPU for it.

ONNX Runtime and OpenVINO say what they will run as a graph (`onnx_runtime_graph`, `openvino_layers`). TensorRT-RTX, the
sibling of TensorRT for RTX cards that PyPI has, parses a file, builds its engine ahead of time for a named compute
capability, and writes to its log which layers the engine has, made from which ONNX nodes, with the types of their inputs
(`tensorrt_parse`, `tensorrt_layers`); only running it needs a card. Knows nothing of the tool.
"""

import re
from dataclasses import dataclass

import measure
import onnx
import onnxruntime
import openvino
import tensorrt_rtx_bindings as tensorrt
from onnx import AttributeProto

# --- ONNX Runtime ---

LEVELS = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
INTEGER_PRODUCTS = ("MatMulIntegerToFloat", "QGemm", "QLinearMatMul", "QAttention")
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention")


def onnx_runtime_session(model, level="all", overrides=None, dump=None):
    """A session on the CPU. overrides: {name of a free dimension: size}. dump: where the graph that runs is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for name, size in (overrides or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnx_runtime_graph(model, folder, **options):
    """The graph that ONNX Runtime runs, as a ModelProto."""
    dump = folder / "optimized.onnx"
    onnx_runtime_session(model, dump=dump, **options)
    return onnx.load(dump)


def all_nodes(graph):
    """Every node, those of branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def products(model):
    """How many Linears a graph of ONNX Runtime's runs in integers, and the names of those that it does not: a rotation, which
    is meant to be in float, is none."""
    nodes = list(all_nodes(model.graph))
    constants = set(measure.constants(model))
    dequantized = {o for n in nodes if n.op_type == "DequantizeLinear" for o in n.output}
    integer = [n for n in nodes if n.op_type in INTEGER_PRODUCTS]
    rotations = {name for name, a in measure.constants(model).items() if measure.is_orthogonal(a)}
    constants -= rotations
    left = [n for n in nodes if n.op_type in FLOAT_PRODUCTS and {*n.input[:2]} & (constants | dequantized)]
    return len(integer), [n.name for n in left]


def dimensions(model, shapes):
    """{name of a free dimension of the inputs: its size in `shapes`} and whether each dimension has a name."""
    sizes, named = {}, True
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ())):
            if dim.dim_param:
                assert sizes.setdefault(dim.dim_param, size) == size, f"{dim.dim_param} has two sizes"
            named &= bool(dim.dim_param) or dim.HasField("dim_value")
    return sizes, named


def with_static_shapes(model, shapes):
    """The model with the shapes of its inputs written into it. Other values have the shapes that follow."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name]):
            dim.dim_value = size
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    del fixed.graph.value_info[:]
    return fixed


# --- OpenVINO ---


@dataclass(frozen=True)
class Layer:
    """A layer of a compiled model: its kind, the ONNX nodes in it, and the types it computes with."""

    name: str
    kind: str
    nodes: tuple
    types: tuple


_core = openvino.Core()


def openvino_compile(path, **options):
    """Compiled for the CPU; floats stay float32, so that its numbers can be compared."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **options}
    return _core.compile_model(str(path), "CPU", options)


def openvino_layers(compiled):
    """The executed graph. Its names say little: OpenVINO renames what it fuses."""
    layers = []
    for op in compiled.get_runtime_model().get_ops():
        info = {key: op.rt_info[key].astype(str) for key in ("layerType", "runtimePrecision", "originalLayersNames")}
        nodes = tuple(info["originalLayersNames"].split(","))
        layers.append(Layer(op.friendly_name, info["layerType"], nodes, (info["runtimePrecision"],)))
    return layers


# --- TensorRT-RTX ---


class _Log(tensorrt.ILogger):
    """Keeps what is logged. TensorRT uses the first logger of a process for everything."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append((severity, message))


_log = _Log()
_WARNINGS = (
    tensorrt.ILogger.Severity.WARNING,
    tensorrt.ILogger.Severity.ERROR,
    tensorrt.ILogger.Severity.INTERNAL_ERROR,
)
QUANTIZATION = re.compile(r"quantiz|zero.?point|\bscale|\bint8\b|\bQ/?DQ\b", re.IGNORECASE)


@dataclass
class Parsed:
    """What the parser made of a file. errors: (operator, reason)."""

    ok: bool
    errors: list
    warnings: list
    builder: object
    network: object


def _warnings():
    return [message for severity, message in _log.lines if severity in _WARNINGS]


def tensorrt_parse(model):
    """The network of a file or ModelProto, strongly typed, as Q/DQ need it."""
    _log.lines.clear()
    builder = tensorrt.Builder(_log)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, _log)
    if isinstance(model, onnx.ModelProto):
        ok = parser.parse(model.SerializeToString())
    else:
        ok = parser.parse_from_file(str(model))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return Parsed(ok, [(e.node_operator(), e.desc()) for e in errors], _warnings(), builder, network)


def tensorrt_layers(parsed, smallest, largest):
    """The layers of the engine for SM86 (an RTX 30 card), or None and why it cannot be built.

    smallest, largest: {input: shape}, the range that dynamic inputs are to have.
    """
    _log.lines.clear()
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    profile = parsed.builder.create_optimization_profile()
    for i in range(parsed.network.num_inputs):
        value = parsed.network.get_input(i)
        assert not value.is_shape_tensor, f"{value.name} is a shape tensor"
        if -1 in tuple(value.shape):
            low, high = (
                [size if dim < 0 else dim for dim, size in zip(value.shape, shapes[value.name])]
                for shapes in (smallest, largest)
            )
            profile.set_shape(value.name, low, high, high)
    config.add_optimization_profile(profile)
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    if engine is None:
        return None, _warnings()
    lines = [line for _, message in _log.lines for line in message.splitlines() if "LayerType: " in line]
    return [_tensorrt_layer(line) for line in lines], _warnings()


def _tensorrt_layer(line):
    read, metadata = line.split(", Outputs: [")[0], line.partition("Metadata: ")[2]
    return Layer(
        name=re.match(r"Name: (.*?), LayerType: ", line)[1],
        kind=re.search(r"LayerType: (\w+)", line)[1],
        nodes=tuple(re.findall(r"\[ONNX Layer: (.*?)\](?=\[|$|\s|,)", metadata)),
        types=tuple(re.findall(r"Datatype: (\w+)", read)),
    )


def tensorrt_integer(layers, name):
    """Whether the Linear of an ONNX node is a product of int8 and int8 in the engine.

    A product that runs in float is a layer of its node as well (`CastMulFc`, or a gemm of Float after a layer that
    dequantizes the weight), but has at most one int8 input.
    """
    return any(name in layer.nodes and layer.types.count("Int8") >= 2 for layer in layers)
