#!/usr/bin/env python3
"""What a quantized model is worth against its original; prints JSON. peers.py runs this in the environment of ONNX Runtime.

    score.py models FOLDER                              write the models; {name: {file, calib, heldout, task}}
    score.py accuracy ORIGINAL QUANTIZED HELDOUT TASK CACHE     sqnr_db, token_db, cosine, and per task probe, top_1, top_10
    score.py speed ORIGINAL QUANTIZED ROUNDS            CPU-time ratio on one thread, quartiles, int8 Linears

TASK: `sentiment` (embeddings of sentences, and a probe for human scores), `retrieval` (embeddings alone) or `none`.
"""

import json
import shutil
import statistics
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "models", "tests/python")]

import measure  # noqa: E402  (needs the path above)
import speed  # noqa: E402
from build_albert import albert_model, read_torch  # noqa: E402
from build_bert import bert_model, read_safetensors  # noqa: E402
from build_llama import llama_model, read_llama  # noqa: E402
from ort_format import read_model  # noqa: E402
from specified import arrays as specified_arrays  # noqa: E402

REAL = ROOT / "models" / "real"
CLIP = 16_000  # samples, one second
TRAINED = 2000  # sentences of the first half of the text; the others are in the half that calibrates nothing
# Exports of models/architectures that stand for architectures whose real weights no registry has: small and random.
EXPORTS = {
    "T5 encoder": "t5_encoder-script13-eager.onnx",
    "T5 decoder": "t5_decoder-script14-eager.onnx",
}
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def models(folder):
    minilm, tiny = REAL / "minilm-l6.safetensors", REAL / "bert-tiny.safetensors"
    missing = [p.name for p in (minilm, tiny, REAL / "sentences.npz") if not p.is_file()]
    if missing:
        sys.exit(f"{', '.join(missing)} missing in {REAL}: run models/fetch")
    text = {"calib": str(REAL / "calib.npz"), "heldout": str(REAL / "heldout.npz")}
    reactions = {"calib": str(REAL / "reactions-calib.npz"), "heldout": str(REAL / "reactions-heldout.npz")}
    found = {"MiniLM-L3": text | {"file": shutil.copy(REAL / "minilm-l3.onnx", folder), "task": "sentiment"}}
    for form, fused in (("", True), (", decomposed LayerNorm", False)):
        built = {
            "MiniLM-L6": (bert_model(read_safetensors(minilm), heads=12, fused=fused), text, "sentiment"),
            "BERT-tiny SPLADE": (bert_model(read_safetensors(tiny), heads=2, fused=fused, splade=True), text, "retrieval"),
            "ALBERT": (albert_model(read_torch(REAL / "albert.bin"), heads=8, layers=12, fused=fused), reactions, "none"),
        }
        for name, (model, data, task) in built.items():
            path = folder / f"{name.replace(' ', '-').lower()}-{'fused' if fused else 'decomposed'}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            found[name + form] = data | {"file": str(path), "task": task}
    return found | decoder(folder) | vision(folder) | speech(folder) | exports(folder)


def decoder(folder):
    """Six layers of SmolLM2, if models/fetch --decoder was run."""
    weights, path = REAL / "smollm2.gguf", folder / "smollm2-6.onnx"
    if not weights.is_file():
        print("SmolLM2 is missing: run models/fetch --decoder", file=sys.stderr)
        return {}
    path.write_bytes(llama_model(*read_llama(weights, 6), output="residual").SerializeToString(deterministic=True))
    data = {half: str(REAL / f"smollm2-{half}.npz") for half in ("calib", "heldout")}
    return {"SmolLM2, 6 layers": data | {"file": str(path), "task": "none"}}


def images(count, seed):
    """f32 [count, 3, 224, 224] with the spectrum of photographs, which no registry has: amplitudes fall as 1 / f."""
    size = 224
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = 1 / size
    noise = np.random.RandomState(seed).standard_normal((count, 3, size, size))
    made = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(size, size))
    return (made / made.std(axis=(2, 3), keepdims=True)).astype(np.float32)


def vision(folder):
    """The real ViT-S; its input is no row of tokens, so speed is for benchmarks/vit.py."""
    found = {"file": shutil.copy(REAL / "vit-s.onnx", folder), "task": "none", "speed": False}
    for half, count, seed in (("calib", 16, 1), ("heldout", 16, 2)):
        found[half] = str(folder / f"vit-s-{half}.npz")
        np.savez(found[half], input_image=images(count, seed))
    return {"ViT-S": found}


def recording(path):
    """Its samples at 16 kHz."""
    with wave.open(str(path)) as file:
        every = file.getframerate() // 16_000
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15
    return samples[: len(samples) // every * every].reshape(-1, every).mean(axis=1)


def transcript(encoded, path, tokens):
    """The ids that the decoder writes, the most probable at every step: [rows, tokens]"""
    session, ids = measure.session(path), np.ones((len(encoded), 1), np.int64)
    while ids.shape[1] < tokens:
        mask = np.ones((len(encoded), CLIP), np.int64)
        given = {"input_ids": ids, "encoder_hidden_states": encoded, "encoder_attention_mask": mask}
        ids = np.hstack([ids, session.run(["logits"], given)[0][:, -1:].argmax(axis=-1)])
    return given | {"input_ids": ids}


def speech(folder):
    """Moonshine's encoder and decoder, real weights that its package has in 8 bits, if models/fetch --packages was run."""
    parts = {part: REAL / f"speech-{part}.ort" for part in ("encoder", "decoder")}
    if not all(path.is_file() for path in parts.values()):
        print("Moonshine is missing: run models/fetch --packages", file=sys.stderr)
        return {}
    found = {f"Moonshine {part}": {"file": str(folder / f"speech-{part}.onnx"), "task": "none", "speed": False} for part in parts}
    encoder, decoder = found.values()
    onnx.save(read_model(parts["encoder"]), encoder["file"])
    model = read_model(parts["decoder"], "else_branch")
    del model.graph.output[1:]  # keys and values for the steps behind
    onnx.save(model, decoder["file"])
    sound = np.concatenate([recording(REAL / name) for name in ("two-cities.wav", "beckett.wav")])
    clips = sound[: len(sound) // CLIP * CLIP].reshape(-1, CLIP)
    clips = clips[np.random.default_rng(0).permutation(len(clips))]
    for half, rows in (("calib", clips[::2]), ("heldout", clips[1::2])):
        given = {"input_values": rows, "attention_mask": np.ones(rows.shape, np.int64)}
        encoder[half] = str(folder / f"speech-encoder-{half}.npz")
        np.savez(encoder[half], **given)
        encoded = measure.session(encoder["file"]).run(None, given)[0]
        decoder[half] = str(folder / f"speech-decoder-{half}.npz")
        np.savez(decoder[half], **transcript(encoded, decoder["file"], 12))
    return found


def exports(folder):
    """The models of EXPORTS; speed says nothing of models that small."""
    table = ROOT / "models" / "architectures"
    rows = {row["file"]: row for row in json.loads((table / "table.json").read_text())["rows"]}
    found = {}
    for name, file in EXPORTS.items():
        # A copy: there are tools that write into the file that they are given (ModelOpt the types of all values).
        found[name] = {"file": shutil.copy(table / file, folder), "task": "none", "speed": False}
        for half, count, seed in (("calib", 64, 1), ("heldout", 64, 2)):
            path = folder / f"{Path(file).stem}-{half}.npz"
            np.savez(path, **specified_arrays(rows[file]["inputs"], count, seed))
            found[name][half] = str(path)
    return found


def main_output(session, feeds):
    """Token embeddings [B, S, H] if the model has them, else its first output [B, …]."""
    arrays = session.run(None, feeds)
    tokens = feeds["input_ids"].shape if "input_ids" in feeds else None
    return next((a for a in arrays if a.ndim == 3 and a.shape[:2] == tokens), arrays[0])


def feeds_of(session, arrays, rows=slice(None), tokens=None):
    """The inputs of the model; token_type_ids are zeros. tokens: of ids and masks, if not all of them."""
    known = {name: array[rows, :tokens] if tokens else array[rows] for name, array in arrays.items()}
    if "input_ids" in known:
        known["token_type_ids"] = np.zeros_like(known["input_ids"])
    return {value.name: known[value.name] for value in session.get_inputs()}


def values(path, heldout):
    """The output on the held-out rows, [tokens, C], tokens that are padding left out."""
    session, arrays = measure.session(path), dict(np.load(heldout))
    parts = []
    for start in range(0, len(next(iter(arrays.values()))), 8):
        feeds = feeds_of(session, arrays, slice(start, start + 8))
        out = main_output(session, feeds)
        real = feeds.get("attention_mask", np.ones(out.shape[:-1])).astype(bool)
        parts.append((out[real] if out.shape[:-1] == real.shape else out.reshape(-1, out.shape[-1])).astype(np.float64))
    return np.concatenate(parts)


def embeddings(path, first=0):
    """Unit vectors of the sentences from number `first` on: the mean of the token embeddings, or the output as it is.
    Sentences of like length run together and are cut to the longest of them."""
    session, arrays = measure.session(path), dict(np.load(REAL / "sentences.npz"))
    lengths = arrays["attention_mask"].sum(axis=1)
    order = first + np.argsort(lengths[first:], kind="stable")
    vectors = {}
    for start in range(0, len(order), 50):
        rows = order[start : start + 50]
        feeds = feeds_of(session, arrays, rows, lengths[rows].max())
        out = main_output(session, feeds)
        if out.ndim == 3:
            mask = feeds["attention_mask"][..., None]
            out = (out * mask).sum(axis=1) / mask.sum(axis=1)
        vectors.update(zip(rows, out.astype(np.float32)))
    found = np.stack([vectors[row] for row in sorted(vectors)])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def ridge(vectors, scores):
    """Weights and bias of a ridge regression from embeddings to the human scores. The penalty is the one with the least
    squared error when each sentence is predicted by the others: residual / (1 − leverage)."""
    middle, level = vectors.mean(axis=0).astype(np.float64), scores.mean()
    u, d, vt = np.linalg.svd(vectors - middle, full_matrices=False)
    target = u.T @ (scores - level)
    errors = {}
    for penalty in PENALTIES:
        kept = d**2 / (d**2 + penalty)
        residual = scores - level - u @ (kept * target)
        errors[penalty] = np.square(residual / (1 - np.square(u) @ kept)).sum()
    best = min(errors, key=errors.get)
    weights = vt.T @ (d / (d**2 + best) * target)
    return np.append(weights, level - middle @ weights)


def predict(weights, vectors):
    return vectors @ weights[:-1] + weights[-1]


def neighbours(vectors, count):
    """Numbers of the `count` nearest other sentences of every sentence, by cosine."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :count]


def overlap(original, quantized, count):
    """Share of the nearest `count` sentences that both agree on."""
    pairs = zip(neighbours(original, count), neighbours(quantized, count))
    return float(np.mean([len(np.intersect1d(a, b)) / count for a, b in pairs]))


def accuracy(original, quantized, heldout, task, cache):
    """cache: a file that keeps what the original gives."""
    cache = Path(cache)
    if not cache.is_file():
        kept = {"values": values(original, heldout)}
        if task != "none":
            kept["embeddings"] = embeddings(original, 0 if task == "sentiment" else TRAINED)
        np.savez(cache, **kept)
    kept = np.load(cache)
    reference, got = kept["values"], values(quantized, heldout)
    cosine = np.vdot(reference, got) / (np.linalg.norm(reference) * np.linalg.norm(got))
    result = {"sqnr_db": None, "token_db": None, "cosine": cosine}
    if not np.array_equal(reference, got):
        result |= {"sqnr_db": measure.sqnr(reference, got), "token_db": measure.sqnr_per_token(reference, got)}
    if task != "none":
        vectors = embeddings(quantized, TRAINED)
        before = kept["embeddings"][-len(vectors) :]
        result |= {"top_1": overlap(before, vectors, 1), "top_10": overlap(before, vectors, 10)}
    if task == "sentiment":
        scores = np.load(REAL / "sentences.npz")["score"][:, 0] / 1000
        weights = ridge(kept["embeddings"][:TRAINED], scores[:TRAINED])
        said = predict(weights, vectors)
        result["probe_r"] = np.corrcoef(said, scores[TRAINED:])[0, 1]
        result["probe_accuracy"] = np.mean((said > 0) == (scores[TRAINED:] > 0))
    return {name: None if value is None else float(value) for name, value in result.items()}


def cpu_ratio(original, quantized, rounds):
    with tempfile.TemporaryDirectory() as folder:
        pair = [speed.load(path, folder) for path in (original, quantized)]
    arrays = [speed.feeds(session, 1, 128) for session, _ in pair]
    ratios = []
    for number in range(rounds + 1):  # the first round allocates
        order = (0, 1) if number % 2 else (1, 0)
        times = {index: speed.cpu_seconds(pair[index][0], arrays[index], 3) for index in order}
        ratios.append(times[0] / times[1])
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    return {"speed_up": middle, "speed_up_quartiles": [low, high], "int8_linears": pair[1][1]}


def main():
    command, *arguments = sys.argv[1:]
    if command == "models":
        result = models(Path(arguments[0]))
    elif command == "accuracy":
        result = accuracy(*arguments)
    else:
        result = cpu_ratio(arguments[0], arguments[1], int(arguments[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
