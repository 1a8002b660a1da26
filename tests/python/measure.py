"""What ONNX Runtime and onnx.reference say about a model file. Knows nothing of the tool."""

import collections

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper


def session(model, optimized_path=None):
    """An ONNX Runtime session on the CPU with every optimization on. model: path or ModelProto."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # the dump of an optimized graph warns that it is for this machine only
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def optimized_model(path, dump):
    """The graph after ONNX Runtime's fusions, as a ModelProto."""
    session(path, dump)
    return onnx.load(dump)


def with_token_types(model, arrays):
    """The feeds for `model`: token_type_ids of zeros where it has that input, arrays without an input left out."""
    arrays = dict(arrays)
    names = [i.name for i in onnx.load(model, load_external_data=False).graph.input]
    if "token_type_ids" in names:
        arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    return {name: arrays[name] for name in names}


def outputs(model, feeds):
    """{name: array} of every graph output."""
    runner = session(model)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, feeds)))


def sqnr(reference, got):
    """10 log₁₀(Σ reference² / Σ (reference − got)²), dB"""
    reference, got = reference.astype(np.float64), got.astype(np.float64)
    return 10 * np.log10(np.square(reference).sum() / np.square(reference - got).sum())


def sqnr_per_token(reference, got):
    """Mean over tokens, the rows of both, of their SQNR in dB; a token without an error counts as 150 dB."""
    reference, got = reference.astype(np.float64), got.astype(np.float64)
    signal, noise = np.square(reference).sum(axis=-1), np.square(reference - got).sum(axis=-1)
    return float(np.mean(10 * np.log10(signal / np.maximum(noise, 1e-15 * signal))))


def heldout_sqnr(case, path):
    """dB, over the unpadded tokens of the held-out text, of the file at `path` against the original model."""
    feeds = case.load_heldout()
    real = feeds["attention_mask"].astype(bool)
    return sqnr(outputs(case.model, feeds)[case.output][real], outputs(path, feeds)[case.output][real])


def largest_relative_error(reference, got):
    """max |reference − got| / (max reference − min reference)"""
    reference, got = reference.astype(np.float64), got.astype(np.float64)
    return np.abs(reference - got).max() / (reference.max() - reference.min())


def op_counts(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def stored_matrices(model, dtype):
    """How many matrices of a type the file holds; biases can be rows of one."""
    return sum(t.data_type == dtype and len(t.dims) == 2 and t.dims[0] > 1 for t in model.graph.initializer)


def rotation_products(model):
    """Names of the MatMuls that are a part of a rotation: by a constant orthogonal matrix."""
    matrices = {name for name, a in constants(model).items() if is_orthogonal(a)}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and matrices & set(n.input)]


def is_orthogonal(a):
    if a.dtype.kind != "f" or a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] < 2:
        return False
    a = a.astype(np.float64)
    return abs(a @ a.T - np.eye(len(a))).max() < 1e-2


def constants(model):
    """{value name: array} of initializers and Constant nodes."""
    found = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def producers(model):
    """{value name: node}"""
    return {output: node for node in model.graph.node for output in node.output}


def consumers(model):
    """{value name: [node]}"""
    found = collections.defaultdict(list)
    for node in model.graph.node:
        for value in node.input:
            found[value].append(node)
    return found


def capture(model, names, feeds):
    """{name: array} of inner values of the model."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    have = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    return dict(zip(names, session(probe).run(list(names), feeds)))
