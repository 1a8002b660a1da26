"""Fixtures: each command of the tool runs once per session, the tests look at what it left.

`job(CASE, options…)` quantizes one model and returns a `Job`; the same arguments give the same `Job` again.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
sys.path[:0] = [str(MODELS), str(Path(__file__).parent)]

import measure  # noqa: E402  (needs the path above)
from build_albert import albert_model, read_torch  # noqa: E402
from build_bert import bert_model, read_safetensors  # noqa: E402
from once import once, shared  # noqa: E402


def pytest_configure():
    # Before pytest-xdist starts processes, so that all of them know the folder.
    shared()


def tool_path():
    """The binary under test; tests/run builds it and names it."""
    path = os.environ.get("ONNX_OSPLUS_BIN")
    if not path or not os.access(path, os.X_OK):
        pytest.exit(f"ONNX_OSPLUS_BIN must name the built onnx-osplus binary, found {path!r}; use tests/run", returncode=1)
    return path


def run_tool(*args, cwd=None, timeout=900):
    """Run the tool; stdout and stderr are text, the exit status is `returncode`."""
    return subprocess.run([tool_path(), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout)


@dataclass(frozen=True)
class Case:
    """A model with its calibration and held-out text, and what is known about it."""

    name: str
    model: Path
    calib: Path
    heldout: Path
    output: str  # the output that SQNR is taken on, [B, S, C]
    linears: int  # MatMuls with a constant weight

    def load_heldout(self):
        return measure.with_token_types(self.model, np.load(self.heldout))


@dataclass(frozen=True)
class Job:
    """What one successful run of the tool left behind."""

    case: Case
    path: Path
    report: dict
    stdout: str
    stderr: str

    def model(self):
        return onnx.load(self.path)


def tiny_case(name, output, linears):
    folder = MODELS / name
    return Case(name, folder / "model.onnx", folder / "calib.npz", folder / "heldout.npz", output, linears)


TINY = tiny_case("tiny", "last_hidden_state", 12)
TINY_DECOMPOSED = tiny_case("tiny-decomposed", "last_hidden_state", 12)
TINY_LLAMA = tiny_case("tiny-llama", "logits", 15)
TINY_CASES = [TINY, TINY_DECOMPOSED, TINY_LLAMA]


def real_case(name, model, output, linears, data=""):
    calib, heldout = (MODELS / "real" / f"{data}{half}.npz" for half in ("calib", "heldout"))
    for path in (model, calib, heldout):
        assert path.is_file(), f"{path} is missing: run models/fetch"
    return Case(name, model, calib, heldout, output, linears)


@pytest.fixture(scope="session")
def l3():
    return real_case("minilm-l3", MODELS / "real" / "minilm-l3.onnx", "onnx::Shape_422", 18)


@pytest.fixture(scope="session")
def l6(tmp_path_factory):
    """{"fused": Case, "decomposed": Case}: all-MiniLM-L6-v2 with both forms of layer normalization."""
    weights = MODELS / "real" / "minilm-l6.safetensors"
    assert weights.is_file(), f"{weights} is missing: run models/fetch"
    folder, cases = tmp_path_factory.mktemp("l6"), {}
    for form in ("fused", "decomposed"):
        model = bert_model(read_safetensors(weights), heads=12, fused=form == "fused", name=f"minilm-l6-{form}")
        path = folder / f"minilm-l6-{form}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        cases[form] = real_case(path.stem, path, "last_hidden_state", 36)
    return cases


@pytest.fixture(scope="session")
def albert(tmp_path_factory):
    """rxnmapper's ALBERT: twelve layers, one set of weights."""
    weights = MODELS / "real" / "albert.bin"
    assert weights.is_file(), f"{weights} is missing: run models/fetch"
    model = albert_model(read_torch(weights), heads=8, layers=12, fused=True)
    path = tmp_path_factory.mktemp("albert") / "albert.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return real_case("albert", path, "last_hidden_state", 73, "reactions-")


def run_job(case, folder, options):
    """What a `Job` is made of, in files: out.onnx, report.json, and what was printed."""
    paths = folder / "out.onnx", "--calib", case.calib, "--no-layers", "--report", folder / "report.json"
    result = run_tool(case.model, *paths, *options)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    (folder / "said.json").write_text(json.dumps({"stdout": result.stdout, "stderr": result.stderr}))


@pytest.fixture(scope="session")
def job():
    """job(case, options…) → Job. Fails the test with the tool's own words if the tool fails."""
    done = {}

    def run(case, *options):
        key = (case.name, *map(str, options))
        if key not in done:
            # What is asked for is the default.
            options = options[2:] if options[:2] == ("--target", "ort") else options
            name = f"{case.name}-{hashlib.sha256(repr([str(o) for o in options]).encode()).hexdigest()[:16]}"
            folder = once(name, lambda folder: run_job(case, folder, options))
            report, said = (json.loads((folder / file).read_text()) for file in ("report.json", "said.json"))
            done[key] = Job(case, folder / "out.onnx", report, said["stdout"], said["stderr"])
        return done[key]

    return run


@pytest.fixture(scope="session")
def optimized(tmp_path_factory):
    """optimized(path) → the graph as ONNX Runtime runs it."""
    done = {}

    def dump(path):
        if path not in done:
            done[path] = measure.optimized_model(path, tmp_path_factory.mktemp("optimized") / "model.onnx")
        return done[path]

    return dump


def build_wheel(folder):
    done = subprocess.run(
        [sys.executable, "-m", "maturin", "build", "--profile", "dev", "-m", ROOT / "python" / "Cargo.toml", "--offline"]
        + ["--compatibility", "linux" if sys.platform == "linux" else "off", "-o", folder, "-i", sys.executable],
        env={**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Compiling tract" not in done.stderr, "its features differ from those of the program"


@pytest.fixture(scope="session")
def wheel():
    """The wheel, built with the profile and into the folder that the tests have built the program with and into; by one process, as what
    it is packed from must not change meanwhile."""
    (path,) = once("wheel", build_wheel).glob("*.whl")
    return path


@pytest.fixture(scope="session")
def package(wheel, tmp_path_factory):
    """The Python package, imported from the wheel."""
    folder = tmp_path_factory.mktemp("package")
    zipfile.ZipFile(wheel).extractall(folder)
    sys.path.insert(0, str(folder))
    import onnx_osplus

    return onnx_osplus
