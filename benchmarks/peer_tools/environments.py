"""One virtual environment per peer under .venv-peers/, because their pins contradict each other."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".venv-peers"
# The packages whose version the table names. Everything else is pinned in peers-requirements-NAME.txt.
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "neural-compressor": "neural-compressor",
    "onnx-neural-compressor": "onnx-neural-compressor",
    "nncf": "nncf",
    "onnxsim": "onnxsim",
    "onnxslim": "onnxslim",
    "quark": "amd-quark",
    "modelopt": "nvidia-modelopt",
}
WITH_DEPENDENCIES = ("quark", "modelopt")  # PyTorch brings libraries that differ from machine to machine


class NotInstalled(Exception):
    """Why a peer is missing from the table."""


def requirements(name):
    return ROOT / "benchmarks" / f"peers-requirements-{name}.txt"


def version(name):
    """The pinned version of the package that gives the environment its name."""
    pins = dict(line.split("==") for line in requirements(name).read_text().split("\n") if "==" in line)
    return next(v for package, v in pins.items() if package.replace("_", "-") == PACKAGES[name])


def python(name):
    """The interpreter of environment `name`, made now if it is missing or its requirements changed."""
    path = FOLDER / name
    digest = hashlib.sha256(requirements(name).read_bytes()).hexdigest()
    stamp, interpreter = path / "installed", path / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == digest:
        return interpreter
    if (path / "failed").is_file() and (path / "failed").read_text().startswith(digest):
        raise NotInstalled((path / "failed").read_text().split("\n", 1)[1])  # delete the folder to try again
    print(f"peers: installing {name} into {path}", file=sys.stderr, flush=True)
    shutil.rmtree(path, ignore_errors=True)
    pip = [interpreter, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    no_dependencies = [] if name in WITH_DEPENDENCIES else ["--no-deps"]
    for command in ([sys.executable, "-m", "venv", path], [*pip, *no_dependencies, "--requirement", requirements(name)]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            reason = (done.stdout.strip().split("\n") or ["no message"])[-1]
            path.mkdir(parents=True, exist_ok=True)
            (path / "failed").write_text(f"{digest}\n{reason}")
            raise NotInstalled(reason)
    stamp.write_text(digest)
    return interpreter


def variables(interpreter):
    """The environment variables of an activated environment; nothing may go to a model hub."""
    path = f"{Path(interpreter).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
