"""`onnx-osplus DIR OUTDIR`: a folder as a hub has it, quantized."""

import json
import shutil

import encoder_decoder
import measure
import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import FOLDER, ROWS, feeds_of
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


def decoded(folder, feeds, steps=10):
    """Tokens that the float decoder chooses in ONNX Runtime, and what it is fed with beside them."""
    encoder = measure.session(folder / "onnx" / "encoder_model.onnx")
    states = encoder.run(None, feeds)[0]
    given = {"encoder_hidden_states": states, "encoder_attention_mask": feeds["attention_mask"]}
    decoder = measure.session(folder / "onnx" / "decoder_model.onnx")
    tokens = np.full((len(states), 1), 5, np.int64)
    for _ in range(steps):
        logits = decoder.run(["logits"], {**given, "input_ids": tokens})[0]
        tokens = np.c_[tokens, logits[:, -1].argmax(-1)]
    return tokens, given


def test_decoders_are_fed_from_the_encoder(folder, texts, tmp_path):
    (folder / "onnx" / "model.onnx").unlink()
    encoder_decoder.write(folder / "onnx", "decoder_model", "decoder_with_past_model")
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 5, "pad_token_id": 0}))
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = run_tool(folder, out, "--calib", texts, "--report", report, "--no-layers")
    assert done.returncode == 0, done.stderr
    assert "copied as it is" not in done.stderr
    models = ["encoder_model", "decoder_model", "decoder_with_past_model"]
    assert all(f"onnx/{name}_quantized.onnx" in names(out) for name in models)
    reports = {name: json.loads((tmp_path / f"report-{name}.json").read_text()) for name in models}
    for name in models[1:]:
        told = reports[name]
        assert {l["status"] for l in told["linears"]} == {"quantized"} and len(told["linears"]) == 6, name
        assert told["settings"]["calibration_rows"] == 35 and told["settings"]["held_out_rows"] == 5
        assert any("the encoder's outputs" in note for note in told["notes"])
        assert told["outputs"]["logits"]["sqnr_db"] > told["outputs"]["logits"]["plain_sqnr_db"] - 0.1
    # On sentences that the tool has not seen, in ONNX Runtime.
    feeds = expected(out, sentences(100)[1::2], names=["input_ids", "attention_mask"])
    tokens, given = decoded(folder, feeds)
    full = {**given, "input_ids": tokens}
    both = [measure.session(path).run(None, full) for path in (folder / "onnx" / "decoder_model.onnx", out / "onnx" / "decoder_model_quantized.onnx")]
    assert measure.sqnr(both[0][0], both[1][0]) > 20
    # One step behind a cache gives what the whole gives.
    before = measure.session(folder / "onnx" / "decoder_model.onnx").run(None, {**given, "input_ids": tokens[:, :-1]})
    past = {"past_key_values.0.decoder.key": before[1], "past_key_values.0.encoder.key": before[2]}
    step = {**past, "input_ids": tokens[:, -1:], "encoder_attention_mask": given["encoder_attention_mask"]}
    last = measure.session(out / "onnx" / "decoder_with_past_model_quantized.onnx").run(None, step)[0]
    assert measure.sqnr(both[0][0][:, -1:], last) > 20


def test_a_merged_decoder_is_fed_in_both_branches(folder, texts, tmp_path):
    (folder / "onnx" / "model.onnx").unlink()
    encoder_decoder.write(folder / "onnx", "decoder_model_merged")
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = run_tool(folder, out, "--calib", texts, "--report", report, "--no-layers")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "report-decoder_model_merged.json").read_text())
    assert len(told["linears"]) == 12 and {l["status"] for l in told["linears"]} == {"quantized"}
    assert any("decoder_start_token_id" in note for note in told["notes"]), "what was not told is said"
    assert told["settings"]["calibration_rows"] + told["settings"]["held_out_rows"] == 80


@pytest.mark.parametrize("pair", [("t5_encoder-dynamo18-eager", "t5_decoder-script14-eager"), ("whisper_encoder-script13-eager", "whisper_decoder-script17-sdpa")])
def test_exports_of_both_halves(pair, tmp_path):
    hub = tmp_path / "hub"
    hub.mkdir()
    row = ROWS[pair[0]]
    np.savez(tmp_path / "calib.npz", **feeds_of(row, onnx.load(FOLDER / row["file"]), 32, 1))
    for name, of in zip(("encoder_model", "decoder_model"), pair):
        shutil.copy(FOLDER / ROWS[of]["file"], hub / f"{name}.onnx")
    (hub / "config.json").write_text(json.dumps({"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}))
    done = run_tool(hub, tmp_path / "out", "--calib", tmp_path / "calib.npz", "--report", tmp_path / "report.json", "--no-layers")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "report-decoder_model.json").read_text())
    assert len(told["linears"]) == ROWS[pair[1]]["block_linears"] + ROWS[pair[1]]["head_linears"] and told["settings"]["calibration_rows"] + told["settings"]["held_out_rows"] == 32
