#!/usr/bin/env python3
"""Grows fuzz/corpus from the models of this project: small models, arrays, archives, test data, a report, statistics, and
small files of every kind of data that is prepared.

    .venv/bin/python fuzz/grow.py            needs the binary (ONNX_OSPLUS_BIN) for report and statistics

Models are parts of the committed exports, cut at the output of a node and made small: seeds that a loop runs thousands of
times must be a few kilobytes. `fuzz/corpus/plan` is a plan of a run of the tiny model; `src/pipeline/plan.rs` has a test
that it reads back.
"""

import io
import json
import os
import subprocess
import tempfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
EXPORTS = [
    "bert-dynamo18-eager",
    "bert-script17-eager-float16",
    "albert-dynamo18-eager",
    "llama-dynamo18-sdpa-halfmodule",
    "vit-dynamo18-sdpa-functions",
    "gpt2-dynamo18-eager-bfloat16weights",
    "t5_encoder-dynamo23-eager",
    "falcon-dynamo18-sdpa",
    "neox-dynamo23-eager",
    "llama-helper-gqa",
    "bert-script13-eager-mha",
]


def shrunk(model, most=48):
    """Every fixed size of 64 and more becomes smaller where no node says otherwise; weights lose what they do not need."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor) if tensor.data_type != TensorProto.BFLOAT16 else None
        if array is not None and array.size > 4096:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[:most]), tensor.name))
    return model


def pieces(path):
    """Parts of a model: from its inputs to the outputs of a few of its nodes."""
    model = onnx.load(path)
    nodes = [n for n in model.graph.node if n.output]
    names = [i.name for i in model.graph.input if not any(t.name == i.name for t in model.graph.initializer)]
    for part in (0.1, 0.3):
        output = nodes[int(part * len(nodes))].output[0]
        stated = {v.name for v in [*model.graph.value_info, *model.graph.output]}
        if output not in stated:
            model.graph.value_info.append(onnx.ValueInfoProto(name=output))
        yield part, Extractor(model).extract_model(names, [output])


def graph(nodes, inputs, outputs, constants=(), functions=(), opset=18):
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in dict(constants).items()]
    g = helper.make_graph(nodes, "g", inputs, outputs, constants)
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("f", 1)]
    return helper.make_model(g, functions=list(functions), opset_imports=sets, ir_version=9)


def value(name, *shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def small_models():
    random = np.random.RandomState(0)
    w = random.randn(8, 8).astype(np.float32)
    ones = np.ones(8, np.float32)
    node = helper.make_node
    x, y = value("x", "b", "s", 8), value("y", "b", "s", 8)
    norm = node("LayerNormalization", ["x", "g", "c"], ["n"], name="norm")
    block = [norm, node("MatMul", ["n", "w"], ["m"], name="linear"), node("Add", ["m", "c"], ["y"], name="bias")]
    yield "linear", graph(block, [x], [y], dict(g=ones, c=ones, w=w))
    qdq = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["wq", "ws"], ["wd"], axis=1),
        node("MatMul", ["d", "wd"], ["y"]),
    ]
    scales = dict(s=np.float32(0.02), z=np.uint8(128), wq=(20 * w).astype(np.int8), ws=0.05 * ones)
    yield "qdq", graph(qdq, [x], [y], scales)
    attention = [
        node("MatMul", ["x", "w"], ["qv"]),
        node("Reshape", ["qv", "heads"], ["r"]),
        node("Transpose", ["r"], ["q"], perm=[0, 2, 1, 3]),
        node("Transpose", ["r"], ["k"], perm=[0, 2, 3, 1]),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "q"], ["o"]),
        node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["t", "flat"], ["y"]),
    ]
    shapes = dict(w=w, heads=np.int64([0, 0, 2, 4]), flat=np.int64([0, 0, 8]))
    yield "attention", graph(attention, [x], [y], shapes)
    inner = [node("LayerNormalization", ["a", "b"], ["l"]), node("MatMul", ["l", "v"], ["o"])]
    function = helper.make_function("f", "Block", ["a", "b", "v"], ["o"], inner, [helper.make_opsetid("", 18)])
    outer = [node("Block", ["m", "b", "v"], ["p"], domain="f"), node("Relu", ["p"], ["o"])]
    outer = [node("Identity", ["a"], ["m"]), *outer]
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    twice = helper.make_function("f", "Twice", ["a", "b", "v"], ["o"], outer, sets)
    call = [node("Twice", ["x", "g", "w"], ["y"], domain="f", name="call")]
    yield "functions", graph(call, [x], [y], dict(g=ones, w=w), [function, twice])
    branch = [
        helper.make_graph([node("MatMul", ["x", "w"], [n])], n, [], [value(n, "b", "s", 8)]) for n in ("then", "else")
    ]
    choice = [node("If", ["go"], ["y"], then_branch=branch[0], else_branch=branch[1])]
    yield "if", graph(choice, [x, value("go", dtype=TensorProto.BOOL)], [y], dict(w=w))
    body = helper.make_graph(
        [node("Identity", ["go"], ["stay"]), node("MatMul", ["a", "w"], ["o"])],
        "body",
        [value("i", dtype=TensorProto.INT64), value("go", dtype=TensorProto.BOOL), value("a", "b", "s", 8)],
        [value("stay", dtype=TensorProto.BOOL), value("o", "b", "s", 8)],
    )
    yield "loop", graph([node("Loop", ["three", "", "x"], ["y"], body=body)], [x], [y], dict(w=w, three=np.int64(3)))
    gemm = [node("Reshape", ["x", "flat"], ["r"]), node("Gemm", ["r", "w", "g"], ["y"], transB=1, beta=0.5)]
    yield "gemm", graph(gemm, [x], [value("y", "n", 8)], dict(w=w, g=ones, flat=np.int64([-1, 8])))
    sizes = [
        node("Shape", ["x"], ["sh"]),
        node("Gather", ["sh", "one"], ["n"]),
        node("Range", ["zero", "n", "one"], ["r"]),
        node("Unsqueeze", ["r", "axes"], ["u"]),
        node("Expand", ["u", "sh"], ["e"]),
        node("Slice", ["e", "st", "en", "ax"], ["sl"]),
        node("Cast", ["sl"], ["y"], to=1),
    ]
    ints = dict(one=np.int64(1), zero=np.int64(0), axes=np.int64([0, 2]), st=np.int64([0]), en=np.int64([4]), ax=np.int64([2]))
    yield "sizes", graph(sizes, [x], [value("y", "b", "s", None)], ints)
    split = [node("Split", ["x"], ["a", "b2"], axis=2, num_outputs=2), node("Concat", ["a", "b2"], ["y"], axis=-1)]
    yield "split", graph(split, [x], [y])
    old = [node("Softmax", ["x"], ["s2"], axis=1), node("Dropout", ["s2"], ["y"])]
    yield "old", graph(old, [x], [y], opset=9)
    integer = [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("MatMulInteger", ["q", "wq", "z"], ["i"])]
    integer += [node("Cast", ["i"], ["f"], to=1), node("Mul", ["f", "s"], ["y"])]
    yield "integer", graph(integer, [x], [y], dict(wq=(20 * w).astype(np.int8)))
    conv = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("Conv", ["t", "cw"], ["y"], kernel_shape=[3], pads=[1, 1])]
    yield "conv", graph(conv, [x], [value("y", "b", 4, "s")], dict(cw=random.randn(4, 8, 3).astype(np.float32)))
    fused = [node("SkipLayerNormalization", ["x", "x", "g", "c"], ["n"], domain="com.microsoft", epsilon=1e-5)]
    fused += [node("FusedMatMul", ["n", "w"], ["m"], domain="com.microsoft", alpha=0.5)]
    fused += [node("Gelu", ["m"], ["y"], domain="com.microsoft")]
    yield "contrib", graph(fused, [x], [y], dict(g=ones, c=ones, w=w))


def npy(array, **kwargs):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **kwargs)
    return out.getvalue()


def npz(arrays, compression):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = compression
            archive.writestr(entry, npy(array))
    return out.getvalue()


def put(kind, name, data):
    (CORPUS / kind).mkdir(parents=True, exist_ok=True)
    (CORPUS / kind / name).write_bytes(data)


def prepared():
    """(kind, name, bytes) of small tables, tokenizers, images, recordings and configurations."""
    lines = ["a small model", "b, with a comma", "", "ä ü 漢字", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
    yield "table", "lines.txt", "\n".join(lines).encode()
    yield "table", "lines.jsonl", "".join(json.dumps({"text": line, "n": 1}) + "\n" for line in lines).encode()
    yield "table", "list.json", json.dumps([{"text": line, "pair": line} for line in lines]).encode()
    quoted = [line.replace('"', '""') for line in lines]
    yield "table", "columns.csv", ("id,text\n" + "".join(f'{i},"{line}"\n' for i, line in enumerate(quoted))).encode()
    yield "table", "columns.tsv", ("id\ttext\n" + "".join(f"{i}\t{line}\n" for i, line in enumerate(lines))).encode()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: i for i, word in enumerate(words)}
    special = {word: vocabulary[word] for word in words[:4]}
    added = [dict(id=i, content=word, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for word, i in special.items()]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
    }
    common = dict(version="1.0", truncation=None, padding=None, added_tokens=added, post_processor=template, decoder=None)
    normalizer, split = {"type": "Lowercase"}, {"type": "Whitespace"}
    models = {
        "words": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        "pieces": {"type": "WordPiece", "vocab": {**vocabulary, "##a": 30, "##m": 31}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        "pairs": {"type": "BPE", "vocab": {**vocabulary, "ab": 30}, "merges": [["a", "b"]], "unk_token": "[UNK]", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False},
        "unigram": {"type": "Unigram", "unk_id": 1, "vocab": [[word, -float(i)] for i, word in enumerate(words)], "byte_fallback": False},
    }
    for name, model in models.items():
        yield "tokenizer", f"{name}.json", json.dumps({**common, "normalizer": normalizer, "pre_tokenizer": split, "model": model}).encode()
    pixels = np.random.RandomState(0).randint(0, 256, (12, 10, 3), np.uint8)
    for name, mode in (("small.png", "RGB"), ("palette.png", "P"), ("grey.jpg", "L"), ("colour.jpg", "RGB"), ("small.bmp", "RGB"), ("small.webp", "RGBA")):
        out = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(out, {"jpg": "JPEG"}.get(name[-3:], name.split(".")[1].upper()))
        yield "image", name, out.getvalue()
    vit = dict(image_processor_type="ViTImageProcessor", do_resize=True, size=dict(height=16, width=16), resample=3, do_rescale=True)
    vit |= dict(rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    yield "preprocessor", "vit.json", json.dumps(vit).encode()
    clip = {**vit, "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 18}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}}
    yield "preprocessor", "clip.json", json.dumps(clip).encode()
    whisper = dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=8, hop_length=160, n_fft=400, n_samples=5120)
    whisper |= dict(nb_max_frames=32, sampling_rate=5120, chunk_length=1, padding_value=0.0, padding_side="right")
    yield "preprocessor", "whisper.json", json.dumps(whisper).encode()
    samples = (8000 * np.sin(np.arange(1600) / 9)).astype("<i2")
    for name, channels, rate in (("short.wav", 1, 5120), ("stereo.wav", 2, 5120)):
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(channels), file.setsampwidth(2), file.setframerate(rate)
            file.writeframes(samples.tobytes())
        yield "sound", name, out.getvalue()


def main():
    for name, model in small_models():
        put("model", f"{name}.onnx", model.SerializeToString(deterministic=True))
    for export in EXPORTS:
        for part, model in pieces(ROOT / "models" / "architectures" / f"{export}.onnx"):
            data = shrunk(model).SerializeToString(deterministic=True) if model else b""
            if 0 < len(data) < 24 << 10:
                put("model", f"{export}-{part}.onnx", data)
    ids = np.arange(12, dtype=np.int64).reshape(3, 4)
    put("npy", "int64", npy(ids))
    put("npy", "int32", npy(ids.astype(np.int32)))
    put("npy", "big-endian", npy(ids.astype(">i8")))
    put("npy", "fortran", npy(np.asfortranarray(ids)))
    put("npy", "version2", npy(ids, version=(2, 0)))
    put("npy", "float", npy(ids.astype(np.float64)))
    put("npy", "empty", npy(ids[:, :0]))
    arrays = dict(input_ids=ids, attention_mask=np.ones_like(ids))
    put("npz", "stored", npz(arrays, zipfile.ZIP_STORED))
    put("npz", "deflated", npz(arrays, zipfile.ZIP_DEFLATED))
    put("npz", "ids", npz(dict(input_ids=ids), zipfile.ZIP_DEFLATED))
    put("pb", "raw", numpy_helper.from_array(ids, "input_ids").SerializeToString())
    typed = helper.make_tensor("input_ids", TensorProto.INT64, [3, 4], ids.ravel().tolist())
    put("pb", "typed", typed.SerializeToString())
    for kind, name, data in prepared():
        put(kind, name, data)
    with tempfile.TemporaryDirectory() as folder:
        tiny, report = ROOT / "models" / "tiny", Path(folder) / "report.json"
        files = [tiny / "model.onnx", Path(folder) / "out.onnx", "--calib", tiny / "calib.npz", "--report", report, "-q"]
        subprocess.run([os.environ["ONNX_OSPLUS_BIN"], *files], check=True)
        taken = Path(folder) / "taken.stats"
        rows = {name: array[:2, :4] for name, array in np.load(tiny / "calib.npz").items()}
        (Path(folder) / "rows.npz").write_bytes(npz(rows, zipfile.ZIP_STORED))
        command = ["stats", tiny / "model.onnx", "--calib", Path(folder) / "rows.npz", "-o", taken, "-q"]
        subprocess.run([os.environ["ONNX_OSPLUS_BIN"], *command], check=True)
        data = taken.read_bytes()
        # The file has a head, which is JSON, in front of them.
        put("statistics", "tiny", data[24 + int.from_bytes(data[16:24], "little") :])
        full = json.loads(report.read_text())
        # What a machine measures, and where it is, is not the same twice.
        full["seconds"], full["command"], full["files"], full["arguments"] = {}, None, None, {}
        short = {k: v[:2] if isinstance(v, list) else v for k, v in full.items()}
        put("report", "tiny.json", json.dumps(short, indent=1).encode())


if __name__ == "__main__":
    main()
