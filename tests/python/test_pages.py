"""Completions that shells take, and manual pages that say every option."""

import re
import shutil
import subprocess

import pytest
from conftest import run_tool, tool_path

COMMANDS = ["inspect", "text", "verify", "lint", "diff", "dequantize", "completions", "man"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell", "elvish"])
def test_every_command_and_option_is_completed(shell):
    done = run_tool("completions", shell)
    assert done.returncode == 0 and done.stderr == ""
    for word in [*COMMANDS, "weight-granularity", "print-config", "portable"]:
        assert word in done.stdout or (shell in ("powershell", "elvish") and word == "portable"), word


def test_bash_completes(tmp_path):
    (tmp_path / "completions").write_text(run_tool("completions", "bash").stdout)

    def complete(*words):
        script = f"""source {tmp_path}/completions
            COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}
            _onnx__osplus onnx-osplus "{words[-1]}" "{words[-2]}"; printf '%s\\n' "${{COMPREPLY[@]}}" """
        done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert complete("onnx-osplus", "ins") == ["inspect"]
    assert complete("onnx-osplus", "lint", "--ta") == ["--target"]
    assert complete("onnx-osplus", "lint", "--target", "o") == ["ort", "openvino"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_option_is_in_the_manual(command):
    words = [command] if command else []
    page = run_tool("man", *words)
    assert page.returncode == 0 and page.stdout.startswith(".ie") and ".TH onnx" in page.stdout
    plain = page.stdout.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    for option in re.findall(r"^ +(?:-\w, )?(--[\w-]+)", run_tool(*words, "--help").stdout, re.MULTILINE):
        assert option in plain, option
    assert page.stdout == run_tool("man", *words).stdout
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-man", "-Tutf8", "-Kutf8", "-ww"], input=page.stdout, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stderr == ""


def test_there_is_no_such_page():
    done = run_tool("man", "dif\x1b")
    assert done.returncode == 2 and "inspect" in done.stderr and "\x1b" not in done.stderr and done.stdout == ""
    assert tool_path()
