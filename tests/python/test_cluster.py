"""The examples for job engines: Ray on a local cluster of two workers, and the words of the Slurm and Kubernetes templates as those
would run them. Each gives the bytes of a run on one machine."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, run_tool, tool_path

EXAMPLES = ROOT / "examples" / "cluster"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """(folder with in.onnx and data.npz, the bytes that one run makes of them)"""
    folder = tmp_path_factory.mktemp("cluster")
    shutil.copy(ROOT / "models/tiny/model.onnx", folder / "in.onnx")
    shutil.copy(ROOT / "models/tiny/calib.npz", folder / "data.npz")
    result = run_tool("in.onnx", "once.onnx", "--calib", "data.npz", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, (folder / "once.onnx").read_bytes()


def environment(**more):
    return {**os.environ, "ONNX_OSPLUS_BIN": str(tool_path()), **more}


def test_ray_with_two_workers(once):
    folder, expected = once
    words = ["in.onnx", "ray.onnx", "--calib", "data.npz", "--shards", "3", "--workers", "2", "--", "-q"]
    command = [sys.executable, str(EXAMPLES / "ray_stats.py"), *words]
    env = environment(RAY_TMPDIR="/tmp", RAY_USAGE_STATS_ENABLED="0")
    env.pop("RAY_ADDRESS", None)
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (folder / "ray.onnx").read_bytes() == expected
    assert not list(folder.glob("*.stats"))


def test_a_slurm_array(once):
    folder, expected = once
    env = environment(MODEL="in.onnx", CALIB="data.npz", OUT="slurm.onnx", SHARDS="2", SLURM_CPUS_PER_TASK="1")
    script = ["bash", str(EXAMPLES / "slurm.sh")]
    for task in ("1", "2"):
        subprocess.run(script, cwd=folder, env={**env, "SLURM_ARRAY_TASK_ID": task}, check=True, timeout=300)
    subprocess.run(script, cwd=folder, env=env, check=True, timeout=300)
    assert (folder / "slurm.onnx").read_bytes() == expected


def test_a_kubernetes_indexed_job(once, tmp_path):
    folder, expected = once
    stats, quantize = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    assert stats["spec"]["completionMode"] == "Indexed" and quantize["spec"]["suspend"]
    # The image has the tool by its name.
    (tmp_path / "onnx-osplus").symlink_to(tool_path())
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}")
    for index in range(stats["spec"]["completions"]):
        container = stats["spec"]["template"]["spec"]["containers"][0]
        command = [*container["command"], *container["args"]]
        subprocess.run(command, cwd=folder, env={**env, "JOB_COMPLETION_INDEX": str(index)}, check=True, timeout=300)
    container = quantize["spec"]["template"]["spec"]["containers"][0]
    subprocess.run([*container["command"], *container["args"]], cwd=folder, env=env, check=True, timeout=300)
    assert (folder / "out.onnx").read_bytes() == expected
