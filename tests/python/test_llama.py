"""models/build_llama.py writes the decoder that a GGUF file holds: against a reference in NumPy that shares nothing with it."""

import struct
import subprocess
import sys

import numpy as np
import onnx
import pytest
from conftest import MODELS, run_tool
from measure import outputs, sqnr

LAYERS, WIDTH, HEADS, KV_HEADS, FFN, VOCABULARY = 2, 64, 4, 2, 96, 40
HEAD = WIDTH // HEADS
EPSILON, BASE = 1e-5, 100000.0
F32, Q4_1, Q8_0 = 0, 3, 8


def q4_1(array):
    """(bytes, what they mean): 32 weights as 4-bit steps above their smallest."""
    blocks = array.reshape(-1, 32)
    low = blocks.min(axis=1, keepdims=True)
    step = ((blocks.max(axis=1, keepdims=True) - low) / 15).astype(np.float16)
    low = low.astype(np.float16)
    steps = np.clip(np.rint((blocks - low) / step), 0, 15).astype(np.uint8)
    packed = steps[:, :16] | steps[:, 16:] << 4
    data = b"".join(s.tobytes() + m.tobytes() + p.tobytes() for s, m, p in zip(step, low, packed))
    return data, (step.astype(np.float32) * steps + low.astype(np.float32)).reshape(array.shape)


def q8_0(array):
    """(bytes, what they mean): 32 weights as signed 8-bit steps."""
    blocks = array.reshape(-1, 32)
    step = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    steps = np.clip(np.rint(blocks / step), -127, 127).astype(np.int8)
    data = b"".join(s.tobytes() + q.tobytes() for s, q in zip(step, steps))
    return data, (step.astype(np.float32) * steps).reshape(array.shape)


ENCODE = {F32: lambda a: (a.astype(np.float32).tobytes(), a.astype(np.float32)), Q4_1: q4_1, Q8_0: q8_0}


def text(string):
    return struct.pack("<Q", len(string.encode())) + string.encode()


def entry(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    kind, code = (6, "f") if isinstance(value, float) else (4, "I")
    return text(key) + struct.pack(f"<I{code}", kind, value)


def gguf_bytes(known, tensors):
    """tensors: {name: (format, array)}. Returns the file and what its tensors mean."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(known))
    header += b"".join(entry(*item) for item in known.items())
    data, meaning = b"", {}
    for name, (kind, array) in tensors.items():
        header += text(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *reversed(array.shape))
        header += struct.pack("<IQ", kind, len(data))
        encoded, meaning[name] = ENCODE[kind](array)
        data += encoded + b"\0" * (-len(encoded) % 32)
    return header + b"\0" * (-len(header) % 32) + data, meaning


def tiny(random, own_head=False):
    """(entries, tensors) of a random decoder."""
    known = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": EPSILON,
        "llama.rope.freq_base": BASE,
        "llama.rope.dimension_count": HEAD,
        "tokenizer.ggml.merges": ["a b", "ab c"],
    }
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (KV_HEADS * HEAD, WIDTH), "attn_v": (KV_HEADS * HEAD, WIDTH)}
    shapes |= {"attn_output": (WIDTH, WIDTH), "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}
    tensors = {"token_embd.weight": (Q8_0, random.normal(size=(VOCABULARY, WIDTH)))}
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{norm}.weight"] = (F32, random.uniform(0.5, 2, WIDTH))
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = (Q4_1, random.normal(size=shape) / np.sqrt(shape[1]))
    tensors["output_norm.weight"] = (F32, random.uniform(0.5, 2, WIDTH))
    if own_head:
        tensors["output.weight"] = (Q8_0, random.normal(size=(VOCABULARY, WIDTH)))
    return known, tensors


def norm(x, gamma):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + EPSILON) * gamma


def turned(x):
    """GGUF's rotary embedding of one head [S, D]: channels 2i and 2i + 1 are a complex number."""
    angle = np.arange(len(x))[:, None] * BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    z = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def reference(w, ids, layers=LAYERS):
    """(residual stream, what the last norm gives, logits) of one row without padding, in float64."""
    w = {name.removesuffix(".weight"): array.astype(np.float64) for name, array in w.items()}
    x = w["token_embd"][ids]
    later = np.triu(np.ones((len(ids), len(ids)), bool), 1)
    for layer in range(layers):
        own = {name.split(".")[2]: array for name, array in w.items() if name.startswith(f"blk.{layer}.")}
        n, mixed = norm(x, own["attn_norm"]), []
        for head in range(HEADS):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            group = head // (HEADS // KV_HEADS)
            shared = slice(group * HEAD, (group + 1) * HEAD)
            q, k = turned(n @ own["attn_q"][rows].T), turned(n @ own["attn_k"][shared].T)
            scores = np.where(later, -np.inf, q @ k.T / np.sqrt(HEAD))
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed.append(p / p.sum(axis=-1, keepdims=True) @ (n @ own["attn_v"][shared].T))
        x = x + np.concatenate(mixed, axis=-1) @ own["attn_output"].T
        n = norm(x, own["ffn_norm"])
        gate = n @ own["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (n @ own["ffn_up"].T)) @ own["ffn_down"].T
    n = norm(x, w["output_norm"])
    return x, n, n @ w.get("output", w["token_embd"]).T


def write(folder, known, tensors):
    data, meaning = gguf_bytes(known, tensors)
    path = folder / "tiny.gguf"
    path.write_bytes(data)
    return path, meaning


def build(gguf, out, *options):
    command = [sys.executable, MODELS / "build_llama.py", gguf, out, *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("output", ["logits", "hidden", "residual"])
def test_the_graph_is_the_decoder_of_the_file(tmp_path, output, own_head):
    random = np.random.default_rng(7)
    gguf, meaning = write(tmp_path, *tiny(random, own_head))
    out = tmp_path / "out.onnx"
    done = build(gguf, out, "--output", output)
    assert done.returncode == 0, done.stderr
    lengths = (13, 6)
    ids, mask = np.zeros((2, 13), np.int64), np.zeros((2, 13), np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = random.integers(0, VOCABULARY, length)
        mask[row, :length] = 1
    (got,) = outputs(out, {"input_ids": ids, "attention_mask": mask}).values()
    for row, length in enumerate(lengths):
        expected = reference(meaning, ids[row, :length])[("residual", "hidden", "logits").index(output)]
        assert np.abs(got[row, :length] - expected).max() <= 2e-5 * np.ptp(expected)


def test_the_first_layers_alone(tmp_path):
    random = np.random.default_rng(8)
    gguf, meaning = write(tmp_path, *tiny(random))
    out = tmp_path / "out.onnx"
    assert build(gguf, out, "--layers", "1", "--output", "residual").returncode == 0
    ids = random.integers(0, VOCABULARY, (1, 9))
    (got,) = outputs(out, {"input_ids": ids, "attention_mask": np.ones_like(ids)}).values()
    expected, *_ = reference(meaning, ids[0], layers=1)
    assert np.abs(got[0] - expected).max() <= 2e-5 * np.ptp(expected)
    linears = [node for node in onnx.load(out).graph.node if node.name.endswith("_proj/MatMul")]
    assert len(linears) == 7


def test_every_linear_of_the_graph_is_found_and_quantized(tmp_path):
    random = np.random.default_rng(9)
    gguf, _ = write(tmp_path, *tiny(random))
    model, out, calib = (tmp_path / name for name in ("float.onnx", "out.onnx", "calib.npz"))
    assert build(gguf, model).returncode == 0
    ids = random.integers(0, VOCABULARY, (32, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    np.savez(calib, **feeds)
    done = run_tool(model, out, "--calib", calib, "--no-layers")
    assert done.returncode == 0, done.stderr
    scales = [node for node in onnx.load(out).graph.node if node.op_type == "QuantizeLinear"]
    # q, k and v read one value, gate and up another; the output weight reads the last norm.
    assert len(scales) == LAYERS * 4 + 1
    assert sqnr(outputs(model, feeds)["logits"], outputs(out, feeds)["logits"]) >= 25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"PK\x03\x04" + data[4:], "expected a GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "expected GGUF version 2 or 3, found 1"),
        (lambda data: data.replace(b"llama", b"qwen9", 2), "expected the architecture llama, found qwen9"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, change, words):
    data, _ = gguf_bytes(*tiny(np.random.default_rng(0)))
    path = tmp_path / "wrong.gguf"
    path.write_bytes(change(data))
    done = build(path, tmp_path / "out.onnx")
    assert done.returncode != 0 and words in done.stderr and not (tmp_path / "out.onnx").exists()
