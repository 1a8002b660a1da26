"""Every architecture from every exporter (models/architectures/table.json) through the tool and ONNX Runtime.

A row passes when the tool exits with 0, quantizes every Linear that torch counts in the model, keeps the float model
within 1e-4, loses nothing against plain min-max on held-out data in ONNX Runtime, and when ONNX Runtime fuses every
quantized Linear. What a row does not do yet is listed in `KNOWN` with the words of the complaint: a row that does more
than its entry says fails too, so that the entry goes.
"""

import measure
import onnx
import pytest
from architectures import FOLDER, HELD_OUT, ROWS, arrays, feeds_of, quantize, run
from runtimes import onnx_runtime_graph, products

# Rows that do not pass yet, each with the words that its complaint must have.
KNOWN = {}

# Rows of which the migrated float model is run in ONNX Runtime, one for each form of norm, gate and residual.
FLOAT_ROWS = [
    "bert-script13-eager",
    "gpt2-dynamo18-eager",
    "opt_post-script14-sdpa",
    "llama-script14-sdpa",
    "gemma-dynamo20-sdpa",
    "t5_decoder-dynamo20-eager",
    "modernbert-script17-eager",
    "whisper_decoder-script17-sdpa",
]


def real_tokens(row, array):
    """The part of an output at real tokens; all of it where it has no row of tokens."""
    masks = [a for n, a in arrays(row["inputs"], *HELD_OUT).items() if n == "attention_mask"]
    for mask in masks:
        if array.ndim == 3 and array.shape[:2] == mask.shape:
            return array[mask.astype(bool)]
    return array


def sqnrs(row, reference, path, feeds):
    got = run(path, row, feeds)
    return {n: measure.sqnr(real_tokens(row, reference[n]), real_tokens(row, got[n])) for n in row["outputs"]}


def expected_linears(row):
    """As torch counts them."""
    branches = 2 if "other_branch" in row else 1
    merged = row.get("merged_linears", 0)
    return (row["block_linears"] + row["head_linears"] - merged) * branches


def complaints(row, folder):
    """Everything that is wrong with a row."""
    done, out, report = quantize(row)
    if done.returncode != 0:
        return [f"exit {done.returncode}: {done.stderr.strip()}"]
    found = []
    states = [(l["name"], l["status"], l["reason"]) for l in report["linears"]]
    quantized = [name for name, status, _ in states if status == "quantized"]
    if len(quantized) != expected_linears(row):
        others = [s for s in states if s[1] != "quantized"]
        found.append(f"{len(quantized)} of {expected_linears(row)} Linears quantized; {others} {report['near_misses'][:3]}")
    error = (report["float_check"] or {"max_relative_error": 0.0})["max_relative_error"]
    if not error <= 1e-4:
        found.append(f"float check {error:.1e}")
    none, plain, _ = quantize(row, "--method", "none")
    assert none.returncode == 0, none.stderr
    if row["onnx_runtime"] is None:
        feeds = feeds_of(row, onnx.load(FOLDER / row["file"]), *HELD_OUT)
        reference = run(FOLDER / row["file"], row, feeds)
        ours, floor = sqnrs(row, reference, out, feeds), sqnrs(row, reference, plain, feeds)
    else:
        # ONNX Runtime cannot run the original: what the tool's own engine measured is all there is.
        ours = {name: o["sqnr_db"] for name, o in report["outputs"].items()}
        floor = {name: o["plain_sqnr_db"] for name, o in report["outputs"].items()}
    for name in ours:
        if not ours[name] >= floor[name]:
            found.append(f"{name}: {ours[name]:.2f} dB below plain min-max, {floor[name]:.2f} dB")
    print(row["file"], f"{len(quantized)} Linears,", ", ".join(f"{n} {floor[n]:.2f} -> {ours[n]:.2f} dB" for n in ours))
    if "NOT_IMPLEMENTED" in (row["onnx_runtime"] or ""):
        # ONNX Runtime's CPU provider has no kernels for bfloat16 and makes no session of the original either.
        onnx.checker.check_model(str(out), full_check=True)
        return found
    count, left = products(onnx_runtime_graph(out, folder))
    if count != len(quantized) or left:
        found.append(f"{count} of {len(quantized)} Linears fused; not fused: {left}")
    return found


@pytest.mark.parametrize("name", ROWS)
def test_row(name, tmp_path):
    found = complaints(ROWS[name], tmp_path)
    known = KNOWN.get(name)
    if known is None:
        assert not found, found
    else:
        assert found, f"works now: take {name} out of KNOWN"
        assert all(known in c for c in found), found


@pytest.mark.parametrize("name", FLOAT_ROWS)
def test_the_migrated_float_model_is_the_original(name):
    row = ROWS[name]
    done, out, report = quantize(row, "--format", "float")
    assert done.returncode == 0, done.stderr
    assert any(site["sink"] for site in report["sites"]), "nothing was migrated"
    feeds = feeds_of(row, onnx.load(FOLDER / row["file"]), *HELD_OUT)
    reference, got = run(FOLDER / row["file"], row, feeds), run(out, row, feeds)
    for output in row["outputs"]:
        error = measure.largest_relative_error(real_tokens(row, reference[output]), real_tokens(row, got[output]))
        assert error <= 1e-4, f"{output}: {error:.1e}"


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("albert")])
def test_shared_weights_stay_shared(name):
    """Two layers with one set of weights, which TorchScript hands to the second through Identity nodes."""
    row = ROWS[name]
    done, out, report = quantize(row)
    none, plain, _ = quantize(row, "--method", "none")
    assert done.returncode == none.returncode == 0
    assert any(site["scale"] for site in report["sites"]), "nothing was migrated"
    counts = [measure.stored_matrices(onnx.load(path), onnx.TensorProto.INT8) for path in (out, plain)]
    # Exporters keep some or all weights shared.
    assert counts[0] == counts[1] < expected_linears(row)
    assert out.stat().st_size < (FOLDER / row["file"]).stat().st_size


def test_the_table_is_wide_enough():
    """Every architecture from both exporters, every exporter version in several families, both kinds of attention."""
    plain = [r for r in ROWS.values() if r["variant"] is None]
    for architecture in {r["architecture"] for r in plain}:
        exporters = {r["exporter"] for r in plain if r["architecture"] == architecture}
        assert {"script", "dynamo"} <= exporters, architecture
    for exporter, opset in [("script", 13), ("script", 14), ("script", 17), *(("dynamo", o) for o in (18, 20, 21, 23))]:
        families = {r["architecture"] for r in plain if (r["exporter"], r["opset"]) == (exporter, opset)}
        assert len(families) >= 4, (exporter, opset, families)
    assert {r["attention"] for r in plain} == {"eager", "sdpa"}
    assert {"Attention", "MultiHeadAttention", "GroupQueryAttention", "SkipLayerNormalization", "BiasGelu", "FastGelu",
            "SkipSimplifiedLayerNormalization", "RotaryEmbedding", "FusedMatMul"} <= {
        op for r in ROWS.values() for op in r.get("contrib", [])
    }  # fmt: skip
    assert not set(KNOWN) - set(ROWS), "KNOWN names rows that are gone"
