"""Statistics in files: any number of shards, in any order, is one run over all rows."""

import json

import pytest
from conftest import run_tool

TINY = "models/tiny/model.onnx", "models/tiny/calib.npz"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """shards(n) → the files of n shards"""
    folder = tmp_path_factory.mktemp("stats")

    def make(count, *options):
        paths = []
        for i in range(1, count + 1):
            path = folder / f"{i}-of-{count}{''.join(options)}.stats"
            if not path.exists():
                result = run_tool("stats", TINY[0], "--calib", TINY[1], "--shard", f"{i}/{count}", "-o", path, *options)
                assert result.returncode == 0, result.stderr
            paths.append(path)
        return paths

    return make


def quantize(out, *options, status=0, data=TINY[1]):
    report = out.with_suffix(".json")
    result = run_tool(TINY[0], out, "--calib", data, "--report", report, "--no-layers", "--no-metadata", "--force", *options)
    assert result.returncode == status, result.stderr
    return (out.read_bytes(), json.loads(report.read_text())) if status == 0 else result.stderr


@pytest.mark.parametrize("options", [[], ["--format", "qoperator"], ["--target", "tensorrt"], ["--streaming", "on"]])
def test_shards_give_the_same_bytes(options, shards, tmp_path):
    whole, _ = quantize(tmp_path / "whole.onnx", *options)
    for count in (1, 2, 7):
        parts = shards(count)
        made, report = quantize(tmp_path / "parts.onnx", *options, "--stats", *reversed(parts))
        assert made == whole, count
        if options == []:
            # Nothing was measured again.
            assert not any("statistics that were given" in note for note in report["notes"])


def test_what_other_options_need_is_measured(shards, tmp_path):
    options = ["--weight-granularity", "group:32", "--weight-bits", "4"]
    whole, _ = quantize(tmp_path / "whole.onnx", *options)
    made, _ = quantize(tmp_path / "parts.onnx", *options, "--stats", *shards(2))
    assert made == whole
    made, _ = quantize(tmp_path / "exact.onnx", *options, "--stats", *shards(2, *options))
    assert made == whole


def test_what_does_not_fit_is_refused(shards, tmp_path):
    out = tmp_path / "out.onnx"
    one, two, *_, seven = shards(7)
    assert "lacks shard 3 of 7" in quantize(out, "--stats", one, two, status=1)
    assert "both shard 1 of 7" in quantize(out, "--stats", one, one, status=1)
    assert "one of 7 shards, another file one of 2" in quantize(out, "--stats", shards(2)[0], seven, status=1)
    assert "--seed" in quantize(out, "--stats", *shards(2), "--seed", "3", status=1)
    assert "other calibration data" in quantize(out, "--stats", *shards(2), data="models/tiny/heldout.npz", status=1)
    assert "no file that" in quantize(out, "--stats", TINY[1], status=1)
    damaged = tmp_path / "damaged.stats"
    whole = shards(1)[0].read_bytes()
    for length in (0, 20, 60, 700, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        said = quantize(out, "--stats", damaged, status=1)
        assert "damaged.stats" in said and "internal error" not in said
    said = run_tool("stats", TINY[0], "--calib", TINY[1], "-o", TINY[0], "--force").stderr
    assert "same file" in said
    said = run_tool("stats", TINY[0], "--calib", TINY[1], "-o", shards(1)[0]).stderr
    assert "exists" in said
    assert not out.exists()
