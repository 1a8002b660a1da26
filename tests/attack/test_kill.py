"""Nothing is lost, whenever the program ends: killed at random moments, and with every rename, link, unlink, write and
fsync failing in turn, or being the last thing that the process does.

OUT stands for a result of before, which `--force` replaces. Afterwards it is the old file or the new one, byte for byte,
with the data that belongs to it; or, where the process was killed between the two renames, it is not there. Never is it
there with the data of another.

    pytest tests/attack/test_kill.py --kills 200
"""

import os
import random
import signal
import subprocess
import time
import warnings

import numpy as np
import pytest
from make import large, raw

ENDINGS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def tool(folder, *options, out="out.onnx", environment=()):
    command = [os.environ["ONNX_OSPLUS_BIN"], "in.onnx", out, "--calib", "x.npz", "--threads", "1", "-q", *options]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env={**os.environ, **dict(environment)})


def finish(process):
    _, err = process.communicate(timeout=120)
    return process.returncode, err.decode()


@pytest.fixture(scope="module", params=["disk", "tmpfs", "overlay"])
def folder(request, tmp_path_factory):
    """A folder with IN and data on one kind of file system; where it cannot be mounted, that is said, and the folder is on
    the disk once more."""
    place = tmp_path_factory.mktemp(request.param)
    mounted = None
    if request.param != "disk":
        (place / "mnt").mkdir()
        kind = ["-t", "tmpfs", "none"]
        if request.param == "overlay":
            for name in ("lower", "upper", "work"):
                (place / name).mkdir()
            kind = ["-t", "overlay", "-o", f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work", "none"]
        done = subprocess.run(["mount", *kind, place / "mnt"], capture_output=True, text=True)
        if done.returncode:
            warnings.warn(f"{request.param} cannot be mounted here, so kills there are not tried: {done.stderr.strip()}")
        else:
            mounted = place / "mnt"
    place = mounted or place
    (place / "in.onnx").write_bytes(raw(large()))
    np.savez(place / "x.npz", x=np.random.RandomState(0).randn(8, 4, 8).astype(np.float32))
    yield place
    if mounted:
        subprocess.run(["umount", "-l", mounted], check=True)


def state(folder):
    """What is at OUT and OUT.data."""
    read = lambda path: path.read_bytes() if path.exists() else None  # noqa: E731
    return read(folder / "out.onnx"), read(folder / "out.onnx.data")


def reset(folder, pair):
    for path in [*folder.glob("out.*"), *folder.glob(".onnx-osplus-*"), *folder.glob("count*")]:
        path.unlink()
    for name, content in zip(("out.onnx", "out.onnx.data"), pair):
        if content is not None:
            (folder / name).write_bytes(content)


def results(folder, external):
    """The pairs of before (another method) and after."""
    options = ["--external-data"] if external else []
    reset(folder, ())
    pairs = []
    for more in (["--method", "none"], []):
        assert finish(tool(folder, *options, *more, "--force")) == (0, "")
        pairs.append(state(folder))
    assert pairs[0] != pairs[1] and (pairs[0][1] is not None) == external
    return pairs


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


@pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
def test_killed_at_random_moments(folder, external, request):
    old, new = results(folder, external)
    chance = random.Random(len(folder.name) + external)
    options = ["--external-data"] if external else []
    start = time.monotonic()
    assert finish(tool(folder, *options, "--force"))[0] == 0
    whole = time.monotonic() - start
    # Rounded up, so that all six kinds together are no fewer than were asked for.
    kills = max(2, -(-request.config.getoption("--kills") // 6))
    seen = set()
    for number in range(kills):
        reset(folder, old)
        process = tool(folder, *options, "--force")
        # Half of them at the end, where files are written.
        time.sleep(whole * (chance.uniform(0, 1.1) if number % 2 else chance.uniform(0.8, 1.1)))
        ending = ENDINGS[number % len(ENDINGS)]
        process.send_signal(ending)
        status, err = finish(process)
        after = state(folder)
        seen.add(status)
        if ending == signal.SIGKILL:
            assert status in (0, -9)
            assert after in (old, new) or (external and after[0] is None), (status, err)
        else:
            # What there was before, or all of the new; nothing beside it; and the status says which signal.
            # (A process that has not begun to listen for signals ends as any other does.)
            assert status in (0, 128 + ending, -ending), (status, err)
            # The process may get the signal when its work is done and it is on the way out.
            assert after == new or (after == old and status != 0), (status, err)
            assert leftovers(folder) == []
    assert len(seen) > 1, seen


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
def test_every_call_fails_in_turn(folder, external, there, preload):
    old, new = results(folder, external)
    before = old if there else (None, None)
    options = (["--external-data"] if external else []) + (["--force"] if there else [])
    reset(folder, before)
    assert finish(tool(folder, *options, environment={**preload, "FAULT_COUNT": folder / "count"}))[0] == 0
    assert state(folder) == new
    counts = dict(line.split() for line in (folder / "count").read_text().splitlines())
    tried = 0
    del counts["mmap"], counts["say"]  # no steps of writing
    for call, count in counts.items():
        errors = {"write": ["28", "5"], "fsync": ["5"], "link": ["5"], "rename": ["5"], "unlink": []}[call]
        for number in range(1, int(count) + 1):
            for what in [*errors, "kill", "after"]:
                reset(folder, before)
                fault = {"FAULT": f"{call}:{number}:{what}"}
                status, err = finish(tool(folder, *options, environment={**preload, **fault}))
                after, tried = state(folder), tried + 1
                said = (fault, status, err, [x and len(x) for x in after])
                if what in ("kill", "after"):
                    assert status == -9, said
                    # Without OUT there is nothing that could be taken for a result.
                    assert after in (before, new) or (external and after[0] is None), said
                elif status == 0:
                    # A link that cannot be made has another way.
                    assert after == new, said
                else:
                    assert status == 1 and ("out.onnx" in err), said
                    # fsync of the folder may fail when the one file has its name.
                    assert after == before or (call == "fsync" and after == new and not external), said
                    assert leftovers(folder) == [], said
    assert tried >= (20 if external else 10), counts


def test_a_pair_of_two_results_is_refused(folder):
    """What no crash leaves behind, and a copy of one of two files does."""
    old, new = results(folder, True)
    for pair in ((old[0], new[1]), (new[0], old[1])):
        reset(folder, pair)
        for command in (["inspect", "out.onnx"], ["verify", "in.onnx", "out.onnx", "--calib", "x.npz"], ["text", "out.onnx"]):
            done = subprocess.run([os.environ["ONNX_OSPLUS_BIN"], *command], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 1 and "out.onnx.data is not the file" in done.stderr, done.stderr
