"""What every command does with every path it takes: nothing that is read is written, nothing is replaced without being
asked, what stands in the way is said before any work, and every name that the system allows is a name.
"""

import os
import shutil
import socket
import stat
import subprocess
import warnings

import pytest
from cases import COMMANDS, DATA, DEFAULT, MODEL, PATHS, READ, WRITES, content, names, run

FORCE = ["--force"]


# --- nothing that is read is written ---


def same(folder, name):
    """Names of the same file."""
    (folder / "sub").mkdir(exist_ok=True)
    os.symlink(folder / name, folder / "soft")
    os.symlink(folder, folder / "way")
    os.link(folder / name, folder / "hard")
    return [name, f"./{name}", f"sub/../{name}", str(folder / name), "soft", "hard", f"way/{name}"]


@pytest.mark.parametrize("command, word", WRITES, ids=names(WRITES))
def test_what_is_read_is_never_written(command, word, folder):
    for read in (w for w, kind in command.paths.items() if kind != "written"):
        copy = f"copy-{read}{os.path.splitext(DEFAULT[read])[1]}"
        shutil.copy(folder / DEFAULT[read], folder / copy)
        for path in same(folder, copy):
            before = content(folder)
            done = run(folder, command.line(**{read: copy, word: path}) + FORCE)
            done.fails("is the same file as", copy)
            assert content(folder) == before
        for link in ("soft", "hard", "way"):
            (folder / link).unlink()


@pytest.mark.parametrize("command, word", [(COMMANDS["quantize"], w) for w in ("OUT", "JSON", "HTML")], ids=["OUT", "JSON", "HTML"])
def test_external_data_is_read_too(command, word, folder):
    for path in same(folder, "outside.onnx.data"):
        before = content(folder)
        run(folder, command.line(IN="outside.onnx", **{word: path}) + FORCE).fails("is the same file as", "external data")
        assert content(folder) == before


@pytest.mark.parametrize("command", [COMMANDS["quantize"], COMMANDS["dequantize"]], ids=["quantize", "dequantize"])
def test_the_data_of_in_is_not_that_of_out(command, folder):
    """IN's weights are in the file that OUT's would be in: model.onnx.data beside model.onnx, and IN is a copy of it."""
    model = "IN" if "IN" in command.paths else "QUANT"
    if model == "QUANT":
        run(folder, "large.onnx outside.onnx --calib x.npz --threads 1 --external-data --force".split())
    shutil.copy(folder / "outside.onnx", folder / "copy.onnx")
    before = content(folder)
    line = command.line(**{model: "copy.onnx"}, OUT="outside.onnx") + FORCE
    run(folder, line + ["--external-data"]).fails("OUT.data is the same file as the external data")
    assert content(folder) == before
    # In one file it can be written, and what IN needs stays.
    assert run(folder, line).status == 0
    assert (folder / "outside.onnx.data").read_bytes() == before["outside.onnx.data"]
    assert run(folder, ["text", "copy.onnx", "--weights"]).status == 0


def test_nothing_is_written_twice(folder):
    command = COMMANDS["quantize"]
    for line in (
        command.line(JSON="out.onnx"),
        command.line(HTML="./out.json"),
        command.line(JSON=folder / "out.onnx"),
        command.line(JSON="out.onnx.data") + ["--external-data"],
    ):
        before = content(folder)
        run(folder, line + FORCE).fails("is the same file as")
        assert content(folder) == before


# --- what is replaced ---


@pytest.mark.parametrize("command, word", WRITES, ids=names(WRITES))
def test_what_exists_needs_force_and_keeps_its_permissions(command, word, folder):
    path = folder / DEFAULT[word]
    path.write_text("mine")
    path.chmod(0o640)
    before = content(folder)
    run(folder, command.line()).fails(f"{path.name} exists", "--force")
    assert content(folder) == before
    done = run(folder, command.line() + FORCE)
    assert done.status == 0, done.err
    assert path.read_bytes() != b"mine" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert not [name for name in content(folder) if name.startswith(".")]


@pytest.mark.parametrize("command", [COMMANDS["quantize"], COMMANDS["dequantize"]], ids=["quantize", "dequantize"])
def test_data_of_an_earlier_result_is_said(command, folder):
    line = command.line() + FORCE
    (folder / "out.onnx.data").write_text("of an earlier result")
    done = run(folder, line)
    assert done.status == 0 and "out.onnx.data was there before" in done.out + done.err, done


# --- what stands in the way ---


def obstacles(folder):
    """{a path that cannot be written: a word of the reason}"""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(folder)  # such names may have 107 bytes
        s.bind("socket")
        os.chdir(here)
    os.symlink("folder", folder / "to-folder")
    os.symlink("pipe", folder / "to-pipe")
    os.symlink("loop", folder / "loop")
    return {
        "folder": "folder",
        "folder/": "folder",
        "to-folder": "folder",
        "pipe": "a pipe",
        "to-pipe": "a pipe",
        "socket": "a socket",
        "/dev/null": "a device",
        "/dev/stdout": "",
        "nowhere/out": "the folder nowhere",
        "x.npz/out": "x.npz",
        "loop/out": "loop",
        "n" * 300: "name too long",
        "..": "",
        "/": "",
    }


@pytest.mark.parametrize("command, word", WRITES, ids=names(WRITES))
def test_what_cannot_be_written_is_found_before_the_run(command, word, folder):
    # Whatever were read of it would be the first error.
    for name in ("in.onnx", "int8.onnx"):
        (folder / name).write_text("no model")
    for path, reason in obstacles(folder).items():
        before = content(folder)
        done = run(folder, command.line(**{word: path}) + FORCE, seconds=10).fails(reason)
        assert "no model" not in done.err and "in.onnx" not in done.err, done.err
        assert path[:40] in done.err, done.err
        assert content(folder) == before


def without_privileges():
    """Words before a command, after which permissions hold for root too."""
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("command, word", PATHS, ids=names(PATHS))
def test_what_may_not_be_opened_is_named(command, word, folder):
    (folder / "locked").mkdir()
    path = f"locked/{DEFAULT[word]}"
    if command.paths[word] != "written":
        shutil.copy(folder / DEFAULT[word], folder / path)
        (folder / path).chmod(0)
    else:
        (folder / "in.onnx").write_text("no model")
        (folder / "locked").chmod(0o555)
    try:
        line = [*without_privileges(), os.environ["ONNX_OSPLUS_BIN"], *command.line(**{word: path})]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=20)
    finally:
        (folder / "locked").chmod(0o755)
    assert done.returncode == 1 and path in done.stderr and "ermission denied" in done.stderr, done


@pytest.fixture
def full(tmp_path_factory):
    """A disk of 64 kB."""
    place = tmp_path_factory.mktemp("full")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True, text=True)
    if done.returncode:
        warnings.warn(f"a small disk cannot be mounted here, so a full one is not tried: {done.stderr.strip()}")
        yield None
        return
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("command, word", WRITES, ids=names(WRITES))
def test_a_full_disk_is_found_before_the_run(command, word, folder, full):
    if full is None:
        return
    # The models are larger than the disk, and could not be read.
    for name in ("in.onnx", "int8.onnx"):
        (folder / name).write_bytes(b"no model" * 100_000)
    # Of a report nobody knows how long it will be; but that nothing at all can be written is known.
    if word in ("JSON", "HTML"):
        (full / "fill").write_bytes(bytes(64 << 10))
    left = content(full)
    path = full / DEFAULT[word]
    run(folder, command.line(**{word: path})).fails(path.name, "its disk ")
    assert content(full) == left


@pytest.mark.parametrize("command, word", WRITES, ids=names(WRITES))
def test_a_disk_that_fills_up_is_named(command, word, folder, full):
    if full is None:
        return
    # A page is left: what is written is longer.
    (full / "fill").write_bytes(bytes(56 << 10))
    shutil.copy(folder / "large.onnx", folder / "in.onnx")
    assert run(folder, "in.onnx int8.onnx --calib x.npz --threads 1 --force".split()).status == 0
    left = content(full)
    path = full / DEFAULT[word]
    done = run(folder, command.line(**{word: path}) + (["-v"] if command.name in ("inspect", "verify") else []))
    if done.status == 0:
        assert path.stat().st_size <= 8 << 10, path.stat().st_size
        path.unlink()
    else:
        done.fails(path.name)
    assert content(full) == left


# --- pipes ---


@pytest.mark.parametrize("command, word", READ, ids=names(READ))
def test_what_is_no_file_is_refused_with_the_reason(command, word, folder):
    for suffix in ("npz", "npy"):
        os.mkfifo(folder / f"pipe.{suffix}")
    data = (folder / DEFAULT[word]).read_bytes()
    odd = {"pipe.npz": "a pipe", "/dev/stdin": "a pipe", "/dev/null": "a device", "/dev/zero": "a device"}
    if command.paths[word] == MODEL:
        (folder / "folder").mkdir()
        odd["folder"] = "folder"
    for path, reason in odd.items():
        before = content(folder)
        how = dict(stdin=None, input=data) if path == "/dev/stdin" else {}
        done = run(folder, command.line(**{word: path}), seconds=10, **how).fails(path)
        assert reason in done.err or "directory" in done.err, done.err
        assert content(folder) == before
        if command.paths[word] == DATA:
            # NAME=FILE asks for .npy.
            path = path.replace("npz", "npy")
            run(folder, command.line(**{word: f"x={path}"}), seconds=10, **how).fails(path, reason)


@pytest.mark.parametrize("command, word", READ, ids=names(READ))
def test_a_file_as_standard_input(command, word, folder):
    """`/dev/stdin < in.onnx` is a file: it is read, or refused with a reason."""
    with (folder / DEFAULT[word]).open("rb") as file:
        done = run(folder, command.line(**{word: "/dev/stdin"}), stdin=file)
    assert done.status == 0 or "/dev/stdin" in done.fails().err


# --- those who do not listen ---


def closed_pipe():
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("closed", ["full", "pipe", "closed"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_output_that_nobody_reads_changes_nothing(command, closed, folder):
    expected = run(folder, command.line())
    written = {name: (folder / DEFAULT[name]).stat().st_size for name in command.outputs()}
    for streams in (("stdout",), ("stderr",), ("stdout", "stderr")):
        how = {}
        if closed == "closed":
            numbers = [("stdin", "stdout", "stderr").index(s) for s in streams]
            how = dict(preexec_fn=lambda numbers=numbers: [os.close(n) for n in numbers])
        for stream in streams if closed != "closed" else ():
            how[stream] = os.open("/dev/full", os.O_WRONLY) if closed == "full" else closed_pipe()
        for more in ([], ["-v"], ["--json", "-"]) if command.name in ("inspect", "verify") else ([],):
            words = command.line()
            if "--json" in more:
                words = words[: words.index(b"--json")] + words[words.index(b"--json") + 2 :]
            for name in command.outputs():
                (folder / DEFAULT[name]).unlink(missing_ok=True)
            done = run(folder, words + more, **how)
            assert done.status == expected.status, (streams, done)
            if "--json" not in more:
                now = {name: (folder / DEFAULT[name]).stat().st_size for name in command.outputs()}
                # Times have other digits.
                assert all(abs(now[n] - written[n]) < 100 for n in written), (now, written)
        for stream in how:
            if isinstance(how[stream], int):
                os.close(how[stream])


def test_an_error_that_nobody_reads_is_one(folder):
    (folder / "in.onnx").write_text("no model")
    for command in COMMANDS.values():
        if "IN" in command.paths:
            with open("/dev/full", "wb") as null:
                assert run(folder, command.line(), stderr=null).status == 1
    with open("/dev/full", "wb") as null:
        assert run(folder, ["--help"], stdout=null).status in (0, 1)
        assert run(folder, ["--nothing"], stderr=null).status == 2


# --- names that are no text ---


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("command, word", PATHS, ids=names(PATHS))
def test_names_need_not_be_text(command, word, place, folder):
    where = os.fsencode(folder)
    name = os.fsencode(DEFAULT[word])
    if place == "file":
        path = b"caf\xe9 \xff\x1b[31m" + name
    else:
        os.mkdir(where + b"/caf\xe9 \xff")
        path = b"caf\xe9 \xff/" + name
    if command.paths[word] != "written":
        os.rename(where + b"/" + name, where + b"/" + path)
        # Two words may stand for one file.
        others = {w: path for w in command.paths if DEFAULT[w] == DEFAULT[word]}
    else:
        others = {word: path}
    done = run(folder, command.line(**others))
    assert done.status == 0, done.err
    assert "\x1b" not in done.out + done.err
    assert os.path.getsize(where + b"/" + path) > 0
    if command.paths[word] == DATA:
        # NAME=PATH, and a folder of files.
        shutil.copy(folder / "large.onnx", folder / "any.onnx")
        for spelled in (b"x=" + path,):
            done = run(folder, ["inspect", "any.onnx", "--calib", spelled, "--threads", "1"])
            assert done.status == 0 or "npz" in done.fails().err


def test_data_in_a_folder_of_names_that_are_no_text(folder):
    sub = os.fsencode(folder) + b"/f\xff"
    os.mkdir(sub)
    for number in range(2):
        shutil.copy(os.fsencode(folder / "x.npz"), sub + b"/%d\xff.npz" % number)
    done = run(folder, ["inspect", "in.onnx", "--calib", sub, "--threads", "1"])
    assert done.status == 0, done.err


def test_external_data_needs_a_name_that_is_text(folder):
    """The name stands in the model, where it is text."""
    line = COMMANDS["quantize"].line(IN="large.onnx", OUT=b"\xff.onnx") + ["--external-data"]
    run(folder, line).fails("UTF-8")
