"""`onnx-osplus DIR OUTDIR`: a folder as a hub has it, quantized."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from conftest import run_tool
from test_text_data import KINDS, expected, sentences, text_model


@pytest.fixture
def folder(tmp_path):
    """A folder with tokenizer, configuration, weights of other frameworks, and a model in onnx/."""
    folder = tmp_path / "hub"
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    (folder / ".git").mkdir()
    tokenizer, config = KINDS["wordpiece"]()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 64}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 512}))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "model.safetensors").write_bytes(b"weights")
    text_model(folder / "onnx" / "model.onnx")
    (folder / "onnx" / "model_fp16.onnx").write_bytes(b"another form")
    return folder


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(sentences(40)))
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


COPIED = ["1_Pooling/config.json", "config.json", "tokenizer.json", "tokenizer_config.json"]


def test_a_folder_becomes_a_folder(folder, texts, tmp_path):
    out = tmp_path / "new" / "out"
    done = run_tool(folder, out, "--calib", texts, "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert names(out) == sorted([*COPIED, "onnx/model_quantized.onnx"])
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in COPIED)
    assert "copied 4 files" in done.stdout
    onnxruntime.InferenceSession(out / "onnx" / "model_quantized.onnx").run(None, expected(out, sentences(5)))
    assert (tmp_path / "report.json").exists()
    # The same model by itself gives the same bytes.
    one = tmp_path / "one.onnx"
    assert run_tool(folder / "onnx" / "model.onnx", one, "--calib", texts).returncode == 0
    assert one.read_bytes() == (out / "onnx" / "model_quantized.onnx").read_bytes()
    # What is there is not overwritten, until it is asked for.
    done = run_tool(folder, out, "--calib", texts)
    assert done.returncode == 1 and "exists; use --force" in done.stderr
    assert run_tool(folder, out, "--calib", texts, "--force", "-q").returncode == 0
    (out / "config.json").write_text("{}")
    done = run_tool(folder, out, "--calib", texts, "--name", "int8")
    assert done.returncode == 1 and "config.json exists, and is another" in done.stderr


def test_beside_the_float_model(folder, texts):
    before = names(folder)
    done = run_tool(folder, folder, "--calib", texts, "--name", "model_int8.onnx")
    assert done.returncode == 0, done.stderr
    assert names(folder) == sorted([*before, "onnx/model_int8.onnx"])
    # It is not taken for another float model.
    done = run_tool(folder, folder, "--calib", texts)
    assert done.returncode == 0 and names(folder) == sorted([*before, "onnx/model_int8.onnx", "onnx/model_quantized.onnx"])


def test_a_model_beside_its_configuration(folder, texts, tmp_path):
    shutil.move(folder / "onnx" / "model.onnx", folder / "model.onnx")
    shutil.rmtree(folder / "onnx")
    out = folder / "quantized"
    done = run_tool(folder, out, "--calib", texts)
    assert done.returncode == 0, done.stderr
    assert names(out) == sorted([*COPIED, "onnx/model_quantized.onnx"])


def test_several_models_of_one_folder(folder, texts, tmp_path):
    """Those that the data suit are quantized; another is copied as it is, with the reason."""
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "encoder_model.onnx")
    text_model(folder / "onnx" / "decoder_model_merged.onnx", ["input_ids", "attention_mask"])
    text_model(folder / "onnx" / "other.onnx", ["input_ids", "speaker"])
    out = tmp_path / "out"
    done = run_tool(folder, out, "--calib", texts, "--report", tmp_path / "report.json", "--no-layers")
    assert done.returncode == 0, done.stderr
    models = ["onnx/decoder_model_merged_quantized.onnx", "onnx/encoder_model_quantized.onnx", "onnx/other.onnx"]
    assert names(out) == sorted([*COPIED, *models])
    assert "other.onnx is copied as it is: input speaker is not in" in done.stderr
    assert (out / "onnx" / "other.onnx").read_bytes() == (folder / "onnx" / "other.onnx").read_bytes()
    assert (tmp_path / "report-encoder_model.json").exists() and (tmp_path / "report-decoder_model_merged.json").exists()


def test_folders_that_are_none(folder, texts, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_tool(empty, tmp_path / "out", "--calib", texts)
    assert done.returncode == 1 and "holds no float model" in done.stderr
    file = tmp_path / "file"
    file.write_text("")
    done = run_tool(folder, file, "--calib", texts)
    assert done.returncode == 1 and "is no folder" in done.stderr and file.read_text() == ""
    done = run_tool(folder / "onnx" / "model.onnx", tmp_path / "out.onnx", "--calib", texts, "--name", "x")
    assert done.returncode == 1 and "--name names the models of a folder" in done.stderr
    np.savez(tmp_path / "wrong.npz", other=np.zeros((8, 4)))
    done = run_tool(folder, tmp_path / "out", "--calib", tmp_path / "wrong.npz")
    assert done.returncode == 1 and not names(tmp_path / "out")


def test_a_quantizer_as_optimum_has_it(folder, texts, tmp_path, package):
    from onnx_osplus.optimum import OsplusQuantizer

    quantizer = OsplusQuantizer.from_pretrained(folder)
    out = tmp_path / "out"
    result = quantizer.quantize(out, texts, tokenizer=folder)
    assert result.path == out / "model_quantized.onnx" and result.sqnr_db["y"] > 10
    assert names(out) == ["config.json", "model_quantized.onnx", "tokenizer.json", "tokenizer_config.json"]
    text_model(folder / "onnx" / "other.onnx")
    with pytest.raises(package.OsplusError, match="found model.onnx, other.onnx"):
        OsplusQuantizer.from_pretrained(folder)
    assert OsplusQuantizer.from_pretrained(folder, file_name="other.onnx").model_path.stem == "other"
