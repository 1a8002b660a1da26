"""`onnx-osplus diff` as a user meets it: exit status, pipe and terminal, colours, other tools' models, external data."""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import termios

import numpy as np
import onnx
import pytest
from conftest import TINY, run_tool, tool_path
from onnx import numpy_helper

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    out = tmp_path_factory.mktemp("diff") / "out.onnx"
    # Weights behind a rotation are other numbers; test_rotate.py has what diff says of them.
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    return out


def on_terminal(columns, *arguments, **environment):
    """What the tool writes to a terminal of that width."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")} | environment
    process = subprocess.Popen([tool_path(), *map(str, arguments)], stdout=child, stderr=child, env=env)
    os.close(child)
    data = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:  # Linux says so at the end of a pty
            break
        if not block:
            break
        data += block
    os.close(parent)
    assert process.wait() == 0
    return data.decode().replace("\r\n", "\n")


def plain(text):
    return re.sub(r"\x1b\[\d*m", "", text)


def test_nothing_to_say_of_the_same_model():
    for options in [[], ["--stat"], ["--full"], ["--exit-code"]]:
        result = run_tool("diff", TINY.model, TINY.model, *options)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_exit_codes(quantized, tmp_path):
    assert run_tool("diff", TINY.model, quantized).returncode == 0
    assert run_tool("diff", TINY.model, quantized, "--exit-code").returncode == 1
    missing = run_tool("diff", TINY.model, tmp_path / "missing.onnx")
    assert missing.returncode == 1 and "missing.onnx" in missing.stderr
    assert run_tool("diff", TINY.model, tmp_path / "missing.onnx", "--exit-code").returncode == 2
    assert run_tool("diff", TINY.model).returncode == 2


def test_a_quantized_model_is_told_in_a_paragraph_and_few_lines(quantized):
    text = run_tool("diff", TINY.model, quantized).stdout
    assert text.startswith("12 weights quantized (float → int8 per channel). 8 Q/DQ pairs (u8) inserted.")
    assert "encoder.layer.*.attention  × 2  (* = 0–1" in text
    assert len(text.splitlines()) < 100
    full = run_tool("diff", TINY.model, quantized, "--full").stdout
    assert full.count("+ Q/DQ u8 scale=") == 8 and full.count("~ weight") == 12


def test_a_pipe_gets_no_colour_and_whole_names(quantized):
    text = run_tool("diff", TINY.model, quantized).stdout
    assert ESCAPE not in text and "…l" not in text
    names = {t.name for t in onnx.load(TINY.model).graph.initializer if "LayerNorm.weight" in t.name}
    assert any(name.split(".", 1)[1] in text for name in names)
    assert ESCAPE in run_tool("diff", TINY.model, quantized, "--color", "always").stdout


@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("options", [[], ["--stat"]])
def test_a_terminal_gets_colour_and_lines_that_fit(quantized, columns, options):
    text = on_terminal(columns, "diff", TINY.model, quantized, *options)
    assert ESCAPE in text
    assert max(len(line) for line in plain(text).splitlines()) <= columns
    assert ESCAPE not in on_terminal(columns, "diff", TINY.model, quantized, *options, NO_COLOR="1")
    assert ESCAPE not in on_terminal(columns, "diff", TINY.model, quantized, *options, "--color", "never")


def test_json(quantized):
    result = json.loads(run_tool("diff", TINY.model, quantized, "--json").stdout)
    assert result["schema"] == 1 and result["same"] is False
    weights = [c for c in result["changes"] if c["kind"] == "weight"]
    assert len(weights) == 12 and all(c["after"]["type"].startswith("int8[") for c in weights)
    arrays = {t.name: t for t in onnx.load(TINY.model).graph.initializer}
    for change in result["changes"]:
        if change["kind"] == "constant" and change["sign"] == "changed":
            array = numpy_helper.to_array(arrays[change["name"]])
            assert change["before"]["min"] == pytest.approx(array.min()) and change["before"]["max"] == pytest.approx(array.max())
    same = json.loads(run_tool("diff", TINY.model, TINY.model, "--json").stdout)
    assert same["same"] is True and same["changes"] == []


def test_the_largest_change_is_numpys(quantized):
    """Of a weight: dequantized with its scale along its axis."""
    after = onnx.load(quantized)
    arrays = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(TINY.model).graph.initializer}
    found = json.loads(run_tool("diff", TINY.model, quantized, "--json").stdout)
    checked = 0
    for change in found["changes"]:
        if change["kind"] == "weight":
            name = change["name"]
            w = arrays[f"{name}_quantized"].astype(np.float64) * arrays[f"{name}_scale"]
            assert change["largest_change"] == pytest.approx(np.abs(w - before[name]).max(), rel=1e-6)
            checked += 1
    assert checked == 12


def test_external_data(quantized, tmp_path):
    model = onnx.load(TINY.model)
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert run_tool("diff", TINY.model, path, "--exit-code").returncode == 0
    (a, b) = (run_tool("diff", p, quantized).stdout for p in (TINY.model, path))
    assert a == b


def test_the_number_of_threads_does_not_matter(quantized):
    one = subprocess.run([tool_path(), "diff", TINY.model, quantized], capture_output=True, env=os.environ | {"RAYON_NUM_THREADS": "1"})
    assert one.stdout.decode() == run_tool("diff", TINY.model, quantized).stdout


def test_a_real_model(l6, job):
    case = l6["fused"]
    rotated = job(case)
    text = run_tool("diff", case.model, rotated.path).stdout
    forms = [site["rotation"]["form"] for site in rotated.report["sites"] if site["rotation"]]
    count = sum(form != "heads" for form in forms)
    assert count > 0 and f" {count} rotations inserted." in " ".join(text.splitlines()[:3])
    # Which blocks have rotations differs; without them all are alike.
    text = run_tool("diff", case.model, job(case, "--max-slowdown", "0").path).stdout
    assert text.startswith("36 weights quantized (float → int8 per channel). 24 Q/DQ pairs (u8) inserted.")
    assert "encoder.layer.*.attention  × 6" in text and len(text.splitlines()) < 120


@pytest.mark.parametrize("dynamic", [True, False])
def test_another_tools_quantization(dynamic, tmp_path):
    """ONNX Runtime's: MatMulInteger with scales computed at run time, or QLinearMatMul."""
    import onnxruntime.quantization as quantization
    out = tmp_path / "out.onnx"
    source = tmp_path / "in.onnx"
    shutil.copy(TINY.model, source)
    if dynamic:
        quantization.quantize_dynamic(source, out, op_types_to_quantize=["MatMul"], per_channel=True)
    else:
        data = [{k: v[:1] for k, v in np.load(TINY.calib).items()}]
        names = {i.name for i in onnx.load(source).graph.input}
        fill = {n: np.zeros_like(data[0]["input_ids"]) for n in names - set(data[0])}

        class Reader(quantization.CalibrationDataReader):
            rows = iter([{**data[0], **fill}])

            def get_next(self):
                return next(self.rows, None)

        quantization.quantize_static(source, out, Reader(), quant_format=quantization.QuantFormat.QOperator, op_types_to_quantize=["MatMul"])
    text = run_tool("diff", source, out).stdout
    assert "MatMul → " + ("MatMulInteger" if dynamic else "QLinearMatMul") in text
    assert re.search(r"~ weight  \S+  float\[\d+, \d+\].* → u?int8", text)
