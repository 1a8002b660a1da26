"""What each runtime does with a small model: takes it or not, and in which type it multiplies.

TensorRT is TensorRT-RTX here, and needs no GPU: the parser answers at once, and an engine that was built ahead of time for
compute capability 8.6 holds a description of its operations as text, the types of their operands included.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import tensorrt_rtx_bindings as trt

# ------------------------------------------------------------------------------------------------- ONNX Runtime

ALL, NONE = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL


def ort_session(model, level=ALL, dims=None, save=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for name, length in (dims or {}).items():
        options.add_free_dimension_override_by_name(name, length)
    if save:
        options.optimized_model_filepath = str(save)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ort_operators(model, dims=None):
    """The operators of the optimized graph, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        ort_session(model, dims=dims, save=path)
        return sorted(node.op_type for node in onnx.load(path).graph.node)


def ort_run(model, feed, level=ALL):
    return ort_session(model, level).run(None, feed)[0].astype(np.float64)


# -------------------------------------------------------------------------------------------------- TensorRT-RTX


class _Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.ERROR:
            self.errors.append(message)


_LOG = _Log()
_BUILDER = trt.Builder(_LOG)


def trt_parse(model):
    """The network (`None` if the parser refuses) and what the parser says."""
    network = _BUILDER.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _LOG)
    accepted = parser.parse(model.SerializeToString())
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    # The network refers to weights that the parser holds.
    network_and_parser = (network, parser) if accepted else None
    return network_and_parser, [f"{e.node_operator()}: {e.desc()}" for e in errors]


def trt_engine(model):
    """The serialized engine for SM86; raises where the builder fails."""
    parsed, errors = trt_parse(model)
    assert parsed, errors
    network, _parser = parsed
    config = _BUILDER.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = _BUILDER.create_optimization_profile()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in inputs:
        shapes = [[n if d < 0 else d for d in tensor.shape] for n in (1, 8, 64)]
        profile.set_shape(tensor.name, *shapes)
    if any(-1 in tensor.shape for tensor in inputs):
        config.add_optimization_profile(profile)
    _LOG.errors.clear()
    engine = _BUILDER.build_serialized_network(network, config)
    assert engine is not None, _LOG.errors
    return bytes(engine)


def trt_product_types(model):
    """The type of the second factor of every matrix product of the engine: `int8` or `float`."""
    engine = trt_engine(model)
    types = dict(re.findall(rb'name="([^"]+)" offset=[^}]*?(?:\{[^}]*\}[^}]*?)*type=(\w+) \}', engine))
    products = re.findall(rb'fully_connected=\{ name="[^"]*" output=\{[^}]*\} input=\{([^}]*)\}', engine)
    assert products
    second = [re.findall(rb'"([^"]+)"', operands)[1].removesuffix(b"^deref") for operands in products]
    return sorted({types[name].decode() for name in second})


def trt_quantize_types(model):
    """The types that the QuantizeLinear nodes have in the imported network."""
    parsed, errors = trt_parse(model)
    assert parsed, errors
    network, _parser = parsed
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return [layer.get_output(0).dtype.name for layer in layers if layer.type == trt.LayerType.QUANTIZE]


# ------------------------------------------------------------------------------------------------------ OpenVINO

_CORE = openvino.Core()


def ov_compile(model):
    """Raises where the frontend or the plug-in refuses the model."""
    return _CORE.compile_model(
        _CORE.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )


def ov_product_types(model):
    """The types of the first factor of every product in the executed graph: `u8`, `i8` or `f32`."""

    def kind(node):
        info = node.get_rt_info()["layerType"]
        return info if isinstance(info, str) else info.astype(str)

    nodes = ov_compile(model).get_runtime_model().get_ordered_ops()
    products = [node for node in nodes if kind(node) in ("FullyConnected", "MatMul")]
    assert products
    return sorted({node.input(0).get_element_type().to_string() for node in products})


def ov_weight_types(model):
    """The types in which the weights of all FullyConnected nodes are stored in the executed graph."""
    nodes = ov_compile(model).get_runtime_model().get_ordered_ops()
    kind = lambda node: str(node.get_rt_info()["layerType"].astype(str)) if not isinstance(node.get_rt_info()["layerType"], str) else node.get_rt_info()["layerType"]  # noqa: E731
    products = [node for node in nodes if kind(node) == "FullyConnected"]
    assert products
    return sorted({node.input(1).get_element_type().to_string() for node in products})


def ov_run(model, feed):
    return ov_compile(model)(feed)[0].astype(np.float64)
