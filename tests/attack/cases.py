"""Every command, and every path it takes: what the tests of this folder go through."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from make import good, large, raw

MODEL, DATA, WRITTEN = "a model", "data", "written"


@dataclass(frozen=True)
class Command:
    """A command whose words in capitals are paths."""

    name: str
    words: tuple
    paths: dict  # {the word: what it is}

    def line(self, **paths):
        """The arguments, with paths in place of the words; bytes, as names need not be text."""
        named = {**DEFAULT, **paths}
        put = lambda word: os.fsencode(named[word]) if word in self.paths else word.encode()  # noqa: E731
        return [put(word) for word in self.words]

    def outputs(self):
        return [word for word, kind in self.paths.items() if kind == WRITTEN]


# The names of files that are as they should be, in the folder that `prepare` fills.
DEFAULT = {
    "IN": "in.onnx", "FLOAT": "in.onnx", "QUANT": "int8.onnx", "CALIB": "x.npz",
    "OUT": "out.onnx", "JSON": "out.json", "HTML": "out.html",
}  # fmt: skip


def command(name, line, **paths):
    return Command(name, tuple(line.split()), paths)


COMMANDS = {
    c.name: c
    for c in (
        command("quantize", "IN OUT --calib CALIB --report JSON --report HTML --threads 1", IN=MODEL, CALIB=DATA, OUT=WRITTEN, JSON=WRITTEN, HTML=WRITTEN),
        command("dequantize", "dequantize QUANT OUT", QUANT=MODEL, OUT=WRITTEN),
        command("inspect", "inspect IN --calib CALIB --json JSON --threads 1", IN=MODEL, CALIB=DATA, JSON=WRITTEN),
        command("verify", "verify FLOAT QUANT --calib CALIB --json JSON --threads 1", FLOAT=MODEL, QUANT=MODEL, CALIB=DATA, JSON=WRITTEN),
        command("lint", "lint QUANT --target ort", QUANT=MODEL),
        command("text", "text IN", IN=MODEL),
        command("diff", "diff FLOAT QUANT", FLOAT=MODEL, QUANT=MODEL),
    )
}
PATHS = [(c, word) for c in COMMANDS.values() for word in c.paths]
READ = [(c, word) for c, word in PATHS if c.paths[word] != WRITTEN]
WRITES = [(c, word) for c, word in PATHS if c.paths[word] == WRITTEN]


def names(pairs):
    return [f"{c.name}-{word}" for c, word in pairs]


def prepare(folder):
    """Fills a folder with a model, data for it and what the tool makes of it; also with the weights in a second file."""
    (folder / "in.onnx").write_bytes(raw(good()))
    (folder / "large.onnx").write_bytes(raw(large()))
    np.savez(folder / "x.npz", x=np.random.RandomState(0).randn(8, 4, 8).astype(np.float32))
    for line in ("in.onnx int8.onnx", "large.onnx outside.onnx --format float --external-data"):
        done = run(folder, [*line.split(), "--calib", "x.npz", "--threads", "1"])
        assert done.status == 0, done.err
    return folder


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    def fails(self, *words, status=1):
        """Whether it failed with a message that holds the words; as an assertion, so that the message is seen."""
        assert self.status == status and "internal error" not in self.err and "panicked" not in self.err, self
        missing = [word for word in words if word not in self.err]
        assert not missing, (missing, self.err)
        return self


def run(folder, line, seconds=60, **how):
    """Runs the tool in a folder."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    process = subprocess.run([tool(), *line], cwd=folder, timeout=seconds, check=False, **how)
    text = lambda data: (data or b"").decode(errors="replace")  # noqa: E731
    return Done(process.returncode, text(process.stdout), text(process.stderr))


def tool():
    return os.environ["ONNX_OSPLUS_BIN"]


def content(folder):
    """{name: content} of everything in a folder; what is no ordinary file has none."""
    return {p.name: p.read_bytes() if p.is_file() else None for p in Path(folder).iterdir()}
