"""Recordings as data: what the tool feeds a model with is what the feature extractors of `transformers` make of them."""

import json
import wave

import numpy as np
import onnx
import pytest
from conftest import run_tool
from onnx import TensorProto, helper, numpy_helper
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

RATE = 16000


def sound(number, rng):
    """Tones, sweeps, noise and silence, from a tenth of a second to two."""
    count = int(rng.integers(1600, 32000))
    time = np.arange(count) / RATE
    kinds = [
        lambda: np.sin(2 * np.pi * (100 + 37 * number) * time),
        lambda: np.sin(2 * np.pi * (50 + 1500 * time) * time) * np.exp(-time),
        lambda: rng.normal(size=count) / 5,
        lambda: np.where(time < time[-1] / 2, 0, np.sin(2 * np.pi * 440 * time)),
        lambda: np.zeros(count),
    ]
    return np.clip(kinds[number % len(kinds)]() * rng.uniform(0.01, 1), -1, 1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A hundred recordings of 16 bits, and what is in them."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("recordings")
    waves = []
    for i in range(100):
        samples = np.round(sound(i, rng) * 32767).astype(np.int16)
        write(folder / f"{i:03}.wav", samples)
        waves.append(samples.astype(np.float32) / 32768)
    return folder, waves


def write(path, samples, rate=RATE, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def speech_model(path, name, shape, mask=False):
    """A mean over time, a norm and a Linear."""
    rng = np.random.default_rng(0)
    weights = {"weight": rng.normal(size=(4, 8)), "gamma": np.array([1, 1, 1, 9]), "beta": np.zeros(4), "spread": rng.normal(size=(1, 4))}
    nodes = [helper.make_node("ReduceMean", [name], ["mean"], axes=list(range(1, len(shape))), keepdims=0)]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
    last = "mean"
    if mask:
        inputs.append(helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape))
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["real"], ["share"], axes=[1], keepdims=0),
            helper.make_node("Div", ["mean", "share"], ["of_real"]),
        ]
        last = "of_real"
    nodes += [
        helper.make_node("Unsqueeze", [last, "axis"], ["column"]),
        helper.make_node("Mul", ["column", "spread"], ["channels"]),
        helper.make_node("LayerNormalization", ["channels", "gamma", "beta"], ["normed"]),
        helper.make_node("MatMul", ["normed", "weight"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), of) for of, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1]), "axis"))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "speech", inputs, [output], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


WHISPERS = {
    "80 bands": WhisperFeatureExtractor(chunk_length=2),
    "128 bands": WhisperFeatureExtractor(chunk_length=1, feature_size=128),
    "another window": WhisperFeatureExtractor(chunk_length=1, n_fft=512, hop_length=128, feature_size=40),
}


@pytest.mark.parametrize("name", WHISPERS)
def test_a_hundred_recordings_for_whisper(name, recordings, package, tmp_path):
    folder, waves = recordings
    extractor = WHISPERS[name]
    extractor.save_pretrained(tmp_path)
    model = speech_model(tmp_path / "model.onnx", "input_features", ["batch", extractor.feature_size, "time"])
    theirs = extractor(waves, sampling_rate=RATE, return_tensors="np")["input_features"]
    ours = np.concatenate([batch["input_features"] for batch in package.data(model, folder, samples=100)])
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("normalizes", [True, False])
def test_a_hundred_recordings_for_wav2vec2(normalizes, recordings, package, tmp_path):
    """With a mask they are padded to the longest; without one each is a run of its own."""
    folder, waves = recordings
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=normalizes)
    extractor.save_pretrained(tmp_path)
    model = speech_model(tmp_path / "model.onnx", "input_values", ["batch", "time"], mask=True)
    theirs = extractor(waves, sampling_rate=RATE, padding=True, return_tensors="np")
    batches = package.data(model, folder, samples=100)
    for name in ("input_values", "attention_mask"):
        ours = np.concatenate([batch[name] for batch in batches])
        assert ours.shape == theirs[name].shape
        np.testing.assert_allclose(ours, theirs[name], atol=1e-4 if normalizes else 0, rtol=1e-5)
    plain = speech_model(tmp_path / "plain.onnx", "input_values", ["batch", "time"])
    theirs = sorted(extractor(waves, sampling_rate=RATE)["input_values"], key=len)
    ours = sorted((row for batch in package.data(plain, folder, samples=100) for row in batch["input_values"]), key=len)
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    by_sum = lambda rows: sorted((len(row), round(float(np.abs(row).sum()), 0)) for row in rows)  # noqa: E731
    assert by_sum(ours) == pytest.approx(by_sum(theirs), abs=2)


def test_other_forms_of_samples(package, tmp_path):
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    model = speech_model(tmp_path / "model.onnx", "input_values", ["batch", "time"])
    left, right = np.array([0, 16384, -32768, 100], np.int16), np.array([0, 0, -32768, 300], np.int16)
    write(tmp_path / "stereo.wav", np.stack([left, right], 1), channels=2)
    write(tmp_path / "wide.wav", np.array([0, 2**30, -(2**31), 12345], np.int32))
    for name, wanted in (
        ("stereo", np.array([0, 0.25, -1, 200 / 32768])),
        ("wide", np.array([0, 0.5, -1, 12345 / 2**31])),
    ):
        (batch,) = package.data(model, tmp_path / f"{name}.wav")
        np.testing.assert_allclose(batch["input_values"][0], wanted, atol=1e-7)


def test_recordings_calibrate(recordings, tmp_path):
    folder, _ = recordings
    WHISPERS["80 bands"].save_pretrained(tmp_path)
    model = speech_model(tmp_path / "model.onnx", "input_features", ["batch", 80, 200])
    done = run_tool(model, tmp_path / "out.onnx", "--calib", folder, "--max-slowdown", 0)
    assert done.returncode == 0, done.stderr
    assert "32 of the 100 recordings" in done.stdout.replace("\n           ", " ")


def test_what_does_not_go_is_said(recordings, tmp_path):
    folder, _ = recordings
    model = speech_model(tmp_path / "model.onnx", "input_features", ["batch", 80, "time"])

    def told(data, config=None):
        if config is not None:
            (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        done = run_tool(model, tmp_path / "out.onnx", "--calib", data)
        assert done.returncode == 1
        return done.stderr

    assert "--preprocessor DIR" in told(folder)
    assert "SeamlessM4TFeatureExtractor is not known here" in told(folder, {"feature_extractor_type": "SeamlessM4TFeatureExtractor"})
    whisper = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1}
    write(tmp_path / "fast.wav", np.zeros(100, np.int16), rate=44100)
    assert "has 44100 samples a second, and the model takes 16000" in told(tmp_path / "fast.wav", whisper)
    (tmp_path / "no.wav").write_bytes(b"RIFF....WAVE")
    assert "is no .wav that can be read" in told(tmp_path / "no.wav")
