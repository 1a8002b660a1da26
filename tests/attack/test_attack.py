"""Every command on every hostile file: exit status 1 or 2 and a message that names the thing; never a crash, a hang, or
more memory than it may have, and nothing written.

The files are made by make.py. Where a command has no business with what is wrong (`text` shows a model that nobody could
run), it may do its work, and must not fall over.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from make import DATA, HOSTILE, MODEL, attacks, good, raw, write

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
SECONDS, BYTES = 60, 4 << 30
# What a terminal would act on.
ACTING = [c for c in map(chr, [*range(32), 127, *range(0x80, 0xA0), 0x200B, 0x2028, 0x202E, 0x2066]) if c != "\n"]

ALL = attacks()


def run(arguments, folder):
    # One thread: address space is limited, and each thread takes some.
    limited = f'ulimit -v {BYTES >> 10} && ulimit -c 0 && exec "$@"'
    command = ["sh", "-c", limited, "sh", os.environ["ONNX_OSPLUS_BIN"], *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A model and its data that are as they should be."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "good.onnx").write_bytes(raw(good()))
    import numpy as np

    np.savez(folder / "x.npz", x=np.random.RandomState(0).randn(4, 3, 8).astype(np.float32))
    return folder


def commands(attack, path, folder, small):
    """{command: its arguments} for a hostile model, or for hostile data of a good one."""
    if attack.kind == DATA:
        model = TINY / "model.onnx"
        return {
            "quantize": [model, folder / "out.onnx", "--calib", path, "--threads", "1"],
            "inspect": ["inspect", model, "--calib", path, "--threads", "1"],
            "verify": ["verify", model, model, "--calib", path, "--threads", "1"],
        }
    x, fine = small / "x.npz", small / "good.onnx"
    return {
        "quantize": [path, folder / "out.onnx", "--calib", x, "--threads", "1"],
        "inspect": ["inspect", path, "--threads", "1"],
        "verify": ["verify", path, path, "--calib", x, "--threads", "1"],
        "lint": ["lint", path, "--target", "portable"],
        "text": ["text", path],
        "diff": ["diff", fine, path, "--full"],
        "dequantize": ["dequantize", path, folder / "float.onnx"],
    }


def problems(attack, tmp, small):
    """What is wrong with what the commands do."""
    folder = tmp / "".join(c if c.isalnum() else "_" for c in attack.name)
    folder.mkdir()
    path = write(attack, folder)
    before = sorted(p.name for p in folder.rglob("*"))
    for command, arguments in commands(attack, path, folder, small).items():
        try:
            status, out, err = run(arguments, folder)
        except subprocess.TimeoutExpired:
            yield f"{command}: takes longer than {SECONDS} s"
            continue
        said = f"{command}: exit status {status}\n{out[-500:]}\n{err[-1500:]}"
        if status not in (0, 1, 2, 3) or "internal error" in err or "panicked" in err or "out of memory" in err:
            yield f"fell over: {said}"
        elif command in attack.needs:
            names = attack.names or (path.name,)
            if status not in (1, 2):
                yield f"was not refused: {said}"
            elif not any(name in err for name in names):
                yield f"does not name {' or '.join(names)}: {said}"
        if any(c in out + err for c in ACTING):
            yield f"prints what acts: {command}: {out!r} {err!r}"[:2000]
        if not attack.needs and any(line.startswith("wrote out.onnx") for line in (out + err).split("\n")):
            yield f"says what a name says: {said}"
        if command in ("quantize", "dequantize") and status == 0:
            Path(arguments[-1] if command == "dequantize" else folder / "out.onnx").unlink()
    if sorted(p.name for p in folder.rglob("*")) != before:
        yield f"left something behind: {sorted(p.name for p in folder.rglob('*'))}"


KINDS = sorted({attack.name.split("-")[0] for attack in ALL})


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_survives(kind, tmp_path, small):
    chosen = [attack for attack in ALL if attack.name.split("-")[0] == kind]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda attack: list(problems(attack, tmp_path, small)), chosen))
    wrong = [f"{attack.name}: {problem}" for attack, all_of in zip(chosen, found) for problem in all_of]
    assert not wrong, f"{len(wrong)} of {len(chosen)} files\n" + "\n\n".join(wrong[:40])


def test_there_are_enough():
    assert len({attack.name for attack in ALL}) == len(ALL) >= 200
    assert {attack.kind for attack in ALL} == {MODEL, DATA} and HOSTILE
