"""`onnx-osplus diff --format markdown`: a comment for a pull request, as a Markdown parser reads it."""

import re

import onnx
import pytest
from conftest import TINY, TINY_LLAMA, run_tool
from markdown_it import MarkdownIt
from onnx import helper

LIMIT = 65_000
HOSTILE = [
    "````\n</details>\n\n# heading",
    "</code></summary></details><script>alert(1)</script>",
    "@everyone #1 https://example.com [a](b) ![c](d)",
    "| a | b |\n|---|---|",
    "<!-- ",
    "\u202e\x1b[2J\n\n* item",
    "``` ~~~ <img src=x onerror=alert(1)>",
]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    out = tmp_path_factory.mktemp("markdown") / "out.onnx"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    return out


def comment(*arguments):
    result = run_tool("diff", *arguments, "--format", "markdown")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert len(result.stdout) < LIMIT and len(result.stdout.encode()) <= LIMIT
    return result.stdout


def blocks(text):
    """The blocks of a comment: only those that the tool writes, whatever names say; folds are closed."""
    tokens = MarkdownIt("gfm-like").parse(text)
    depth, fences = 0, []
    for token in tokens:
        if token.type == "html_block":
            tags = set(re.findall(r"<(/?\w+)", token.content))
            assert tags <= {"h3", "/h3", "p", "/p", "code", "/code", "details", "/details", "summary", "/summary"}, token
            depth += token.content.count("<details") - token.content.count("</details")
            assert depth in (0, 1)
        elif token.type == "fence":
            assert depth == 1
            fences.append(token.content)
        else:
            assert token.type == "inline" or re.fullmatch(r"(table|thead|tbody|tr|th|td)_(open|close)", token.type), token
    assert depth == 0
    cells = [token.content for token in tokens if token.type == "inline"]
    return cells, fences


def test_a_comment_has_summary_sizes_and_folds(quantized):
    text = comment(TINY.model, quantized)
    assert text.startswith(f"<h3><code>{TINY.model}</code> → <code>{quantized}</code></h3>")
    assert "<p>12 weights quantized (float → int8 per channel). 8 Q/DQ pairs (u8) inserted." in text
    cells, fences = blocks(text)
    assert cells[:6] == ["", "before", "after", "nodes", "81", "119"] and cells[6] == "weights"
    assert "<details><summary><code>encoder.layer.*.attention</code> × 2 (* = 0–1): +" in text
    assert len(fences) == text.count("<details") and all(line[0] in "+-! " for f in fences for line in f.splitlines())
    assert f"Not shown: 4 renamings; <code>onnx-osplus diff {TINY.model} {quantized} --full</code> shows them." in text


def test_every_change_is_in_the_full_form(quantized):
    _, fences = blocks(comment(TINY.model, quantized, "--full"))
    lines = [line for fence in fences for line in fence.splitlines()]
    changes = len(run_tool("diff", TINY.model, quantized, "--full").stdout.splitlines())
    assert sum(line.startswith("+ Q/DQ") for line in lines) == 8
    assert sum(line.startswith("! weight") for line in lines) == 12
    assert len(lines) > 0.8 * changes


def test_counts_in_place_of_changes(quantized):
    text = comment(TINY.model, quantized, "--stat")
    _, fences = blocks(text)
    assert len(fences) == 1 and "encoder.layer.*.attention (* = 0–1)" in fences[0]


def test_the_same_models_and_models_with_nothing_in_common():
    text = comment(TINY.model, TINY.model)
    assert text.endswith("<p>The models are the same.</p>\n") and blocks(text) == ([], [])
    text = comment(TINY.model, TINY_LLAMA.model)
    assert "These models have little in common" in text
    blocks(text)


def hostile(path, names):
    nodes = [helper.make_node("Relu", ["x" if i == 0 else f"v{i - 1}"], [f"v{i}"], name=n) for i, n in enumerate(names)]
    value = [helper.make_tensor_value_info(n, 1, [1]) for n in ("x", f"v{len(names) - 1}")]
    graph = helper.make_graph(nodes, names[0], value[:1], value[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_names_are_shown_and_obeyed_by_nobody(tmp_path):
    before = hostile(tmp_path / "<b>*_`a`_*.onnx", ["plain"])
    after = hostile(tmp_path / "@everyone #1 ![x](y).onnx", HOSTILE)
    for options in [[], ["--full"], ["--stat"]]:
        text = comment(before, after, *options)
        _, fences = blocks(text)
        assert "\x1b" not in text and "\u202e" not in text
        if options == ["--full"]:
            lines = "".join(fences)
            # A slash in a name begins a block, whose name stands in the title of the fold, escaped.
            assert "script>alert(1)" in lines and "<summary><code>&lt;</code>: " in text and "````\\n</details>" in lines


def test_what_does_not_fit_is_counted(tmp_path):
    after = hostile(tmp_path / "after.onnx", [f"/m/part.{i % 701}/{'<x>`' * 40}/{i}" for i in range(6000)])
    before = hostile(tmp_path / "before.onnx", ["/m/part.0/one"])
    for options, most in [(["--full"], LIMIT), (["--full", "--max-bytes", "9000"], 9000), (["--max-bytes", "8000"], 8000)]:
        text = comment(before, after, *options)
        assert len(text.encode()) <= most
        _, fences = blocks(text)
        if "--full" in options:
            said = re.search(r"Not shown: (\d+) changes in \d+ blocks, for which a comment has no room", text)
            shown = sum(line[0] in "+-!" for fence in fences for line in fence.splitlines())
            total = len(onnx.load(after).graph.node)
            assert total * 0.9 < int(said[1]) + shown < total * 1.2 and int(said[1]) > 0


def test_wrong_usage(quantized):
    for options in [["--format", "json", "--stat"], ["--format", "json", "--full"], ["--format", "markdown", "--json"], ["--format", "svg"],
                    ["--format", "markdown", "--max-bytes", "12"]]:
        result = run_tool("diff", TINY.model, quantized, *options)
        assert result.returncode == 2 and result.stdout == "" and result.stderr, options
    result = run_tool("diff", TINY.model, quantized, "--format", "json")
    assert result.stdout == run_tool("diff", TINY.model, quantized, "--json").stdout
