"""The Python package as a user has it: a wheel in a fresh environment, and what Python programs give it."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import MODELS, ROOT, run_tool
from test_text_data import expected, sentences
from tokenizers import BertWordPieceTokenizer

TINY = MODELS / "tiny"


@pytest.fixture(scope="session")
def fresh(wheel, tmp_path_factory):
    """The Python of an environment with this wheel and nothing else."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "pip", "install", "-q", "--no-index", "--no-deps", wheel], check=True)
    return folder / "bin" / "python"


def run(python, code, *arguments, arrays=False, fails=False):
    """Runs lines of Python; with `arrays` the packages of the tests can be imported too. Gives what is printed."""
    env = dict(os.environ)
    env.pop("PYTHONPATH", None)
    if arrays:
        env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run([python, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_the_program_and_the_package_are_built_on_the_same_crates():
    """Where a crate of both has other features in one of them, tract is compiled twice: minutes, on every machine."""

    def crates(manifest):
        tree = ["cargo", "tree", "--locked", "--offline", "--prefix", "none", "-f", "{p} {f}", "-e", "normal,build,dev"]
        done = subprocess.run([*tree, "--manifest-path", manifest], check=True, capture_output=True, text=True)
        rows = (line.removesuffix(" (*)").split(" ") for line in done.stdout.splitlines() if line)
        return {(row[0], row[1]): row[2:] for row in rows}

    program, package = crates(ROOT / "Cargo.toml"), crates(ROOT / "python" / "Cargo.toml")
    both = program.keys() & package.keys()
    assert len(both) > 250
    assert {key: package[key] for key in both} == {key: program[key] for key in both}


def test_what_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "cp310-abi3" in wheel.name
    assert {"onnx_osplus/py.typed", "onnx_osplus/__init__.pyi", "onnx_osplus/_onnx_osplus.pyi"} <= set(names)
    assert sum(name.endswith((".so", ".pyd")) for name in names) == 1
    assert not [name for name in names if not name.startswith(("onnx_osplus/", "onnx_osplus-"))]


def test_three_lines_quantize_minilm_with_sentences(fresh, tmp_path):
    tokenizer = BertWordPieceTokenizer(str(MODELS / "real" / "vocab.txt"))
    hub = tmp_path / "hub"
    hub.mkdir()
    tokenizer.save(str(hub / "tokenizer.json"))
    (hub / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 128, "pad_token": "[PAD]"}))
    shutil.copy(MODELS / "real" / "minilm-l3.onnx", hub / "model.onnx")
    texts = sentences(64)
    (tmp_path / "sentences.txt").write_text("\n".join(texts))
    code = """
import sys, onnx_osplus
result = onnx_osplus.quantize(sys.argv[1], sys.argv[2], sys.argv[3], max_slowdown=0)
print(result.sqnr_db)
"""
    out = tmp_path / "int8.onnx"
    said = run(fresh, code, hub / "model.onnx", tmp_path / "sentences.txt", out)
    assert all(db > 25 for db in ast.literal_eval(said).values()), said
    session = onnxruntime.InferenceSession(out)
    names = [value.name for value in session.get_inputs()]
    arrays = expected(hub, texts, names=[n for n in ("input_ids", "attention_mask", "token_type_ids") if n in names])
    session.run(None, arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    done = run_tool(hub / "model.onnx", tmp_path / "npz.onnx", "--calib", tmp_path / "data.npz", "--max-slowdown", 0)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (tmp_path / "npz.onnx").read_bytes()


KINDS = """
import sys, numpy as np, onnx, onnx_osplus
model, data, folder = sys.argv[1:]
arrays = dict(np.load(data))
first = next(iter(arrays.values()))

class Reader:
    def __init__(self):
        self.row = 0
    def get_next(self):
        if self.row == len(first):
            return None
        self.row += 4
        return {name: array[self.row - 4 : self.row] for name, array in arrays.items()}
    def rewind(self):
        self.row = 0

class Loader:
    def __iter__(self):
        return ({**{n: a[i] for n, a in arrays.items()}, "labels": 1} for i in range(len(first)))

proto = onnx.load(model)
before = proto.SerializeToString()
kinds = {
    "path": (model, data),
    "bytes": (open(model, "rb").read(), arrays),
    "proto": (proto, [arrays]),
    "reader": (model, Reader()),
    "rows": (model, Loader()),
}
for name, (model, calibration) in kinds.items():
    result = onnx_osplus.quantize(model, calibration, no_metadata=True)
    open(f"{folder}/{name}.onnx", "wb").write(result.model)
    assert result.path is None and result.sqnr_db and "outputs" in result.report
    assert "<iframe" in result._repr_html_() and "Linears" in repr(result)
assert proto.SerializeToString() == before
reader = Reader()
onnx_osplus.quantize(model, reader)
assert reader.row == 0
"""


def test_every_kind_of_model_and_data_gives_the_same_bytes(fresh, tmp_path):
    run(fresh, KINDS, TINY / "model.onnx", TINY / "calib.npz", tmp_path, arrays=True)
    done = run_tool(TINY / "model.onnx", tmp_path / "cli.onnx", "--calib", TINY / "calib.npz", "--no-metadata")
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("*.onnx"))
    assert len(files) == 6 and len({file.read_bytes() for file in files}) == 1


OTHERS = """
import sys, json, onnx_osplus
model, data, out = sys.argv[1:]
told = []
result = onnx_osplus.quantize(model, data, out, weight_bits=6, keep_float=0.2, progress=lambda *word: told.append(word))
assert result.report["settings"]["weight_bits"] == 6 and str(result.path) == out
assert all(0 <= done <= total for _, done, total in told) and len({what for what, _, _ in told}) > 1, told
verification = onnx_osplus.verify(model, out, data)
assert verification["outputs"][0]["sqnr_db"] > 10
assert onnx_osplus.inspect(model)["linears"] and onnx_osplus.inspect(model, data)["rows"] > 0
assert onnx_osplus.lint(out, "ort") == []
assert not onnx_osplus.diff(model, model) and "MatMul" in onnx_osplus.diff(model, out).text

def raised(kind, *words, **options):
    try:
        onnx_osplus.quantize(*words, **options)
    except kind as error:
        return str(error)
    raise AssertionError(options)

assert "unexpected argument '--wait-bits'" in raised(onnx_osplus.UsageError, model, data, wait_bits=4)
assert "weight-bits" in raised(onnx_osplus.UsageError, model, data, weight_bits=40)
assert "exists" in raised(onnx_osplus.OsplusError, model, data, out)
assert "is not an ONNX file" in raised(onnx_osplus.OsplusError, b"abc", data)
assert "no such file" in raised(onnx_osplus.OsplusError, model, "nowhere").lower()
raised(onnx_osplus.NothingToQuantize, model, data, exclude=".")
raised(TypeError, 7, data)
raised(TypeError, model, 7)

class Stop(Exception):
    pass

def stop(what, done, total):
    raise Stop(what)

raised(Stop, model, data, progress=stop)

calls = []
def metric(candidate):
    calls.append(len(candidate))
    return 0.9 if candidate == open(model, "rb").read() else 0.5
judged = onnx_osplus.quantize(model, data, metric=metric)
assert judged.metric == {"float": 0.9, "quantized": 0.5} and calls[1] == len(judged.model)
import os
told = raised(onnx_osplus.MetricError, model, data, out + ".new", metric=metric, min_metric=0.8)
assert "from 0.9 (float) to 0.5 (quantized), below min_metric 0.8" in told and not os.path.exists(out + ".new")
onnx_osplus.quantize(model, data, out + ".new", metric=metric, min_metric=0.4)
assert os.path.exists(out + ".new")
raised(onnx_osplus.UsageError, model, data, min_metric=1)
"""


def test_options_errors_progress_and_metric(fresh, tmp_path):
    run(fresh, OTHERS, TINY / "model.onnx", TINY / "calib.npz", tmp_path / "out.onnx")


JUDGED = """
import json, sys, numpy as np, onnx_osplus
model, data, out = sys.argv[1:]
feeds = dict(np.load(data))
feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])

def vectors(candidate):
    names = {value.name for value in candidate.get_inputs()}
    return candidate.run(None, {n: feeds[n] for n in feeds if n in names})[0]

before = vectors(onnx_osplus.Candidate(open(model, "rb").read()))

def metric(candidate):
    return -float(np.square(vectors(candidate) - before).mean())

# A metric may be below 0: a number is a value, a text with a minus is a fall.
low = dict(weight_bits=4, activation_bits=6, no_layers=True)
plain = onnx_osplus.quantize(model, data, metric=metric, **low)
half = plain.metric["quantized"] / 2
result = onnx_osplus.quantize(model, data, metric=metric, min_metric=half, **low)
assert result.metric["float"] == 0 and result.metric["quantized"] >= half, result.metric
assert result.report["kept_float"]["linears"] and result.report["metric"]["least"] == half
assert abs(metric(onnx_osplus.Candidate(result.model)) - result.metric["quantized"]) < 1e-9
assert onnx_osplus.quantize(model, data, metric=metric, min_metric=str(half), **low).metric["quantized"] >= half
def broken(candidate):
    raise ZeroDivisionError("of my own")
try:
    onnx_osplus.quantize(model, data, metric=broken, min_metric=0.5)
    raise SystemExit("no error")
except ZeroDivisionError as error:
    assert "of my own" in str(error)
# Labels beside the data, in memory.
labels = np.arange(len(feeds["input_ids"]) // 2)
judged = onnx_osplus.quantize(model, data, eval=data, labels=labels, min_metric="-50%", no_layers=True)
assert judged.report["metric"]["name"] == "spearman" and judged.report["metric"]["rows"] == len(labels)
verified = onnx_osplus.verify(model, judged.model, data, labels=labels, metric="pearson", no_layers=True)
assert verified["metric"]["name"] == "pearson"
# Statistics, in two parts.
parts = [onnx_osplus.stats(model, data, f"{out}-{n}.stats", shard=f"{n}/2") for n in (1, 2)]
again = onnx_osplus.quantize(model, data, stats=parts, no_layers=True, no_metadata=True)
assert again.model == onnx_osplus.quantize(model, data, no_layers=True, no_metadata=True).model
kept = onnx_osplus.stats(model, data, f"{out}-kept.stats", with_data=True)
assert onnx_osplus.quantize(model, None, stats=kept, no_layers=True, no_metadata=True).model == again.model
try:
    onnx_osplus.stats(model, data, parts[0])
    raise SystemExit("no error")
except onnx_osplus.OsplusError as error:
    assert "exists" in str(error)
"""


def test_a_metric_decides_what_stays_in_float(fresh, tmp_path):
    run(fresh, JUDGED, TINY / "model.onnx", TINY / "heldout.npz", tmp_path / "out", arrays=True)


OLIVE = """
import json, sys, types
from pathlib import Path
model, data, out = sys.argv[1:]

# In place of olive-ai, which brings 6 GB of PyTorch: what the pass takes of it (checked by hand with 0.13.0).
class Handler:
    def __init__(self, model_path):
        self.model_path = model_path
class Param:
    def __init__(self, type_=None, required=False, default_value=None, description=None):
        self.required, self.default_value = required, default_value
class Pass:
    def __init__(self, config):
        known = self._default_config(None)
        assert config.keys() <= known.keys(), config.keys() - known.keys()
        self.config = types.SimpleNamespace(model_dump=lambda: {n: p.default_value for n, p in known.items()} | config)
    def run(self, model, out):
        return self._run_for_config(model, self.config, out)
class Package:
    get_default_config_path = staticmethod(lambda: out + ".json")
Path(out + ".json").write_text(json.dumps({"passes": {"OnnxFloatToFloat16": {}}}))

def module(name, **of):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(of)
module("olive")
module("olive.model", ONNXModelHandler=Handler)
module("olive.model.utils", resolve_onnx_path=lambda path, name: path if path.endswith(".onnx") else f"{path}/{name}")
module("olive.passes", Pass=Pass)
module("olive.passes.pass_config", PassConfigParam=Param)
module("olive.package_config", OlivePackageConfig=Package)

import onnx_osplus
from onnx_osplus.olive import OnnxOsplus, package_config
made = OnnxOsplus({"calibration": data, "target": "portable", "keep_float": 1, "options": {"no_layers": True, "report": out + "-report.json"}})
result = made.run(Handler(model), out)
report = json.loads(Path(out + "-report.json").read_text())
assert report["settings"]["target"] == "portable" and len(report["kept_float"]["linears"]) == 1
assert Path(result.model_path) == Path(out) / "model.onnx" and Path(result.model_path).stat().st_size > 1000
try:
    OnnxOsplus({"calibration": data, "options": {"target": "ort"}, "target": "portable"}).run(Handler(model), out)
    raise SystemExit("no error")
except onnx_osplus.UsageError as error:
    assert "target" in str(error)
known = package_config()["passes"]
assert known["OnnxOsplus"]["module_path"] == "onnx_osplus.olive.OnnxOsplus" and "OnnxFloatToFloat16" in known
"""


def test_a_pass_of_olive(fresh, tmp_path):
    run(fresh, OLIVE, TINY / "model.onnx", TINY / "calib.npz", tmp_path / "out")


METRIC = """
import sys, numpy as np, onnx_osplus
model, data = sys.argv[1:]
feeds = dict(np.load(data))
feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])

def metric(candidate):
    names = {value.name for value in candidate.get_inputs()}
    return float(np.abs(candidate.run(None, {n: feeds[n] for n in feeds if n in names})[0]).mean())

result = onnx_osplus.quantize(model, data, metric=metric)
assert abs(result.metric["quantized"] / result.metric["float"] - 1) < 0.1, result.metric
result.session()
assert len(result.model_proto().graph.node) > 10
"""


def test_a_metric_runs_sessions(fresh):
    run(fresh, METRIC, TINY / "model.onnx", TINY / "calib.npz", arrays=True)


def test_the_program_comes_with_it(fresh, tmp_path):
    program = fresh.parent / "onnx-osplus"

    def both(*words):
        """The program of the wheel and the one under test: status and what is said."""
        ours = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
        theirs = run_tool(*words)
        assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
        return ours

    assert both("--version").returncode == 0
    assert both("--help").returncode == 0
    assert both("inspect").returncode == 2
    assert both("lint", TINY / "model.onnx", "--target", "ort").stdout
    assert both(tmp_path / "no.onnx", tmp_path / "out.onnx", "--calib", TINY / "calib.npz").returncode == 1
    done = subprocess.run(
        [program, TINY / "model.onnx", tmp_path / "out.onnx", "--calib", TINY / "calib.npz", "--report", tmp_path / "r.json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "wrote" in done.stdout, done.stderr
    command = json.loads((tmp_path / "r.json").read_text())["command"]
    assert command.startswith(str(program)) and "--report" in command
    assert both(TINY / "model.onnx", tmp_path / "none.onnx", "--calib", TINY / "calib.npz", "--exclude", ".").returncode == 3


def test_the_crate_that_is_published_is_whole():
    """What `cargo package` packs compiles without what it leaves out."""
    done = subprocess.run(
        ["cargo", "package", "--list", "--allow-dirty", "--offline", "-p", "onnx-osplus"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    packed = set(done.stdout.split())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.rs")}
    assert sources <= packed
    assert {"proto/onnx.proto", "build.rs", "README.md", "LICENSE-MIT", "LICENSE-APACHE"} <= packed
    assert not [name for name in packed if name.startswith(("models/", "python/", "tests/", "fuzz/corpus/"))]


def test_versions_agree():
    versions = [
        line.split('"')[1]
        for file in (ROOT / "Cargo.toml", ROOT / "python" / "Cargo.toml")
        for line in Path(file).read_text().splitlines()
        if line.startswith("version = ")
    ]
    assert len(versions) == 2 and len(set(versions)) == 1
