"""What ONNX Runtime fuses: as much in a result of this tool as in plain Q/DQ, and what it can in the float model."""

import collections
import json

import measure
import numpy as np
import onnx
import pytest
from architectures import CALIBRATION, FOLDER, HELD_OUT, ROWS, arrays, feeds_of, quantize
from conftest import run_tool
from onnx import helper, numpy_helper
from runtimes import all_nodes, onnx_runtime_graph, products

KINDS = ("bert", "vit", "gpt2", "llama")
FUSED = [name for name, row in ROWS.items() if name.split("-")[0] in KINDS and row["onnx_runtime"] is None]

# Operators that ONNX Runtime makes out of several. Which of a family it is depends on what stands beside it: a Gelu takes a
# bias of rank 1 (BiasGelu), and the biases of Linears are [1, N] here. That is no loss: BiasGelu is not faster than Add
# and Gelu, and a bias of rank 1 would leave the Linear in float as soon as all shapes are known.
FAMILIES = {
    "gelu": ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"),
    "norm": (
        "LayerNormalization",
        "SkipLayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    ),
    "product": ("FusedMatMul",),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"),
    "rotary": ("RotaryEmbedding",),
}


def counts(path, folder):
    """How many there are of each operator, and the graph. A product with a weight is a Linear, not one of attention."""
    graph = onnx_runtime_graph(path, folder)
    weights = set(measure.constants(graph))
    nodes = (n for n in all_nodes(graph.graph) if n.op_type != "FusedMatMul" or not weights & set(n.input))
    return collections.Counter(n.op_type for n in nodes), graph


@pytest.mark.parametrize("name", FUSED)
def test_fusions_of_an_export(name, tmp_path):
    row = ROWS[name]
    (none, plain, _), (done, ours, _) = quantize(row, "--method", "none"), quantize(row)
    assert none.returncode == done.returncode == 0, none.stderr + done.stderr
    original, _ = counts(FOLDER / row["file"], tmp_path)
    plain, plain_graph = counts(plain, tmp_path)
    ours, our_graph = counts(ours, tmp_path)
    assert products(our_graph) == products(plain_graph)
    for family, operators in FAMILIES.items():
        for op in operators:
            assert ours[op] >= plain[op], f"{op}: {ours[op]} where plain Q/DQ has {plain[op]}"
        all_ours, all_float = (sum(c[op] for op in operators) for c in (ours, original))
        assert all_ours >= all_float, f"{family}: {all_ours} where float has {all_float}"


# --- sizes that the file fixes ---


def resized(batch="batch", height=16):
    """A ViT whose table of positions is made for 8 × 8 patches and resized to the 4 × 4 of its input, as exporters write it."""
    row = ROWS["vit-script17-sdpa"]
    model = onnx.load(FOLDER / row["file"])
    graph = model.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    dims[0].Clear()
    dims[2].Clear()
    if isinstance(batch, int):
        dims[0].dim_value = batch
    else:
        dims[0].dim_param = batch
    if isinstance(height, int):
        dims[2].dim_value = height
    else:
        dims[2].dim_param = height
    at = next(i for i, n in enumerate(graph.node) if n.name == "/m/vit/embeddings/Add")
    add, random = graph.node[at], np.random.RandomState(0)

    def constant(name, array):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    first = constant("first", random.standard_normal((1, 1, 32)).astype(np.float32))
    table = constant("table", random.standard_normal((1, 8, 8, 32)).astype(np.float32))
    two, three, patch = (constant(n, np.int64([v])) for n, v in (("two", 2), ("three", 3), ("patch", 4)))
    head, flat = constant("head", np.int64([1, 32])), constant("flat", np.int64([1, -1, 32]))
    node = helper.make_node
    nodes = [
        node("Shape", [graph.input[0].name], ["size"], "size"),
        node("Gather", ["size", two], ["h"], "h"),
        node("Gather", ["size", three], ["w"], "w"),
        node("Div", ["h", patch], ["rows"], "rows"),
        node("Div", ["w", patch], ["columns"], "columns"),
        node("Concat", [head, "rows", "columns"], ["sizes"], "sizes", axis=0),
        node("Transpose", [table], ["channels_first"], "channels_first", perm=[0, 3, 1, 2]),
        node("Resize", ["channels_first", "", "", "sizes"], ["small"], "resize", mode="cubic"),
        node("Transpose", ["small"], ["channels_last"], "channels_last", perm=[0, 2, 3, 1]),
        node("Reshape", ["channels_last", flat], ["listed"], "listed"),
        node("Concat", [first, "listed"], ["positions"], "positions", axis=1),
    ]
    for offset, new in enumerate(nodes):
        graph.node.insert(at + offset, new)
    add.input[1] = "positions"
    onnx.checker.check_model(model)
    return model, row


def run_resized(model, row, folder, *options):
    given, calib, out = folder / "in.onnx", folder / "calib.npz", folder / "out.onnx"
    onnx.save(model, given)
    np.savez(calib, **feeds_of(row, model, *CALIBRATION))
    report = folder / "report.json"
    done = run_tool(given, out, "--calib", calib, "--no-layers", "--force", "--report", report, *options)
    assert done.returncode == 0, done.stderr
    return given, out, report, done.stdout


def test_a_table_is_resized_once(tmp_path):
    """... and every bit of the outputs is that of the file as it was."""
    model, row = resized()
    given, out, report, text = run_resized(model, row, tmp_path, "--format", "float", "--method", "none")
    before, after = (counts(path, tmp_path)[0] for path in (given, out))
    assert before["Resize"] == 1 and after["Resize"] == 0
    feeds = arrays(row["inputs"], *HELD_OUT)
    assert np.array_equal(measure.outputs(given, feeds)["logits"], measure.outputs(out, feeds)["logits"])
    stored = json.loads(report.read_text())["stored_sizes"]
    assert len(stored) == 1 and "`sizes`" in stored[0] and "sizes      1 fixed" in text
    # The table itself is not in the file resized, and all other nodes are as they were.
    written = onnx.load(out)
    names = {n.name for n in model.graph.node} - {n.name for n in written.graph.node}
    assert names == {"size", "h", "w", "rows", "columns", "sizes"}
    folded = next(t for t in written.graph.initializer if t.name == "sizes_folded")
    assert numpy_helper.to_array(folded).tolist() == [1, 32, 4, 4]
    size = feeds["pixel_values"][:, :, :8]
    for path in (given, out):
        with pytest.raises(Exception, match="dimensions"):
            measure.outputs(path, {"pixel_values": size})


def test_the_quantized_file_has_it_too(tmp_path):
    model, row = resized()
    _, out, _, _ = run_resized(model, row, tmp_path)
    assert counts(out, tmp_path)[0]["Resize"] == 0
    first = out.read_bytes()
    _, out, _, _ = run_resized(model, row, tmp_path, "--threads", "1")
    assert out.read_bytes() == first


@pytest.mark.parametrize("options, height", [(["--no-fold-sizes"], 16), ([], "height")])
def test_sizes_that_stay(options, height, tmp_path):
    model, row = resized(height=height)
    given, out, _, text = run_resized(model, row, tmp_path, "--format", "float", "--method", "none", *options)
    assert "\nsizes " not in text
    written = onnx.load(out)
    assert list(written.graph.node) == list(onnx.load(given).graph.node)
