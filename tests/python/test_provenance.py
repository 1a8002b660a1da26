"""The written model says what it was made from: the same bytes every time, and nothing of it with --no-metadata."""

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from conftest import TINY, run_tool


def entries(path):
    """{key without prefix: value} of the tool's own metadata."""
    model = onnx.load(path, load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    return {key.removeprefix("onnx_osplus."): value for key, value in props.items() if key.startswith("onnx_osplus.")}


def quantize(model, out, calib, *options, cwd=None):
    result = run_tool(model, out, "--calib", calib, *options, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return out


def sha256(path):
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_a_model_says_of_itself(job):
    found = entries(job(TINY).path)
    assert list(found) == ["version", "settings", "decision", "source", "calibration"]
    assert found["version"] == job(TINY).report["version"]
    assert json.loads(found["settings"]) == job(TINY).report["settings"]
    assert found["decision"] == job(TINY).report["decision"]
    assert found["source"] == sha256(TINY.model)
    assert found["calibration"].startswith("sha256:")


@pytest.mark.parametrize("options", [(), ("--target", "portable", "--weight-bits", "6"), ("--format", "float")], ids=str)
def test_same_bytes_in_two_folders_with_one_and_two_threads(tmp_path, options):
    written = []
    for folder, threads in [("a", 1), ("b/c", 2)]:
        place = tmp_path / folder
        place.mkdir(parents=True)
        shutil.copy(TINY.model, place / "in.onnx")
        shutil.copy(TINY.calib, place / "data.npz")
        quantize("in.onnx", "out.onnx", "data.npz", "--threads", threads, *options, cwd=place)
        written.append((place / "out.onnx").read_bytes())
    assert written[0] == written[1]


def test_no_metadata_leaves_out_that_and_nothing_else(job, tmp_path):
    bare = onnx.load(quantize(TINY.model, tmp_path / "bare.onnx", TINY.calib, "--no-metadata"))
    full = onnx.load(job(TINY).path)
    assert not bare.metadata_props and full.metadata_props
    del full.metadata_props[:]
    assert bare == full


def test_the_data_count_and_not_their_file(job, tmp_path):
    arrays = dict(np.load(TINY.calib))
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "batch.npz", **arrays)
    same = entries(quantize(TINY.model, tmp_path / "same.onnx", folder))
    arrays["input_ids"][0, 0] += 1
    np.savez(tmp_path / "other.npz", **arrays)
    other = entries(quantize(TINY.model, tmp_path / "other.onnx", tmp_path / "other.npz"))
    expected = entries(job(TINY).path)["calibration"]
    assert same["calibration"] == expected != other["calibration"]


def test_external_data_of_the_source_and_metadata_of_others(tmp_path):
    model = onnx.load(TINY.model)
    model.metadata_props.add(key="author", value="someone")
    model.metadata_props.add(key="onnx_osplus.version", value="an older one")
    source = tmp_path / "in.onnx"
    onnx.save(model, source, save_as_external_data=True, location="in.bin", size_threshold=0)
    out = quantize(source, tmp_path / "out.onnx", TINY.calib)
    found = entries(out)
    assert found["source"] == sha256(source)
    assert found["source_data"] == f"in.bin {sha256(tmp_path / 'in.bin')}"
    keys = [p.key for p in onnx.load(out).metadata_props]
    assert keys[0] == "author" and keys.count("onnx_osplus.version") == 1
    assert found["version"] != "an older one"
