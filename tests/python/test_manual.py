"""README and manual: they build, their links lead somewhere, and their commands do what they show."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import MODELS, ROOT, TINY, run_tool, tool_path

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
HERE = "https://github.com/onnx-osplus/onnx-osplus/blob/main/"
# First words of commands that are run elsewhere, or cannot be run here, and where or why.
ELSEWHERE = {
    "tests/run": "this is run by it",
    "tests/browser/run": "needs Chromium; .ci/run runs it",
    "sudo": "installs packages of the system",
    "cargo": "builds the program; `cargo run` is run as the program",
    "pip": "test_wheel.py installs what was built",
    "models/fetch": "tests/run fetches",
    "trtexec": "needs a GPU",
    "git": "test_git.py",
    "echo": "test_git.py",
    "scripts/review": "test_action.py",
}

# Data with a tokenizer, images, recordings and folders of hubs: test_text_data.py, test_image_data.py, test_audio_data.py, test_folder.py; labels: test_labels.py.
TEXTS = ("--column", "sentences.txt", "photos/", "speech/", "--preprocessor", "OUTDIR", "--label-column")


def text_of(path):
    return path.read_text(encoding="utf-8")


def slugs(text):
    """Anchors of the headings, as GitHub and mdBook make them."""
    bare = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", bare, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_the_book_builds_without_a_warning(tmp_path):
    mdbook = Path(sys.executable).parent / "mdbook"
    done = subprocess.run([mdbook, "build", "--dest-dir", tmp_path / "book", ROOT], capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search(r"WARN|ERROR", said), said
    for page in PAGES:
        if page.name != "SUMMARY.md":
            assert (tmp_path / "book" / page.with_suffix(".html").name).is_file(), page


def test_readme_is_short_and_every_page_is_in_the_summary():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 200
    linked = re.findall(r"\]\((\w[\w.-]*\.md)\)", text_of(DOCS / "SUMMARY.md"))
    assert sorted(linked) == sorted(p.name for p in PAGES if p.name != "SUMMARY.md")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(HERE):
            target, place = target.removeprefix(HERE), ROOT
        elif re.match(r"\w+:", target):
            continue
        else:
            place = page.parent
        name, _, anchor = target.partition("#")
        file = place / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in slugs(text_of(file)), f"{page.name}: {target}"


def blocks(page):
    """(commands, what is shown below them) of each block of commands of a page: indented lines, or ```sh."""
    text = text_of(page)
    lines, result, fenced, i = text.splitlines(), [], False, 0
    while i < len(lines):
        if lines[i].startswith("```"):
            fenced = not fenced
        if not fenced and lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            start = i
            while i < len(lines) and lines[i].startswith("    "):
                i += 1
            commands = "\n".join(line[4:] for line in lines[start:i]).replace("\\\n", " ").splitlines()
            shown = []
            rest = [k for k in range(i, min(i + 6, len(lines))) if lines[k].startswith("```text")]
            between = lines[i : rest[0]] if rest else []
            if rest and not any(line.startswith(("#", "    ")) for line in between):
                end = lines.index("```", rest[0] + 1)
                shown = lines[rest[0] + 1 : end]
            result.append((commands, shown))
            continue
        i += 1
    return result


def commands():
    for page in [ROOT / "README.md", *PAGES]:
        for number, (block, shown) in enumerate(blocks(page)):
            yield pytest.param(block, shown, id=f"{page.name}-{number}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the names that the manual uses: the committed small models, and what the quick start leaves."""
    folder = tmp_path_factory.mktemp("manual")
    (folder / "models").symlink_to(MODELS)
    shutil.copy(TINY.model, folder / "in.onnx")
    shutil.copy(TINY.model, folder / "model.onnx")
    shutil.copy(TINY.calib, folder / "data.npz")
    (folder / "bin").mkdir()
    (folder / "bin" / "onnx-osplus").symlink_to(tool_path())
    np.save(folder / "data.npy", np.load(TINY.calib)["input_ids"])
    assert run_tool(TINY.model, folder / "out.onnx", "--calib", TINY.calib, "-q").returncode == 0
    return folder


def normal(line):
    """A line without its numbers, which other processors may round otherwise."""
    return re.sub(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", "#", line).strip()


@pytest.mark.parametrize(("block", "shown"), commands())
def test_commands_do_what_they_show(block, shown, place):
    ran = ""
    for command in block:
        command = re.sub(r"^cargo run --release --", "onnx-osplus", command)
        first = command.split()[0]
        if first in ELSEWHERE or first.startswith(("python3", ".venv/")) or "models/real" in command or "l3-int8" in command or any(w in command for w in TEXTS):
            assert "onnx-osplus" not in first or any(w in command for w in ("real", "l3-int8", *TEXTS)), command
            continue
        assert first == "onnx-osplus", f"neither run nor known to be run elsewhere: {command}"
        if " out.onnx" in command and "--calib" in command and "verify" not in command and "--force" not in command:
            command = command.replace(" out.onnx", " again.onnx") + " --force"
        (place / "float.onnx").unlink(missing_ok=True)
        environment = {**os.environ, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True, timeout=600)
        # Findings are what the pages show of lint.
        assert done.returncode in ((0, 1) if " lint " in command else (0,)), f"{command}\n{done.stdout}{done.stderr}"
        assert "error:" not in done.stderr, done.stderr
        ran += done.stdout
    if ran:
        here = {normal(line) for line in ran.splitlines()}
        missing = [line for line in shown if "⋮" not in line and normal(line) not in here]
        # Which sites come first depends on numbers.
        assert [line for line in missing if not line.startswith(("  folded", "time", "  last_hidden"))] == [], ran


def test_examples_of_files_are_valid():
    seen = 0
    for page in [ROOT / "README.md", *PAGES]:
        for language, body in re.findall(r"^```(toml|yaml)\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
            value = tomllib.loads(body) if language == "toml" else yaml.safe_load(body)
            assert value
            seen += 1
    assert seen >= 3


def test_the_settings_of_the_manual_are_read(tmp_path):
    (body,) = re.findall(r"^```toml\n(.*?)^```", text_of(DOCS / "options.md"), re.DOTALL | re.MULTILINE)
    (tmp_path / "osplus.toml").write_text(body)
    done = run_tool("--config", "osplus.toml", "--print-config", cwd=tmp_path)
    assert done.returncode == 0 and len(tomllib.loads(done.stdout)["model"]) == 2, done.stderr


def test_every_option_is_in_the_manual():
    text = text_of(DOCS / "options.md") + text_of(DOCS / "data.md")
    options = re.findall(r"^ +(?:-\w, )?(--[\w-]+)", run_tool("--help").stdout, re.MULTILINE)
    assert len(options) > 30
    missing = [o for o in options if o not in text and o not in ("--help", "--quiet", "--verbose")]
    assert missing == []


def test_messages_of_the_troubleshooting_are_in_the_program():
    source = "\n".join(text_of(p) for p in sorted((ROOT / "src").rglob("*.rs")))
    source = re.sub(r"\\\n\s*", "", source)
    rows = re.findall(r"^\| `([^`]+)` \|", text_of(DOCS / "troubleshooting.md"), re.MULTILINE)
    assert len(rows) > 15
    for message in rows:
        assert message in source, message
