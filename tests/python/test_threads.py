"""`--threads N` is N threads for everything: what the operating system counts."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import TINY, tool_path

COMMANDS = {
    "run": lambda folder: [TINY.model, folder / "out.onnx", "--calib", TINY.calib],
    "inspect": lambda folder: ["inspect", TINY.model, "--calib", TINY.calib],
    "verify": lambda folder: ["verify", TINY.model, TINY.model, "--calib", TINY.heldout],
}


def measured(command, threads):
    """The most threads that the process had, the processor time of all of them, and the time that went by."""
    begin = time.monotonic()
    arguments = [tool_path(), *map(str, command), "--threads", str(threads)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        most = max([most] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:")])
        ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.001)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0
    return most, usage.ru_utime + usage.ru_stime, time.monotonic() - begin


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_one_thread_is_one_thread(command, tmp_path):
    most, processor, wall = measured(command(tmp_path), 1)
    # The first thread waits while the one worker works, and one waits for signals.
    assert most == 3
    assert processor <= wall


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_three_threads_are_three(command, tmp_path):
    most, _, _ = measured(command(tmp_path), 3)
    assert most == 5
