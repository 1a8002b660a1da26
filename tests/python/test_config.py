"""`--config`: the options of the command line from a file, one meaning and one message; what is printed is what was read."""

import json
import os
import shutil
import tomllib

import pytest
from conftest import TINY, TINY_DECOMPOSED, run_tool

FAST = {"max-slowdown": 0, "no-layers": True, "quiet": True}


def toml(value):
    return json.dumps(value, ensure_ascii=False)


def write(path, *models, **common):
    def lines(table):
        return [f"{key} = {toml(value if not isinstance(value, os.PathLike) else str(value))}" for key, value in table.items()]

    text = lines(common)
    for model in models:
        text += ["[[model]]", *lines(model)]
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and its data, as a project has them."""
    shutil.copy(TINY.model, tmp_path / "in.onnx")
    shutil.copy(TINY.calib, tmp_path / "data.npz")
    return tmp_path


def test_statistics_take_the_place_of_data(tmp_path):
    """--calib is needed on a command line that has neither --stats nor a file of settings."""
    shutil.copy(TINY.model, tmp_path / "in.onnx")
    kept = run_tool("stats", "in.onnx", "--calib", TINY.calib, "-o", "in.stats", "--with-data", cwd=tmp_path)
    assert kept.returncode == 0, kept.stderr
    settings = 'input = "in.onnx"\noutput = "out.onnx"\n'
    for more, status in (('stats = ["in.stats"]\n', 0), ("", 2)):
        (tmp_path / "osplus.toml").write_text(settings + more)
        done = run_tool("--config", "osplus.toml", "--force", cwd=tmp_path)
        assert done.returncode == status, done.stderr
    assert "--calib" in done.stderr
    done = run_tool("in.onnx", "out.onnx", cwd=tmp_path)
    assert done.returncode == 2 and "--calib" in done.stderr


def test_a_file_is_the_command_line(folder):
    config = write(folder / "osplus.toml", input="in.onnx", output="out.onnx", calib=["data.npz"], report="r.json", **FAST,
                   **{"weight-bits": 6, "exclude": "key"})
    # From another folder: paths are those of the file's.
    done = run_tool("--config", config, cwd="/")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    options = ["--calib", folder / "data.npz", "--max-slowdown", "0", "--no-layers", "--weight-bits", "6", "--exclude", "key", "-q"]
    assert run_tool(folder / "in.onnx", folder / "same.onnx", *options).returncode == 0
    assert (folder / "out.onnx").read_bytes() == (folder / "same.onnx").read_bytes()
    report = json.loads((folder / "r.json").read_text())
    assert report["config"] == str(config) and report["settings"]["weight_bits"] == 6
    assert report["arguments"]["weight-bits"] == ["6"] and report["arguments"]["no-layers"] == ["true"]
    assert report["arguments"]["target"] == ["ort"] and report["arguments"]["include"] == []
    assert report["arguments"]["input"] == [str(folder / "in.onnx")]


def test_the_command_line_wins(folder):
    config = write(folder / "osplus.toml", input="none.onnx", output="none/out.onnx", calib=["none.npz"], report=["r.json"],
                   **{**FAST, "target": "tensorrt", "weight-bits": 99})
    done = run_tool("--config", config, "in.onnx", "out.onnx", "--calib", "data.npz", "--target", "openvino", "--weight-bits", "7",
                    "-v", cwd=folder)
    # -v and the file's `quiet` exclude each other.
    assert done.returncode == 0 and "near" in done.stdout, done.stderr
    report = json.loads((folder / "r.json").read_text())
    assert (report["settings"]["target"], report["settings"]["weight_bits"]) == ("openvino", 7)
    assert report["files"]["input"] == "in.onnx" and report["arguments"]["calib"] == ["data.npz"]


def test_several_models_and_one_that_fails(folder):
    shutil.copy(TINY_DECOMPOSED.model, folder / "second.onnx")
    config = write(folder / "osplus.toml", {"input": "in.onnx", "output": "a.onnx", "report": ["a.json"]},
                   {"input": "none.onnx", "output": "b.onnx"},
                   {"input": "second.onnx", "output": "c.onnx", "target": "portable", "report": ["c.json"], "quiet": False},
                   calib="data.npz", **FAST)
    done = run_tool("--config", config, cwd="/")
    assert done.returncode == 1 and done.stderr.startswith("model 2 of 3: error: ") and "none.onnx" in done.stderr
    assert "OUT is written" not in done.stderr and "== model 3 of 3: " in done.stdout and "model 1" not in done.stdout
    targets = [json.loads((folder / f"{name}.json").read_text())["settings"]["target"] for name in "ac"]
    assert targets == ["ort", "portable"] and not (folder / "b.onnx").exists()
    # The same OUT twice is told before any work.
    config = write(folder / "two.toml", {"input": "in.onnx"}, {"input": "second.onnx"}, output="o.onnx", calib="data.npz", **FAST)
    done = run_tool("--config", config)
    assert done.returncode == 1 and "OUT of model 2 is the same file as OUT of model 1" in done.stderr
    done = run_tool("--config", config, folder / "in.onnx")
    assert done.returncode == 2 and "has 2 models" in done.stderr and not (folder / "o.onnx").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wieght-bits = 4", "no option is called `wieght-bits`; the nearest is `weight-bits`"),
        ("weight_bits = 4", "no option is called `weight_bits`; the nearest is `weight-bits`"),
        ("config = 'x'", "no option is called `config`"),
        ("weight-bits = 4\nweight-bits = 5", "osplus.toml:2: duplicate key"),
        ("weight-bits = ", "osplus.toml:1: "),
        ("weight-bits = 99", "osplus.toml: invalid value '99' for '--weight-bits <BITS>'"),
        ("target = 'tpu'", "osplus.toml: invalid value 'tpu' for '--target <TARGET>'"),
        ("clean = 'yes'", "`clean` takes true or false, not string"),
        ("target = true", "`target` takes a string or a number, not boolean"),
        ("report = [['a']]", "`report` takes an array of strings, not array"),
        ("model = 3", "`model` is for tables: [[model]]"),
        ("[[model]]\nclean = true\n[[model]]\nclaen = true", "osplus.toml, model 2: no option is called `claen`; the nearest is `clean`"),
        ("[tpu]\nx = 1", "no option is called `tpu`"),
        ("\"a\\u001b[2J\" = 1", "no option is called `a\\u{1b}[2J`"),
        ("keep-float = '120%'", "neither a number of Linears nor"),
        ("output = 'o.onnx'", "IN, OUT and --calib"),
    ],
)
def test_what_means_nothing_is_told(folder, text, said):
    (folder / "osplus.toml").write_text(text + "\n")
    done = run_tool("--config", "osplus.toml", "in.onnx", *([] if "output" in text else ["out.onnx", "--calib", "data.npz"]), cwd=folder)
    if "model 2" in said:
        done = run_tool("--config", "osplus.toml", cwd=folder)
    if "IN, OUT" in said:
        assert done.returncode == 2 and "--calib" in done.stderr
    else:
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stdout == "" and "\x1b" not in done.stderr and not (folder / "out.onnx").exists()


def test_a_file_that_is_none(folder):
    for name in ("none.toml", "."):
        done = run_tool("--config", name, "in.onnx", "out.onnx", "--calib", "data.npz", cwd=folder)
        assert done.returncode == 2 and "cannot read" in done.stderr
    (folder / "osplus.toml").write_bytes(b"\xff\xfe")
    assert run_tool("--config", "osplus.toml", cwd=folder).returncode == 2
    # A file that nobody named is not read; who gives nothing is told of it.
    (folder / "osplus.toml").write_text("input = 'x'")
    done = run_tool("in.onnx", "out.onnx", "--calib", "data.npz", "-q", "--max-slowdown", "0", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_what_is_printed_is_what_was_read(folder):
    options = ["in.onnx", "out.onnx", "--calib", "input_ids=a b=c.npy", "--calib", "data.npz", "--exclude", "\\d \"x\"\u202e", "--seed", "7",
               "--weight-bits", "4", "--keep-float", "20%", "--clean", "--max-slowdown", "2.50"]
    printed = run_tool(*options, "--print-config", cwd=folder)
    assert printed.returncode == 0 and printed.stderr == "" and not (folder / "out.onnx").exists()
    table = tomllib.loads(printed.stdout)
    assert table["input"] == "in.onnx" and table["calib"] == ["input_ids=a b=c.npy", "data.npz"]
    assert table["seed"] == 7 and table["clean"] is True and table["force"] is False and table["target"] == "ort"
    assert "# min-sqnr =" in printed.stdout and "print-config" not in table
    (folder / "again.toml").write_text(printed.stdout)
    again = run_tool("--config", "again.toml", "--print-config", cwd=folder)
    assert again.stdout == printed.stdout, again.stderr
    # Several models stay several.
    write(folder / "two.toml", {"input": "a", "output": "b"}, {"input": "c", "output": "inspect"}, calib="d")
    printed = run_tool("--config", "two.toml", "--print-config", cwd=folder)
    models = tomllib.loads(printed.stdout)["model"]
    assert [model["output"] for model in models] == ["b", "./inspect"]
    (folder / "again.toml").write_text(printed.stdout)
    assert run_tool("--config", "again.toml", "--print-config", cwd=folder).stdout == printed.stdout
