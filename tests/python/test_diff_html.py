"""`onnx-osplus diff --html`: the changed part of the graph, drawn before and after; static, and safe whatever names say."""

import re
from html.parser import HTMLParser

import onnx
import pytest
from conftest import TINY, TINY_DECOMPOSED, TINY_LLAMA, run_tool
from test_diff_markdown import HOSTILE, hostile

VOID = {"meta", "link"}
TAGS = {"html", "head", "meta", "link", "title", "style", "body", "h1", "h2", "small", "p", "span", "div", "figure", "figcaption", "svg", "g", "rect",
        "text", "path", "details", "summary", "pre"}


class Page(HTMLParser):
    """Tags are closed in order, and only those that the tool writes; what is drawn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.groups, self.drawings, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS, tag
        values = dict(attributes)
        assert not any(name.startswith("on") for name in values), values
        if tag == "svg":
            self.drawings.append({"same": 0, "changed": 0, "alone": 0, "edges": 0, "boxes": [], "size": (float(values["width"]), float(values["height"]))})
        elif tag == "g":
            self.drawings[-1][values["class"]] += 1
        elif tag == "path":
            self.drawings[-1]["edges"] += 1
        elif tag == "rect":
            self.drawings[-1]["boxes"].append(tuple(float(values[k]) for k in ("x", "y", "width", "height")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    out = tmp_path_factory.mktemp("html") / "out.onnx"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "-q", "--max-slowdown", "0").returncode == 0
    return out


def page(folder, *arguments):
    out = folder / "diff.html"
    result = run_tool("diff", *arguments, "--html", out, "--force")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    text = out.read_text(encoding="utf-8")
    bare = text.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in text and not re.search(r"(?:src|href)=\"(?!data:)", bare) and "default-src 'none'" in text
    made = Page(text)
    for drawing in made.drawings:
        width, height = drawing["size"]
        for i, (x, y, w, h) in enumerate(drawing["boxes"]):
            assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
            # No node hides another.
            assert all(x + w <= u or u + s <= x or y + h <= v or v + t <= y for u, v, s, t in drawing["boxes"][i + 1 :])
    return made


def test_the_changed_part_is_drawn_before_and_after(quantized, tmp_path):
    made = page(tmp_path, TINY.model, quantized)
    # Inserted nodes are alone in B; nothing of A is.
    before, after = made.drawings[::2], made.drawings[1::2]
    assert len(before) == len(after) >= 2
    assert sum(d["alone"] for d in before) == 0 and sum(d["alone"] for d in after) > 5
    # Neighbours of other blocks may be changed too; they are drawn twice.
    assert min(sum(d["changed"] for d in side) for side in (before, after)) > 20
    assert sum(d["edges"] for d in after) > sum(d["edges"] for d in before) > 5
    assert "QuantizeLinear" in made.text and "encoder.layer.*.attention" in made.text and "12 weights quantized" in made.text
    # And what changed in words.
    words = run_tool("diff", TINY.model, quantized).stdout
    assert words.count("Q/DQ u8") == made.text.count("+ Q/DQ u8")


def test_what_one_model_has_alone_is_told_apart(quantized, tmp_path):
    made = page(tmp_path, quantized, TINY.model)
    assert sum(d["alone"] for d in made.drawings[::2]) > 5


@pytest.mark.parametrize("pair", [(TINY.model, TINY.model), (TINY.model, TINY_LLAMA.model), (TINY.model, TINY_DECOMPOSED.model)], ids=["same", "other", "form"])
def test_other_pairs(pair, tmp_path):
    made = page(tmp_path, *pair)
    if pair[0] == pair[1]:
        assert made.drawings == [] and "The models are the same" in made.text
    else:
        assert made.drawings


def test_names_are_text(tmp_path):
    before = hostile(tmp_path / "<b>&.onnx", ["plain"])
    after = hostile(tmp_path / "after.onnx", HOSTILE)
    made = page(tmp_path, before, after)
    assert "</code></summary></details><script>alert(1)</script>" in made.text
    assert "\x1b" not in made.text and "\u202e" not in made.text


def test_a_circle_and_a_large_graph_are_drawn(tmp_path):
    model = onnx.load(TINY.model)
    nodes = [onnx.helper.make_node("Add", [f"c{(i + 1) % 3}", "x"], [f"c{i}"], name=f"circle/{i}") for i in range(3)]
    model.graph.node.extend(nodes)
    for i in range(1000):
        model.graph.node.append(onnx.helper.make_node("Relu", [f"r{i - 1}" if i else "input_ids"], [f"r{i}"], name=f"many/{i}"))
    onnx.save(model, tmp_path / "m.onnx")
    made = page(tmp_path, TINY.model, tmp_path / "m.onnx")
    assert re.search(r"without \d+ more nodes that changed", made.text)
    assert max(len(d["boxes"]) for d in made.drawings) <= 120


def test_files_are_not_written_over(quantized, tmp_path):
    out = tmp_path / "diff.html"
    out.write_text("mine")
    result = run_tool("diff", TINY.model, quantized, "--html", out)
    assert result.returncode == 1 and "--force" in result.stderr and out.read_text() == "mine" and result.stdout == ""
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(TINY.model.read_bytes())
    result = run_tool("diff", copy, quantized, "--html", copy, "--force")
    assert result.returncode == 1 and copy.read_bytes() == TINY.model.read_bytes()
