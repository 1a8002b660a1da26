"""The operator table against ONNX's own operator history."""

import json
import os
from collections import defaultdict
from pathlib import Path

import onnx.defs
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "tmp" / "opset" / "table.json"


@pytest.fixture(scope="module")
def table():
    assert TABLE.exists(), f"{TABLE} is missing: run `cargo test --test all opset_raise::` first"
    return json.loads(TABLE.read_text())


@pytest.fixture(scope="module")
def history():
    schemas = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            schemas[schema.name][schema.since_version] = schema
    return schemas


def of_onnx(table):
    return {o["name"]: o for o in table["operators"] if not o["of_runtime"]}


def test_every_operator_and_every_change_is_in_the_table(table, history):
    expected = {
        name: (min(versions), sorted(v for v in versions if 7 < v <= table["newest"] and v != min(versions)))
        for name, versions in history.items()
        if min(versions) <= table["newest"]
    }
    expected.pop("LayerNormalization")
    assert {o["name"]: (o["first"], o["changed"]) for o in of_onnx(table).values()} == expected


def test_runtime_operators_are_none_of_onnx_at_these_versions(table, history):
    runtime = {o["name"]: (o["first"], o["changed"]) for o in table["operators"] if o["of_runtime"]}
    assert set(runtime) == {"LayerNormalization", "SimplifiedLayerNormalization"}
    for name, (first, changed) in runtime.items():
        assert (first, changed) == (1, sorted(history.get(name, [])))
    assert min(history["LayerNormalization"]) > 13


def types(schema):
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    values = [*schema.inputs, *schema.outputs]
    return [allowed.get(v.type_str, {v.type_str}) for v in values]


def attributes(schema):
    return {k: (a.required, str(a.default_value)) for k, a in schema.attributes.items()}


def incompatible(old, new):
    """Whether a node that is valid under `old` can be invalid, or mean something else, by `new`'s signature."""
    was, now = attributes(old), attributes(new)
    lost = any(k not in now for k in was)
    changed = any(k in was and was[k][1] != now[k][1] for k in now)
    demanded = any(required and not was.get(k, (False,))[0] for k, (required, _) in now.items())
    inputs, new_inputs = list(old.inputs), list(new.inputs)
    required = new_inputs[len(inputs):]
    more = any(i.option.name == "Single" for i in required)
    fewer = len(new_inputs) < len(inputs)
    narrowed = any(a - b for a, b in zip(types(old), types(new))) if len(inputs) == len(new_inputs) else False
    return new.deprecated or lost or changed or demanded or more or fewer or narrowed


# Changes of meaning that no signature shows, and one of shape.
BY_TEXT = {
    ("ConvTranspose", 11),
    ("Resize", 13),
    ("BatchNormalization", 14),
    ("RoiAlign", 16),
    ("Split", 18),
    ("GroupNormalization", 21),
    ("Attention", 24),
}


def test_every_change_of_signature_has_a_rule(table, history):
    found, expected = set(), set()
    for name, operator in of_onnx(table).items():
        found |= {(name, version) for version, _ in operator["rules"]}
        versions = history[name]
        for version in operator["changed"]:
            before = max(v for v in versions if v < version)
            if incompatible(versions[before], versions[version]):
                expected.add((name, version))
    assert found == expected | BY_TEXT


def test_every_operator_of_the_standard_has_a_constant():
    text = (ROOT / "proto" / "operators.txt").read_text()
    standard = text.split("[ai.onnx]")[1].split("[com.microsoft]")[0].split()
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert standard == sorted(known)


def test_arities_are_those_of_all_versions(history):
    """What `graph::check` refuses is refused by every version of the operator, and nothing else is."""
    limit = lambda n: "*" if n == 2**31 - 1 else str(n)  # noqa: E731
    expected = {}
    for name, versions in history.items():
        all_of = versions.values()
        fewest, most = min(s.min_input for s in all_of), max(s.max_input for s in all_of)
        outputs = min(s.min_output for s in all_of), max(s.max_output for s in all_of)
        expected[name] = " ".join([name, *map(limit, (fewest, most, *outputs))])
    lines = [line for line in (ROOT / "proto" / "arity.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == [expected[name] for name in sorted(expected)]
