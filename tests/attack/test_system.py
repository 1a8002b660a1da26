"""What the system and other programs do to every command while it runs: files that are changed, cut short or deleted,
signals, and no memory. Each ends it with a word, and nothing is left behind.

A process stops itself when it has mapped its n-th file, or behind its n-th write or message (faults.c). So the moment is always the
same one.
"""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cases import COMMANDS, DATA, DEFAULT, READ, content, names, run, tool


class Stopped:
    """A process that waits at a moment; `go` lets it run to its end."""

    def __init__(self, folder, line, moment, preload):
        environment = {**os.environ, **preload, "FAULT": f"{moment}:stop"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.process = subprocess.Popen([tool(), *line], cwd=folder, env=environment, **pipes)
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        self.waits = os.WIFSTOPPED(status)
        if not self.waits:
            # It ended, and was waited for: there is no such moment.
            self.process.returncode = os.waitstatus_to_exitcode(status)

    def go(self):
        self.process.send_signal(signal.SIGCONT)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode(), err.decode()


def calls(folder, line, preload):
    """{kind of call: how many a command makes}; what it writes is removed."""
    before = content(folder)
    count = {"FAULT_COUNT": str(folder / "count")}
    subprocess.run([tool(), *line], cwd=folder, env={**os.environ, **preload, **count}, capture_output=True, timeout=60)
    counts = dict(line.split() for line in (folder / "count").read_text().splitlines())
    for name in content(folder).keys() - before.keys():
        (folder / name).unlink()
    return {kind: int(number) for kind, number in counts.items()}


def touched(path):
    """Another byte in the middle: in the weights, or in the numbers of an array."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def secretly(path):
    """The same, with the time of the last change as it was."""
    times = path.stat()
    touched(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path):
    os.truncate(path, 0)


def mapped(folder, command, word):
    """A copy of a file for a word of a command, of which the tool keeps a map: an archive would be unpacked."""
    name = f"mine-{DEFAULT[word]}"
    if command.paths[word] != DATA:
        shutil.copy(folder / DEFAULT[word], folder / name)
        return name
    name = "mine.npy"
    np.save(folder / name, np.load(folder / DEFAULT[word])["x"])
    return name


EXTERNAL = [(COMMANDS[name], "IN") for name in ("quantize", "inspect", "text")]


@pytest.mark.parametrize("how", [touched, secretly, cut])
@pytest.mark.parametrize("command, word", READ, ids=names(READ))
def test_a_file_that_is_changed_is_an_error(command, word, how, folder, preload):
    name = mapped(folder, command, word)
    changed(command, {word: name}, name, how, folder, preload)


@pytest.mark.parametrize("how", [touched, secretly, cut])
@pytest.mark.parametrize("command, word", EXTERNAL, ids=names(EXTERNAL))
def test_external_data_that_is_changed_is_an_error(command, word, how, folder, preload):
    changed(command, {word: "outside.onnx"}, "outside.onnx.data", how, folder, preload)


def changed(command, paths, name, how, folder, preload):
    """The file is changed when a command has mapped all files, when it says that it begins to run, and when it writes."""
    before = content(folder)
    made = calls(folder, command.line(**paths), preload)
    moments = {"say:1": made["say"], "write:1": "OUT" in command.paths and not name.endswith(".npy")}
    # The last file that is mapped is OUT, for its digest.
    moments["mmap:" + str(made["mmap"] - (command.name == "quantize"))] = True
    for moment in (moment for moment, wanted in moments.items() if wanted):
        for path, data in before.items():
            (folder / path).write_bytes(data)
        process = Stopped(folder, command.line(**paths), moment, preload)
        assert process.waits and name in Path(f"/proc/{process.process.pid}/maps").read_text(), moment
        how(folder / name)
        status, out, err = process.go()
        # What is changed before anything was read of it, and does not show it, is as if it had always been so.
        fresh = how is not cut and moment.startswith("mmap") and (how is secretly or name.endswith(".npy"))
        if status == 0 and fresh:
            for output in command.outputs():
                (folder / DEFAULT[output]).unlink()
        else:
            assert status == 1 and name in err, (moment, status, out, err)
            assert "panicked" not in err and "internal error" not in err
        assert content(folder).keys() == before.keys()


def test_a_file_that_is_cut_behind_the_result(folder, preload):
    """The errors of Linears are measured when OUT is written: then that is said."""
    name = mapped(folder, COMMANDS["quantize"], "CALIB")
    line = COMMANDS["quantize"].line(CALIB=name)
    process = Stopped(folder, line, f"mmap:{calls(folder, line, preload)['mmap']}", preload)
    cut(folder / name)
    status, _, err = process.go()
    assert status == 1 and name in err and "OUT is written and whole" in err, err
    assert run(folder, ["text", "out.onnx"]).status == 0 and not (folder / "out.json").exists()


@pytest.mark.parametrize("external", [False, True], ids=["file", "external"])
@pytest.mark.parametrize("command, word", READ, ids=names(READ))
def test_a_file_that_is_deleted_or_replaced_is_none(command, word, external, folder, preload):
    """What was opened is still there."""
    if external and (command, word) not in EXTERNAL:
        return
    for how in (os.unlink, lambda path: os.replace(folder / "other", path)):
        name = mapped(folder, command, word)
        paths = {word: name}
        if external:
            paths, name = {word: "outside.onnx"}, "outside.onnx.data"
            run(folder, "large.onnx outside.onnx --format float --external-data --calib x.npz --threads 1 --force".split())
        (folder / "other").write_text("another file")
        before = content(folder)
        last = calls(folder, command.line(**paths), preload)["mmap"]
        process = Stopped(folder, command.line(**paths), f"mmap:{last}", preload)
        assert process.waits and name in Path(f"/proc/{process.process.pid}/maps").read_text()
        how(folder / name)
        status, out, err = process.go()
        assert status == 0, (status, out, err)
        for output in command.outputs():
            (folder / DEFAULT[output]).unlink()
        assert content(folder).keys() <= before.keys()


# --- signals ---

MOMENTS = ["mmap:1", "write:1", "write:2", "fsync:1"]


@pytest.fixture
def signals_as_usual():
    """Programs inherit what is ignored, and tests may run under nohup or behind a shell's `&`."""
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = [signal.signal(ending, signal.SIG_DFL) for ending in endings]
    yield
    for ending, handler in zip(endings, old, strict=True):
        signal.signal(ending, handler)


@pytest.mark.usefixtures("signals_as_usual")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_signal_leaves_nothing_behind(command, ending, folder, preload):
    reached = 0
    for moment in MOMENTS:
        for extra in ([], ["--external-data"]) if command.name in ("quantize", "dequantize") else ([],):
            before = content(folder)
            line = command.line(**({"IN": "large.onnx"} if command.name == "quantize" else {})) + extra
            process = Stopped(folder, line, moment, preload)
            if process.waits:
                reached += 1
                if moment != "mmap:1":
                    assert [n for n in content(folder) if n.startswith(".")], "something is being written"
                process.process.send_signal(ending)
                status, out, err = process.go()
                assert status == 128 + ending, (moment, status, out, err)
            for output in command.outputs():
                # A command that writes several files may have written the first.
                if reached and moment == "mmap:1":
                    assert not (folder / DEFAULT[output]).exists()
                (folder / DEFAULT[output]).unlink(missing_ok=True)
            (folder / "out.onnx.data").unlink(missing_ok=True)
            assert content(folder) == before
    assert reached >= (3 if command.outputs() else 1), reached


def test_what_was_ignored_stays_ignored(folder, preload):
    """nohup: SIGHUP does not end a program that was started with it ignored."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = Stopped(folder, COMMANDS["quantize"].line(), "mmap:1", preload)
        process.process.send_signal(signal.SIGHUP)
        assert process.go()[0] == 0
    finally:
        signal.signal(signal.SIGHUP, old)


# --- memory ---


def limited(folder, line, size):
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))  # noqa: E731
    return run(folder, line, preexec_fn=limit)


def smallest(folder, line, step=4 << 20):
    """Bytes of address space, in steps, that a command needs to get anywhere."""
    size = step
    while limited(folder, line, size).status != 0:
        size += step
        assert size < 4 << 30
    return size


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_memory_is_named(command, folder):
    """From what the program needs to start to what the command needs: refused with a word, whole, and nothing left."""
    # A model and data of some megabytes.
    np.savez(folder / "x.npz", x=np.zeros((64, 256, 8), np.float32))
    start = smallest(folder, ["--version"])
    size, said, status = start, 0, None
    while status != 0:
        before = content(folder)
        done = limited(folder, command.line(), size)
        status = done.status
        if status != 0:
            assert status == 1, (size, done)
            assert "panicked" not in done.err and "internal error" not in done.err, (size, done)
            assert "out of memory" in done.err or "annot allocate memory" in done.err or "threads" in done.err, (size, done)
            said += 1
            # The errors of Linears are measured when OUT is written.
            left = content(folder).keys() - before.keys()
            assert not left or (left == {"out.onnx"} and "OUT is written and whole" in done.err), (size, done)
            (folder / "out.onnx").unlink(missing_ok=True)
        size += 1 << 20
        assert size < 4 << 30
    assert said or command.name in ("text", "lint", "diff", "dequantize")
