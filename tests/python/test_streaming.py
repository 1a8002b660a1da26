"""Runs block by block: the result is one that the whole-model path could have written, its figures are those of the file, and an
interrupted run goes on to the same bytes."""

import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import replace

import architectures
import build_decoder
import numpy as np
import onnx
import pytest
import runtimes
from conftest import run_tool, tool_path

SIZE = replace(build_decoder.SIZES["tiny"], layers=3)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """decoder(kind, dtype) → (model, calibration)"""
    made = {}

    def make(kind, dtype="float32", tied=True):
        key = (kind, dtype, tied)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(map(str, key)))
            build_decoder.build(kind, SIZE, folder / "in.onnx", dtype, tied)
            np.savez(folder / "calib.npz", **build_decoder.calibration(SIZE, 16, 40))
            held = build_decoder.calibration(SIZE, 16, 40)
            np.savez(folder / "held.npz", **{name: array[[7, 15]] for name, array in held.items()})
            made[key] = folder / "in.onnx", folder / "calib.npz"
        return made[key]

    return make


def quantize(model, calib, out, *options, status=0):
    report = out.with_suffix(".json")
    result = run_tool(model, out, "--calib", calib, "--report", report, "--no-layers", "--force", *options)
    assert result.returncode == status, result.stderr
    return json.loads(report.read_text()) if status == 0 else result.stderr


def digest(path):
    files = [path, path.with_name(path.name + ".data")]
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.exists()]


def quantized(report):
    return sorted(linear["name"] for linear in report["linears"] if linear["status"] == "quantized")


@pytest.mark.parametrize(
    "kind, dtype", [("llama", "float32"), ("llama", "bfloat16"), ("opt", "float16"), ("bloom", "float32")]
)
def test_decoders(kind, dtype, decoder, tmp_path):
    model, calib = decoder(kind, dtype)
    whole = quantize(model, calib, tmp_path / "whole.onnx", "--streaming", "off")
    streamed = quantize(model, calib, tmp_path / "streamed.onnx", "--streaming", "on")
    assert quantized(streamed) == quantized(whole)
    assert not (tmp_path / "streamed.onnx.work").exists()
    ours, theirs = streamed["outputs"]["logits"], whole["outputs"]["logits"]
    # The plain stream is plain min-max quantization of the whole model.
    assert ours["plain_sqnr_db"] == pytest.approx(theirs["plain_sqnr_db"], abs=0.02)
    assert ours["sqnr_db"] > ours["plain_sqnr_db"] + 3
    # Parts are judged by themselves.
    assert ours["sqnr_db"] > theirs["sqnr_db"] - 3
    # What is claimed is what the file does on the rows that were held out.
    result = run_tool("verify", model, tmp_path / "streamed.onnx", "--calib", calib.with_name("held.npz"), "--no-layers", "--json", "-")
    assert json.loads(result.stdout)["outputs"][0]["sqnr_db"] == pytest.approx(ours["sqnr_db"], abs=0.05)
    onnx.checker.check_model(str(tmp_path / "streamed.onnx"))
    if dtype != "bfloat16":
        runtimes.onnx_runtime_session(tmp_path / "streamed.onnx")


STREAMED = [
    "bert-script14-sdpa",
    "bert-script17-eager-functions",
    "gpt2-dynamo20-sdpa-past",
    "llama-script17-eager-optimizer0",
    "phi-script17-eager-optimizer0",
    "t5_encoder-script13-eager",
    "vit-script13-eager",
    "whisper_decoder-script17-sdpa",
]


@pytest.mark.parametrize("name", STREAMED)
def test_exports(name, tmp_path):
    row = architectures.ROWS[name]
    path = architectures.FOLDER / row["file"]
    model = onnx.load(path)
    np.savez(tmp_path / "calib.npz", **architectures.feeds_of(row, model, *architectures.CALIBRATION))
    whole = quantize(path, tmp_path / "calib.npz", tmp_path / "whole.onnx", "--streaming", "off")
    streamed = quantize(path, tmp_path / "calib.npz", tmp_path / "streamed.onnx", "--streaming", "on")
    assert quantized(streamed) == quantized(whole)
    assert not streamed["below_plain"]
    runtimes.onnx_runtime_session(tmp_path / "streamed.onnx")
    # Nodes that were not touched keep names and order.
    names = [node.name for node in model.graph.node]
    left = [node.name for node in onnx.load(tmp_path / "streamed.onnx").graph.node if node.name in set(names)]
    if not model.functions:
        assert left == [name for name in names if name in set(left)]


@pytest.mark.parametrize("name", ["llama-script17-eager-merged", "albert-script14-sdpa"])
def test_what_cannot_be_cut_says_so(name, tmp_path):
    row = architectures.ROWS[name]
    path = architectures.FOLDER / row["file"]
    np.savez(tmp_path / "calib.npz", **architectures.feeds_of(row, onnx.load(path), *architectures.CALIBRATION))
    said = quantize(path, tmp_path / "calib.npz", tmp_path / "out.onnx", "--streaming", "on", status=1)
    assert "cannot be worked on block by block" in said
    assert "--streaming off" in said
    assert not list(tmp_path.glob("out.onnx*"))
    # Left to itself, the tool runs it as a whole, and says why it needs more memory than it was given.
    report = quantize(path, tmp_path / "calib.npz", tmp_path / "out.onnx", "--memory", "0.1MB")
    assert any("run as a whole all the same" in note for note in report["notes"])


def test_little_memory_streams_by_itself(decoder, tmp_path):
    model, calib = decoder("llama")
    report = quantize(model, calib, tmp_path / "out.onnx", "--memory", "0.1MB")
    assert any("block by block" in note for note in report["notes"])
    report = quantize(model, calib, tmp_path / "whole.onnx", "--memory", "64GB")
    assert not any("block by block" in note for note in report["notes"])


def interrupted(model, calib, out, part):
    """A run that is killed as soon as a part is done; whether it was still at work."""
    command = [tool_path(), model, out, "--calib", calib, "--streaming", "on", "--no-metadata", "-q"]
    process = subprocess.Popen([str(c) for c in command])
    done = out.with_name(out.name + ".work") / f"part-{part:03}" / "done.json"
    while process.poll() is None and not done.exists():
        time.sleep(0.005)
    process.kill()
    process.wait()
    return done.exists()


def test_an_interrupted_run_goes_on_to_the_same_bytes(decoder, tmp_path):
    model, calib = decoder("opt", "float16")
    options = ["--streaming", "on", "--no-metadata"]
    quantize(model, calib, tmp_path / "once.onnx", *options)
    parts = 0
    while interrupted(model, calib, tmp_path / "out.onnx", parts):
        work = tmp_path / "out.onnx.work"
        assert not (tmp_path / "out.onnx").exists()
        if parts == 1:
            # Not by accident.
            said = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--streaming", "on").stderr
            assert "--resume" in said
            said = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--resume", "--seed", "5").stderr
            assert "other settings" in said
            assert work.exists()
        result = run_tool(model, tmp_path / "out.onnx", "--calib", calib, "--resume", "--no-metadata")
        assert result.returncode == 0, result.stderr
        assert not work.exists()
        assert digest(tmp_path / "out.onnx") == digest(tmp_path / "once.onnx"), parts
        (tmp_path / "out.onnx").unlink()
        parts += 2
    assert parts > 2
    shutil.rmtree(tmp_path / "out.onnx.work", ignore_errors=True)


def test_threads_change_no_byte(decoder, tmp_path):
    model, calib = decoder("bloom")
    for threads in (1, 2):
        quantize(model, calib, tmp_path / f"{threads}.onnx", "--streaming", "on", "--threads", threads)
    assert digest(tmp_path / "1.onnx") == digest(tmp_path / "2.onnx")


def test_a_figure_that_is_not_reached_is_an_error(decoder, tmp_path):
    model, calib = decoder("llama")
    said = quantize(model, calib, tmp_path / "out.onnx", "--streaming", "on", "--min-sqnr", "90", status=1)
    assert "90 dB were asked for" in said
    assert "--resume goes on" in said
    assert not (tmp_path / "out.onnx").exists()
