"""docs/report.md and what the tool writes are the same: no key without a word, no word without a key."""

import json
import re

import numpy as np
import onnx
import pytest
from architectures import CALIBRATION, FOLDER, ROWS, feeds_of
from conftest import MODELS, TINY, TINY_LLAMA, run_tool

DOCUMENT = MODELS.parent / "docs" / "report.md"
# Keys below these are names of the model, of steps, of files.
NAMED = ("agreements", "arguments", "outputs", "filled_inputs", "digests", "seconds")
# What no run here has: no output of these ends below plain. `tests/library.rs` holds them to the document.
ELSEWHERE = {f"below_plain[].{key}" for key in ("output", "per_token", "logarithms", "sqnr_db", "plain_sqnr_db")}
# Notes are of weights that other tools wrote (test_block_forms.py).
ELSEWHERE |= {"layers[].quantized.notes[]"}
# A file, options; together they have every other key.
RUNS = {
    "budget": ("tiny", ["--keep-float", "2"]),
    "metric": ("tiny", ["--eval", str(TINY.heldout), "--labels", "labels.txt", "--min-metric", "-90%", "--no-layers"]),
    "attention": ("tiny", ["--target", "tensorrt", "--attention", "int8"]),
    "operators": ("tiny", ["--format", "qoperator", "--no-layers"]),
    "float": ("tiny", ["--format", "float"]),
    "float16": ("bert-script17-eager-float16", ["--no-layers"]),
    "functions": ("bert-script17-eager-functions", ["--no-layers"]),
    "clean": ("littered", ["--target", "tensorrt", "--clean", "--no-layers"]),
    "rotations": ("tiny-llama", ["--max-slowdown", "8", "--no-layers"]),
    "lint": ("littered", ["--target", "tensorrt", "--no-layers"]),
    "near misses": ("without a constant", ["--no-layers"]),
    "agreements": ("with a label", ["--no-layers"]),
    "embeddings": ("tiny", ["--embeddings", "int8", "--activation-bits", "6", "--no-layers"]),
    "no rotations": ("tiny-llama", ["--max-slowdown", "0", "--no-layers"]),
}


def documented():
    keys = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert len(keys) == len(set(keys)) > 80
    return set(keys)


def keys(value, path=""):
    """Every path to something that is neither an object nor a list with elements."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from keys(inner, f"{path}.{'NAME' if path in NAMED else key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value or [None]:
            yield from keys(inner, path + "[]")
    else:
        yield path, value


def source(name, folder):
    """A model and its data."""
    if name.startswith("tiny"):
        case = TINY if name == "tiny" else TINY_LLAMA
        return case.model, case.calib
    row = ROWS[name if name in ROWS else "bert-script17-eager"]
    model = onnx.load(FOLDER / row["file"])
    if name == "littered":
        # A mean that nothing reads: TensorRT refuses norms with more than one output.
        norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
        norm.output.append("mean")
    if name == "without a constant":
        # A norm whose gamma depends on an input is none that could take a scale.
        norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
        make = onnx.helper.make_node
        one = make("Cast", ["attention_mask"], ["real"], name="real", to=onnx.TensorProto.FLOAT)
        one = [one, make("ReduceMax", ["real"], ["one"], name="one", keepdims=0)]
        one.append(make("Mul", [norm.input[1], "one"], ["computed"], name="times_one"))
        for i, node in enumerate(one):
            model.graph.node.insert(i, node)
        norm.input[1] = "computed"
    if name == "with a label":
        output = model.graph.output[0].name
        model.graph.node.append(onnx.helper.make_node("ArgMax", [output], ["label"], name="label", axis=-1, keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, None))
    onnx.save(model, folder / "in.onnx")
    np.savez(folder / "calib.npz", **feeds_of(row, model, *CALIBRATION))
    return folder / "in.onnx", folder / "calib.npz"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    found = {}
    for name, (model, options) in RUNS.items():
        folder = tmp_path_factory.mktemp("report")
        path, calib = source(model, folder)
        files = folder / "report.json", folder / "report.html"
        if "labels.txt" in options:
            # A label for each two rows.
            count = len(np.load(TINY.heldout)["input_ids"]) // 2
            (folder / "labels.txt").write_text("\n".join(map(str, range(count))))
            options = [str(folder / o) if o == "labels.txt" else o for o in options]
        done = run_tool(path, folder / "out.onnx", "--calib", calib, "-q", "--report", files[0], "--report", files[1], *options)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        found[name] = json.loads(files[0].read_text()), files[1].read_text()
    return found


def test_every_key_is_documented_and_every_documented_key_exists(reports):
    known, seen = documented(), set()
    for name, (report, _) in reports.items():
        assert report["schema"] == 1
        for path, value in keys(report):
            # Null or empty stands for all that would be below it.
            if value is None:
                below = [k for k in known if k == path or k == path.rstrip("[]") or k.startswith((path + ".", path + "["))]
                assert below, f"{name}: {path} is not documented"
                seen |= {k for k in below if k == path}
            else:
                assert path in known, f"{name}: {path} is not documented"
                seen.add(path)
    assert known == seen | ELSEWHERE, f"never written: {sorted(known - seen - ELSEWHERE)}"


@pytest.mark.parametrize("name", RUNS)
def test_the_page_stands_alone(reports, name):
    report, page = reports[name]
    assert "<script" not in page and not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "url(" not in page and "@import" not in page
    for finding in report["lint"]:
        assert finding["rule"] in page
    assert len(page) < 1_000_000


def test_what_rotations_bought(reports):
    """The run and its sites tell the same: what all cost is the sum, and the page says both."""
    report, page = reports["rotations"]
    rotated = [s for s in report["sites"] if s["rotation"]]
    assert len(rotated) == report["rotations"]["sites"] > 0
    assert sum(s["rotation"]["percent"] for s in rotated) == pytest.approx(report["rotations"]["percent"])
    assert report["rotations"]["sqnr_after_db"] > report["rotations"]["sqnr_before_db"]
    widths = {x["name"]: x["k"] for x in report["linears"]}
    for site in rotated:
        (a, b), k = site["rotation"]["factors"], widths[site["linears"][0]]
        assert a * b == k and set(site["rotation"]["negative"]) < set(range(k))
        assert site["rotation"]["gain_db"] > 0 and site["sink"]
        assert f"rotated by {a} × {b}" in page
    without, page_without = reports["no rotations"]
    assert "sites rotated" in page and "sites rotated" not in page_without
    assert without["rotations"] is None and not any(s["rotation"] for s in without["sites"])
