"""Work that several processes of one test run need is done by the first that asks: pytest-xdist runs files of tests in two."""

import atexit
import fcntl
import os
import tempfile
from pathlib import Path

VARIABLE = "ONNX_OSPLUS_TEST_FILES"


def shared():
    """A folder of all processes that come from the one that asked first; it goes when that one ends."""
    if VARIABLE not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="onnx-osplus-tests-")
        atexit.register(folder.cleanup)
        os.environ[VARIABLE] = folder.name
    return Path(os.environ[VARIABLE])


def once(name, make):
    """The folder `name` below the shared one, after `make(folder)` has filled it, here or in another process."""
    folder = shared() / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            make(folder)
            (folder / ".done").touch()
    return folder
