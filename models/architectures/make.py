"""Make the table of architectures × exporters: tiny ONNX files and table.json.

    python3 -m venv architectures-venv
    architectures-venv/bin/pip install -r models/architectures/requirements.txt
    architectures-venv/bin/python models/architectures/make.py            all rows (some 6 minutes)
    architectures-venv/bin/python models/architectures/make.py bert llama only rows whose name has one of these words

The result is committed. Exporters do not give the same bytes on every machine, so no test compares them; what a test
needs to know of a row (Linears and norms as torch counts them, what to feed) is in table.json.
"""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import variants
import zoo
from zoo import arrays

HERE = Path(__file__).resolve().parent

# architecture: its exports as exporter + opset . attention. "script" is TorchScript, "dynamo" is torch.export;
# "raw" is dynamo without its optimizer. "static" has no dynamic dimension.
PLAIN = {
    "bert": "script13.eager script14.sdpa script17.eager dynamo18.eager dynamo20.sdpa dynamo23.sdpa raw18.eager",
    "bert_pooled": "script17.sdpa dynamo21.eager",
    "bert_classifier": "script17.eager dynamo18.sdpa",
    "roberta": "script14.eager dynamo18.sdpa",
    "distilbert": "script13.eager dynamo21.sdpa dynamo23.eager",
    "albert": "script14.sdpa dynamo18.eager",
    "electra": "script17.eager dynamo20.sdpa",
    "gpt2": "script13.eager script17.sdpa dynamo18.eager dynamo23.sdpa raw18.eager",
    "neox": "script14.eager dynamo18.sdpa dynamo23.eager",
    "neox_serial": "script17.sdpa dynamo21.eager",
    "opt_pre": "script13.eager script17.sdpa dynamo18.eager dynamo23.sdpa",
    "opt_post": "script14.sdpa dynamo20.eager",
    "bloom": "script14.eager dynamo18.eager",
    "llama": "script14.sdpa script17.eager dynamo18.sdpa dynamo21.eager dynamo23.sdpa raw18.eager",
    "mistral": "script17.sdpa dynamo20.eager",
    "qwen2": "script14.eager dynamo18.sdpa dynamo23.eager",
    "gemma": "script17.eager dynamo20.sdpa",
    "falcon": "script17.eager dynamo18.sdpa",
    "phi": "script14.sdpa dynamo18.eager dynamo21.sdpa",
    "t5_encoder": "script13.eager dynamo18.eager dynamo23.eager",
    "t5_decoder": "script14.eager dynamo20.eager",
    "vit": "script13.eager script17.sdpa dynamo18.sdpa dynamo23.sdpa static14.eager raw20.sdpa",
    "deit": "script14.sdpa dynamo21.eager",
    "clip_text": "script14.eager dynamo18.sdpa",
    "clip_vision": "script17.sdpa dynamo20.eager",
    "whisper_encoder": "script13.eager dynamo18.eager dynamo23.sdpa",
    "whisper_decoder": "script17.sdpa dynamo21.eager",
    "modernbert": "script17.eager script14.sdpa dynamo18.sdpa dynamo23.sdpa",
}


def export(specimen, path, exporter, opset):
    names = [i["name"] for i in specimen.inputs]
    values = zoo.tensors(specimen.inputs, 2, 0)
    dynamic = [
        {} if exporter == "static" else dict.fromkeys(i.get("dynamic", [0, 1] if i["dtype"] == "int64" else [0]))
        for i in specimen.inputs
    ]
    if exporter in ("script", "static"):
        # One symbolic length per role: two inputs of one length share a name.
        axis = {0: "batch", 1: "sequence", 2: "past"}
        if any(n.startswith("past_key_values") for n in names):
            symbols = {n: {d: "total" if n == "attention_mask" and d == 1 else axis[d] for d in ds} for n, ds in zip(names, dynamic)}
        else:
            symbols = {n: {d: axis[d] for d in ds} for n, ds in zip(names, dynamic)}
        torch.onnx.export(
            specimen.module, values, str(path), input_names=names, output_names=specimen.outputs, opset_version=opset,
            dynamic_axes=symbols, dynamo=False,
        )  # fmt: skip
    else:
        shapes = tuple({d: torch.export.Dim.AUTO for d in ds} for ds in dynamic)
        torch.onnx.export(
            specimen.module, values, str(path), input_names=names, output_names=specimen.outputs, opset_version=opset,
            dynamo=True, dynamic_shapes=(shapes,), external_data=False, verbose=False, optimize=exporter == "dynamo",
        )  # fmt: skip
    model = onnx.load(path)
    slim(model)
    return model


def slim(model):
    """Leaves out the stack traces of the exporter: most of a tiny file, and nothing that a tool could need."""
    del model.metadata_props[:]
    graphs = [model.graph]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    while graphs:
        graph = graphs.pop()
        del graph.metadata_props[:]
        for thing in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            thing.doc_string = ""
            del thing.metadata_props[:]
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def row_of(specimen, *, exporter, attention, opset, variant=None, **more):
    return {
        "architecture": specimen.name,
        "exporter": exporter,
        "attention": attention,
        "opset": opset,
        "variant": variant,
        "block_linears": specimen.block_linears,
        "head_linears": specimen.head_linears,
        "norms": specimen.norms,
        "inputs": specimen.inputs,
        "outputs": specimen.outputs,
        **more,
    }


def in_onnx_runtime(model, specimen):
    """None where ONNX Runtime gives what torch gives, else why not."""
    feeds = arrays(specimen.inputs, 3, 5)
    with torch.no_grad():
        expected = specimen.module(*(torch.from_numpy(a) for a in feeds.values()))
    have = {i.name for i in model.graph.input}
    rows = 2 if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2 else 3
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        got = session.run(None, {n: a[:rows] for n, a in feeds.items() if n in have})
    except Exception as e:  # noqa: BLE001 (whatever it says is the reason)
        return " ".join(str(e).split())[:200]
    real = feeds.get("attention_mask", feeds.get("encoder_attention_mask", None))
    for e, g in zip(expected, got):
        e = e.numpy()[:rows].astype(np.float64)
        error = abs(e - g)
        if real is not None and real.shape == e.shape[:2]:
            error = error[real[:rows].astype(bool)]
        if not error.max() <= 2e-3 * (e.max() - e.min()):
            return f"differs from torch by {error.max() / (e.max() - e.min()):.1e} of the range"
    return None


class Table:
    """Writes each row as soon as it is made."""

    def __init__(self, words, also):
        self.words, self.also = words, also
        path = HERE / "table.json"
        self.rows = {r["file"]: r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}

    def wants(self, name):
        return not self.words or any(w in name for w in self.words)

    def add(self, name, model, row, specimen, tolerance_checked=True):
        file = name + ".onnx"
        reason = in_onnx_runtime(model, specimen) if tolerance_checked else None
        data = model.SerializeToString(deterministic=True)
        row = {"file": file, **row, "onnx_runtime": reason}
        self.rows[file] = row
        (HERE / file).write_bytes(data)
        self.write()
        for folder in self.also:
            (folder / file).write_bytes(data)
            (folder / "table.json").write_bytes((HERE / "table.json").read_bytes())
            for kind, rows, seed in (("calib", 32, 1), ("heldout", 64, 2)):
                np.savez(folder / f"{name}.{kind}.npz", **arrays(row["inputs"], rows, seed))
                if "other_branch" in row:
                    np.savez(folder / f"{name}.{kind}-nopast.npz", **arrays(row["other_branch"], rows, seed))
        print(f"{file} {len(data):,} bytes, {len(model.graph.node)} nodes, Linears {row['block_linears']}+{row['head_linears']},"
              f" norms {row['norms']}" + (f"; ONNX Runtime: {reason}" if reason else ""), flush=True)  # fmt: skip

    def write(self):
        rows = [self.rows[f] for f in sorted(self.rows)]
        lines = ",\n".join("  " + json.dumps(r) for r in rows)
        (HERE / "table.json").write_text('{"rows": [\n' + lines + "\n]}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only rows whose name has one of these")
    parser.add_argument("--only", choices=["plain", "variants"], help="exports as they are, or what is made from them")
    parser.add_argument("--also", type=Path, action="append", default=[], help="also write rows and data into this folder")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    table = Table(args.words, args.also)
    with tempfile.TemporaryDirectory() as folder:
        for name, exports in PLAIN.items() if args.only != "variants" else ():
            for item in exports.split():
                kind, attention = item.split(".")
                exporter, opset = kind.rstrip("0123456789"), int(kind[-2:])
                row_name = f"{name}-{kind}-{attention}"
                if not table.wants(row_name):
                    continue
                try:
                    specimen = zoo.build(name, attention)
                    model = export(specimen, Path(folder) / "export.onnx", exporter, opset)
                except Exception as e:  # noqa: BLE001
                    print("FAILED", row_name, repr(e)[:300].replace("\n", " "), flush=True)
                    continue
                row = row_of(specimen, exporter=exporter, attention=attention, opset=opset)
                table.add(row_name, model, row, specimen)
        if args.only != "plain":
            variants.make(table, Path(folder), export, row_of)


if __name__ == "__main__":
    main()
