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
    calib = ["--calib", data] if data else []
    result = run_tool(TINY[0], out, *calib, "--report", report, "--no-layers", "--no-metadata", "--force", *options)
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


@pytest.mark.parametrize("options", [[], ["--streaming", "on"], ["--keep-float", "2"]])
def test_files_that_keep_the_rows_do_without_the_data(options, shards, tmp_path):
    whole, told = quantize(tmp_path / "whole.onnx", *options)
    one, two = shards(2)[0], shards(2, "--with-data")[1]
    made, report = quantize(tmp_path / "parts.onnx", *options, "--stats", one, two, data=None)
    assert made == whole
    assert report["outputs"] == told["outputs"] and report["notes"] == told["notes"]


def test_rows_that_are_not_there_or_damaged(shards, tmp_path):
    out = tmp_path / "out.onnx"
    assert "--with-data" in quantize(out, "--stats", *shards(2), status=1, data=None)
    assert "no file that" in quantize(out, "--stats", TINY[1], status=1, data=None)
    whole = shards(1, "--with-data")[0].read_bytes()
    damaged = tmp_path / "damaged.stats"
    at = int.from_bytes(whole[-24:-16], "little")
    for change in (at, at + 9, at + 40, len(whole) - 24, len(whole) - 20):
        damaged.write_bytes(whole[:change] + bytes([whole[change] ^ 0x55]) + whole[change + 1 :])
        said = quantize(out, "--stats", damaged, status=1, data=None)
        assert "damaged.stats" in said or "--with-data" in said, said
        assert "internal error" not in said
    assert not out.exists()


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
