"""docs/schemas: what the tool prints is valid, and every key of it is described there."""

import copy
import json

import jsonschema
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
