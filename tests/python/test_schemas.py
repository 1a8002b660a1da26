"""docs/schemas: what the tool prints is valid, and every key of it is described there."""

import copy
import json

import jsonschema
import numpy as np
import pytest
from conftest import MODELS, ROOT, TINY, TINY_LLAMA, run_tool
from test_report import documented, reports  # noqa: F401  (a fixture)

FOLDER = ROOT / "docs" / "schemas"
QUANTIZED = MODELS / "tiny" / "model.onnx"


def schema(name):
    value = json.loads((FOLDER / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(value)
    return value


def strict(value):
    """The schema without leave for keys that it does not know."""
    value = copy.deepcopy(value)

    def close(part):
        if isinstance(part, dict):
            if "properties" in part:
                part.setdefault("additionalProperties", False)
            for inner in part.values():
                close(inner)
        elif isinstance(part, list):
            for inner in part:
                close(inner)

    close(value)
    return jsonschema.Draft202012Validator(value)


def paths(part, path=""):
    for key, inner in part.get("properties", {}).items():
        yield from paths(inner, f"{path}.{key}".lstrip("."))
    if isinstance(part.get("additionalProperties"), dict):
        yield from paths(part["additionalProperties"], path + ".NAME")
    if "items" in part:
        yield from paths(part["items"], path + "[]")
    if not {"properties", "items"} & set(part) and not isinstance(part.get("additionalProperties"), dict):
        yield path


def test_reports_are_valid(reports):  # noqa: F811
    validator = strict(schema("report"))
    for name, (report, _) in reports.items():
        errors = [f"{name}: {list(error.path)}: {error.message[:200]}" for error in validator.iter_errors(report)]
        assert errors == []
    broken = json.loads(json.dumps(report))
    broken["schema"] = 2
    assert not validator.is_valid(broken)
    del broken["schema"]
    assert not validator.is_valid(broken)


def test_the_schema_of_reports_has_the_keys_of_the_document():
    assert set(paths(schema("report"))) == documented()


def test_diffs_are_valid(tmp_path):
    out = tmp_path / "out.onnx"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    validator = strict(schema("diff"))
    for pair in [(TINY.model, out), (out, TINY.model), (TINY.model, TINY.model), (TINY.model, TINY_LLAMA.model)]:
        value = json.loads(run_tool("diff", *pair, "--json").stdout)
        assert [error.message for error in validator.iter_errors(value)] == []
    assert not validator.is_valid({**value, "same": "no"})


@pytest.mark.parametrize("target", ["ort", "tensorrt", "openvino", "portable"])
def test_findings_are_valid(target, tmp_path):
    validator = strict(schema("lint"))
    other = MODELS / "tiny-llama" / "model.onnx"
    (tmp_path / "none.onnx").write_bytes(b"none")
    for files in [[QUANTIZED], [QUANTIZED, other, tmp_path / "none.onnx"], sorted((ROOT / "tests" / "data").glob("*.onnx"))]:
        value = json.loads(run_tool("lint", *files, "--target", target, "--json").stdout)
        assert [error.message for error in validator.iter_errors(value)] == []


def test_comparisons_are_valid(tmp_path):
    """Of this tool's models and of one that is quantized in another form, with and without labels and Linears."""
    validator = strict(schema("verify"))
    rows = len(np.load(TINY.heldout)["input_ids"])
    (tmp_path / "labels.txt").write_text("\n".join(str(n % 7) for n in range(rows // 2)))
    labels = ["--labels", tmp_path / "labels.txt", "--min-metric", "-99%"]
    seen = set()
    for name, options, more in [
        ("int8", [], labels),
        ("groups", ["--weight-only", "--weight-bits", "4", "--weight-granularity", "group:32"], []),
        ("per token", ["--activation-granularity", "per-token"], ["--no-layers"]),
    ]:
        out = tmp_path / f"{name}.onnx"
        done = run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0", *options)
        assert done.returncode == 0, done.stderr
        done = run_tool("verify", TINY.model, out, "--calib", TINY.heldout, "--json", "-", *more)
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        assert [f"{list(e.path)}: {e.message[:200]}" for e in validator.iter_errors(value)] == []
        seen |= {key for key, of in value.items() if of}
    assert {"metric", "layers", "outputs"} <= seen
    assert not validator.is_valid({**value, "rows": "no"}) and not validator.is_valid({**value, "schema": 2})


def test_what_inspect_sees_is_valid(tmp_path):
    validator = strict(schema("inspect"))
    out = tmp_path / "out.onnx"
    assert run_tool(TINY_LLAMA.model, out, "--calib", TINY_LLAMA.calib, "-q").returncode == 0
    exports = sorted((MODELS / "architectures").glob("*.onnx"))[::12]
    for command in [[TINY.model, "--calib", TINY.calib], [TINY_LLAMA.model, "--calib", TINY_LLAMA.calib], [out], *([path] for path in exports)]:
        done = run_tool("inspect", *command, "--json", "-")
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        assert [f"{command[0]}: {list(e.path)}: {e.message[:200]}" for e in validator.iter_errors(value)] == []
    assert not validator.is_valid({**value, "linears": 3})
