"""Models as ONNX Runtime GenAI's builder leaves them: caches whose head size is a name, and a configuration that names the model."""

import json

import block_forms
import decoders
import numpy as np
import onnx
import pytest
from conftest import run_tool
from onnx import helper, numpy_helper, shape_inference

ROWS, TOKENS = 16, 8


def opened(model):
    """The model with a name for the last axis of every cache."""
    for info in model.graph.input:
        if info.name.startswith("past_key_values"):
            info.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    return model


def packed(model):
    """Queries, keys and values from one Linear with a Split behind it."""
    arrays = {t.name: t for t in model.graph.initializer}
    nodes, projections = list(model.graph.node), []
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "MatMul" or node.input[1].split(".")[-2] not in ("q_proj", "k_proj", "v_proj"):
            model.graph.node.append(node)
            continue
        projections.append(node)
        if len(projections) == 3:
            weights = [numpy_helper.to_array(arrays[p.input[1]]) for p in projections]
            at = node.input[1].removesuffix("v_proj.weight")
            sizes = np.array([w.shape[1] for w in weights])
            constants = {f"{at}qkv.weight": np.concatenate(weights, 1), f"{at}sizes": sizes}
            model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
            model.graph.node.append(helper.make_node("MatMul", [node.input[0], f"{at}qkv.weight"], [f"{at}qkv"], f"/{at}qkv"))
            outputs = [p.output[0] for p in projections]
            model.graph.node.append(helper.make_node("Split", [f"{at}qkv", f"{at}sizes"], outputs, f"/{at}Split", axis=-1))
            projections = []
    return model


def joined(_):
    """The past is an input of Concat, and the shape of what it is joined with stands in the file."""
    return shape_inference.infer_shapes(decoders.decoder(past=True))


FORMS = {"separate": lambda model: model, "packed": packed, "joined": joined}


@pytest.mark.parametrize("form", FORMS)
def test_caches_of_a_named_head_size_are_filled(form, tmp_path):
    model = opened(FORMS[form](block_forms.genai_model()[0]))
    ids = np.random.default_rng(1).integers(0, 16, (ROWS, TOKENS))
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    done = run_tool(tmp_path / "in.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "data.npz")
    assert done.returncode == 0, done.stderr
    assert " 0 skipped" in done.stdout


def test_integers_tell_the_head_size_too(tmp_path):
    made, _ = block_forms.nbits(4, 32, "packed")(opened(block_forms.genai_model()[0]))
    onnx.save(made, tmp_path / "made.onnx")
    inspected = run_tool("inspect", tmp_path / "made.onnx")
    assert inspected.returncode == 0 and "the model was not run" not in inspected.stdout


def test_the_result_has_the_name_that_the_configuration_gives(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    onnx.save(opened(block_forms.genai_model()[0]), folder / "model.onnx")
    config = json.dumps({"model": {"decoder": {"filename": "model.onnx"}}})
    (folder / "genai_config.json").write_text(config)
    ids = np.random.default_rng(1).integers(0, 16, (ROWS, TOKENS))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    done = run_tool(folder, out, "--calib", tmp_path / "data.npz", "--preset", "llm")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["genai_config.json", "model.onnx"]
    assert (out / "genai_config.json").read_text() == config
    assert any(node.op_type == "MatMulNBits" for node in onnx.load(out / "model.onnx").graph.node)
    for words in ([out, "--name", "int8"], [folder]):
        done = run_tool(folder, *words, "--calib", tmp_path / "data.npz", "--force")
        assert done.returncode == 1 and "genai_config.json names its models" in done.stderr
