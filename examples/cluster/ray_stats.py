#!/usr/bin/env python3
"""Calibrates with Ray: every worker takes the statistics of one shard of the rows, then one machine makes the model.

    pip install ray
    python examples/cluster/ray_stats.py in.onnx out.onnx --calib data.npz --shards 8 [-- options of onnx-osplus]

Paths are on a disk that all workers see; `onnx-osplus` is installed on each (or named by ONNX_OSPLUS_BIN). RAY_ADDRESS names a cluster;
without it Ray starts one of its own on this machine. The result has the very bytes of a run on one machine.
"""

import argparse
import os
import subprocess
from pathlib import Path

import ray

TOOL = os.environ.get("ONNX_OSPLUS_BIN", "onnx-osplus")


def run(*words):
    result = subprocess.run([TOOL, *map(str, words)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(result.stderr.strip())


@ray.remote(num_cpus=1)
def take(model, calib, shard, path):
    run("stats", model, "--calib", calib, "--shard", shard, "--threads", 1, "-o", path, "--force", "-q")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--workers", type=int, help="of the cluster that is started here, if one is")
    arguments, options = parser.parse_known_args()
    model, out, calib = (path.resolve() for path in (arguments.model, arguments.out, arguments.calib))
    started = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": arguments.workers}
    ray.init(log_to_driver=False, include_dashboard=False, **started)
    names = [(f"{i}/{arguments.shards}", f"{out}.{i}.stats") for i in range(1, arguments.shards + 1)]
    parts = ray.get([take.remote(model, calib, shard, path) for shard, path in names])
    run(model, out, "--calib", calib, "--stats", *parts, *[word for word in options if word != "--"])
    for part in parts:
        Path(part).unlink()


if __name__ == "__main__":
    main()
