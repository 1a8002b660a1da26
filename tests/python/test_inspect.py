"""`onnx-osplus inspect`: what it says of models that are known, float and quantized, with data and without."""

import json
import re

import numpy as np
import onnx
import pytest
from conftest import MODELS, TINY, TINY_LLAMA, run_tool

EVERY = sorted(p for p in (MODELS / "architectures").glob("*.onnx"))
# One length is fixed in the graph and not stated: eight zeros do not run, and the sites are those of the graph alone.
DEGRADED = ["t5_decoder-script14-eager"]


def inspect(model, *options):
    result = run_tool("inspect", model, "--json", "-", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_architecture_of_tiny_bert():
    seen = inspect(TINY.model)
    proto = onnx.load(TINY.model)
    assert seen["schema"] == 1 and seen["model"]["nodes"] == len(proto.graph.node)
    assert seen["model"]["parameters"] == sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    assert seen["architecture"] == {
        "norms": {"LayerNormalization": 5},
        "attentions": 2,
        "hidden": 64,
        "heads": 4,
        "blocks": [{"name": "encoder/layer", "count": 2, "linears": 12}],
    }
    assert len(seen["linears"]) == 12 and len(seen["sites"]) == 8
    assert {s["kind"] for s in seen["sites"]} == {"LayerNormalization", "commuted", "explicit"}
    assert seen["rows"] == 0 and all(s["outliers"] is None and s["damage"] is None for s in seen["sites"])
    assert seen["provenance"] == {} and seen["notes"] == []


def test_outliers_are_those_of_the_data():
    """Compared with numpy on values that ONNX Runtime gives, padding left out."""
    from test_verify import feeds, run

    seen = inspect(TINY.model, "--calib", TINY.calib)
    feed = feeds(TINY.model, TINY.calib)
    real = feed["attention_mask"] == 1
    sites = {s["value"]: s["outliers"] for s in seen["sites"]}
    values = run(onnx.load(TINY.model), feed, list(sites))
    assert seen["rows"] == len(real)
    for name, found in sites.items():
        low, high = values[name][real].min(0), values[name][real].max(0)
        magnitude = np.maximum(abs(low), abs(high))
        assert found["largest"] == pytest.approx(magnitude.max(), rel=1e-4)
        assert found["median"] == pytest.approx(np.median(magnitude), rel=1e-4)
        assert found["ratio"] == pytest.approx(magnitude.max() / np.median(magnitude), rel=1e-4)
        assert [c["channel"] for c in found["channels"]] == list(np.argsort(-magnitude, kind="stable")[:3])
        top = magnitude.argmax()
        asymmetry = min(abs(high[top] + low[top]) / (high[top] - low[top]), 1)
        assert found["asymmetry"] == pytest.approx(asymmetry, abs=1e-3)


def test_outlier_tokens_are_those_of_the_data(tmp_path):
    """Three planted words are found by row, position, id, channel and size; compared with numpy, padding left out."""
    from test_verify import feeds, run

    model = onnx.load(TINY.model)
    table = next(t for t in model.graph.initializer if "word_embeddings" in t.name)
    words = onnx.numpy_helper.to_array(table).copy()
    data = dict(np.load(TINY.calib))
    planted = {401: (3, 5), 402: (11, 0), 403: (20, 9)}  # id → row and position
    for i, (word, (row, position)) in enumerate(planted.items()):
        words[word] *= 40 - 10 * i
        data["input_ids"] = np.where(data["input_ids"] == word, 7, data["input_ids"])
        data["input_ids"][row, position], data["attention_mask"][row, position] = word, 1
    table.CopyFrom(onnx.numpy_helper.from_array(words, table.name))
    # Without the norm in front of them, the Linears of the first layer see the embeddings themselves.
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
    for node in model.graph.node:
        if node.op_type == "MatMul" and "layer.0/attention/self" in node.name:
            node.input[:] = [norm.input[0] if v == norm.output[0] else v for v in node.input]
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", **data)

    seen = inspect(tmp_path / "model.onnx", "--calib", tmp_path / "calib.npz")
    site = next(s for s in seen["sites"] if s["value"] == norm.input[0])["outliers"]
    feed = feeds(tmp_path / "model.onnx", tmp_path / "calib.npz")
    value = run(model, feed, [norm.input[0]])[norm.input[0]]
    size = abs(value).max(-1)
    median = np.median(size[feed["attention_mask"] == 1])
    assert site["median_token"] == pytest.approx(median, rel=0.05)
    assert site["token_ratio"] == pytest.approx(size.max() / median, rel=0.05) and site["token_ratio"] > 8
    found = {t["id"]: t for t in site["tokens"]}
    assert found.keys() == planted.keys()
    for word, place in planted.items():
        token = found[word]
        assert (token["row"], token["position"]) == place
        assert token["channel"] == abs(value[place]).argmax()
        assert token["value"] == pytest.approx(value[place][token["channel"]], rel=1e-4)
        assert token["ratio"] == pytest.approx(size[place] / site["median_token"], rel=1e-4)
    for threads in (1, 3):
        again = inspect(tmp_path / "model.onnx", "--calib", tmp_path / "calib.npz", "--threads", threads, "--batch", 3)
        assert [s["outliers"]["tokens"] for s in again["sites"]] == [
            [pytest.approx(t, rel=1e-4) for t in s["outliers"]["tokens"]] for s in seen["sites"]
        ]
    text = run_tool("inspect", tmp_path / "model.onnx", "--calib", tmp_path / "calib.npz").stdout
    start = text[text.index("tokens     that stick out") :]
    row = next(line.split() for line in start.splitlines() if line.endswith(norm.input[0]))
    assert row[2:5] == ["3", "5", "401"], start


def test_the_damage_is_what_plain_quantization_does(job):
    """Within the accuracy of a cross-fitted sample: what verify measures of the plain model, fed."""
    seen = inspect(TINY.model, "--calib", TINY.calib)
    arguments = ("verify", TINY.model, job(TINY, "--method", "none").path, "--calib", TINY.heldout, "--json", "-")
    layers = {x["name"]: x["fed"] for x in json.loads(run_tool(*arguments).stdout)["layers"]}
    for site in seen["sites"]:
        measured = [layers[name] for name in site["linears"]]
        signal, error = (sum(x[key] for x in measured) for key in ("signal", "error"))
        assert site["damage"]["sqnr_db"] == pytest.approx(10 * np.log10(signal / error), abs=4), site["value"]


def test_fewer_bits_and_symmetric_targets_do_more_damage():
    worst = lambda *options: min(  # noqa: E731
        s["damage"]["sqnr_db"] for s in inspect(TINY.model, "--calib", TINY.calib, *options)["sites"]
    )
    eight = worst()
    assert worst("--activation-bits", "6") < eight - 6
    assert worst("--weight-bits", "4") < eight
    assert worst("--target", "portable") < eight - 2


def test_a_quantized_model(job):
    seen = inspect(job(TINY).path)
    quantized = seen["quantized"]
    assert len(quantized["linears"]) == 12 and quantized["quantize_linear"] > 0 and seen["linears"] == []
    form = {k: v for k, v in quantized["linears"][0].items() if k != "name"}
    expected = {"op": "MatMul", "weight": "INT8", "granularity": "per-channel", "activation": "UINT8", "dynamic": False}
    expected |= {"activation_granularity": "per-tensor", "bits": 8, "group": None, "symmetric": None, "notes": []}
    assert form == expected
    text = run_tool("inspect", job(TINY).path).stdout
    assert "12 × MatMul of UINT8 activations and INT8 weights, per-channel" in text and "near miss" not in text


def test_provenance_is_read_back(tmp_path):
    model = onnx.load(TINY.model)
    for key, value in {"onnx_osplus.version": "9.9.9", "other.key": "unseen"}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, tmp_path / "model.onnx")
    assert inspect(tmp_path / "model.onnx")["provenance"] == {"onnx_osplus.version": "9.9.9"}
    text = run_tool("inspect", tmp_path / "model.onnx").stdout
    assert "onnx-osplus, version: 9.9.9" in text and "unseen" not in text


def test_near_misses_have_their_reasons(tmp_path):
    model = onnx.load(TINY.model)
    weight = next(n for n in model.graph.node if n.name.endswith("query/MatMul")).input[1]
    tensor = next(t for t in model.graph.initializer if t.name == weight)
    array = onnx.numpy_helper.to_array(tensor)
    # One for each row of the batch.
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.stack([array, array]), weight))
    onnx.save(model, tmp_path / "model.onnx")
    misses = inspect(tmp_path / "model.onnx")["near_misses"]
    assert len(misses) == 1 and "not rank 2" in misses[0]["reason"]
    assert "1 nodes almost matched" in run_tool("inspect", tmp_path / "model.onnx").stdout


def test_the_text(tmp_path):
    result = run_tool("inspect", TINY.model, "--calib", TINY.calib)
    lines = result.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  SQNR dB"))
    rows = [line.split() for line in lines[start + 1 : start + 9]]
    damage = [float(row[0]) for row in rows]
    assert damage == sorted(damage) and rows[0][-1] in {s["value"] for s in inspect(TINY.model)["sites"]}
    whole = run_tool("inspect", TINY.model, "-v").stdout
    assert "shift and scale into" in whole and len(re.findall(r"^ +read by ", whole, re.MULTILINE)) == 12


def test_what_cannot_be_read(tmp_path):
    assert run_tool("inspect", tmp_path / "none.onnx").returncode == 1
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    bad = run_tool("inspect", tmp_path / "bad.onnx")
    assert bad.returncode == 1 and "error" in bad.stderr and not bad.stdout
    wrong = run_tool("inspect", TINY.model, "--calib", TINY_LLAMA.model)
    assert wrong.returncode == 1 and "panicked" not in wrong.stderr


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_every_architecture_without_data(path):
    """Zeros of the stated shapes are enough to see every Linear and every sink that data shows."""
    seen = inspect(path)
    snapshot = (MODELS.parent / "tests" / "snapshots" / "architectures" / f"{path.stem}.snap").read_text()
    if path.stem in DEGRADED:
        assert any("was not run" in note for note in seen["notes"]) and seen["linears"]
        return
    assert seen["notes"] == []
    assert f"\nLinears: {len(seen['linears'])}\n" in snapshot and f"\nsites: {len(seen['sites'])}\n" in snapshot
    of_kind = lambda *kinds: sum(s["kind"] in kinds for s in seen["sites"])  # noqa: E731
    # A norm behind a Gather is reached by commutation.
    assert snapshot.count("\n    into ") == sum(s["sink"] is not None for s in seen["sites"])
    assert snapshot.count("\n    into a Mul, ") == of_kind("explicit")
    assert seen["architecture"]["hidden"] and seen["architecture"]["attentions"]


@pytest.mark.parametrize("operator", ["Conv", "FusedConv"])
def test_a_model_of_sound_without_data(tmp_path, operator):
    """Samples of any number behind convolutions that span many of them, as ONNX Runtime's optimizer writes those too."""
    make, rng = onnx.helper.make_node, np.random.default_rng(0)
    fused = {"activation": "Tanh", "domain": "com.microsoft"} if operator == "FusedConv" else {}
    nodes = [
        make("Unsqueeze", ["samples", "one"], ["wave"]),
        make(operator, ["wave", "filters"], ["frames"], strides=[64], name="conv", **fused),
        make("Transpose", ["frames"], ["tokens"], perm=[0, 2, 1]),
        make("LayerNormalization", ["tokens", "gamma", "beta"], ["normed"], name="norm"),
        make("MatMul", ["normed", "weight"], ["y"], name="linear"),
    ]
    arrays = {"one": np.array([1]), "filters": rng.normal(size=(16, 1, 127)), "gamma": np.ones(16), "beta": np.zeros(16)}
    arrays["weight"] = rng.normal(size=(16, 24))
    constants = [onnx.numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), n) for n, a in arrays.items()]
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, d) for n, d in (("samples", ["batch", "n"]), ("y", None))]
    graph = onnx.helper.make_graph(nodes, "sound", info[:1], info[1:], constants)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    seen = inspect(tmp_path / "model.onnx")
    assert seen["notes"] == []
    assert [linear["name"] for linear in seen["linears"]] == ["linear"] and len(seen["sites"]) == 1
