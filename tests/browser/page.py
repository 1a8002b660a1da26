"""The report page in headless Chromium: no error, no request, no overflow, both themes readable, at two widths.

    tests/browser/page.py BINARY [FOLDER]      FOLDER keeps the screenshots
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from driver import Browser

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
# What the page of each run has to show besides its own sites and Linears.
RUNS = {
    "ort": ["--keep-float", "2"],
    "tensorrt": ["--target", "tensorrt", "--attention", "int8"],
    "float": ["--format", "float"],
}
WIDTHS, SCHEMES = (1280, 420), ("light", "dark")

# The colours of the page's body and of every kind of text on it.
COLOURS = """
const of = e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor];
const kinds = ['body', 'h2', '.muted', '.cards dt', 'th', '.name', 'summary'];
const background = e => {
  for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)') return c; }
  return 'rgb(255, 255, 255)';
};
return kinds.map(k => document.querySelector(k)).filter(e => e)
    .map(e => [e.className || e.tagName, getComputedStyle(e).color, background(e)]);
"""
SIZES = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
DRAWN = """
return [...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height,
    s.querySelectorAll('rect').length]);
"""
TEXT = "return document.body.textContent;"


def luminance(colour):
    """Relative luminance of `rgb(r, g, b)`, as WCAG 2 defines it."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def make(binary, folder, name, options):
    """The page of one run, and its report."""
    page, report = folder / f"{name}.html", folder / f"{name}.json"
    subprocess.run(
        [binary, TINY / "model.onnx", folder / f"{name}.onnx", "--calib", TINY / "calib.npz", "-q", *options,
         "--report", page, "--report", report],
        check=True,
    )  # fmt: skip
    return page, json.loads(report.read_text())


def looked_at(browser, page, where, shot, kept):
    """What must hold of every page: no error, no request, no overflow, readable. Gives the colour behind its text."""
    scheme, width = shot
    console, asked = browser.open(page.as_uri(), width, scheme)
    assert not console, f"{where}: console: {console}"
    assert not asked, f"{where}: asked for {asked}"
    wide, room = browser.script(SIZES)
    assert wide <= room, f"{where}: the page is {wide} wide in a window of {room}"
    first = None
    for what, colour, background in browser.script(COLOURS):
        found = contrast(colour, background)
        assert found >= 4.5, f"{where}: {what}: contrast {found:.1f} of {colour} on {background}"
        first = first or background
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(kept) / f"{page.stem}-{scheme}-{width}.png")
    return first


def look_at_a_diff(binary, browser, folder, kept):
    """The page of `diff --html`: what differs is on it, drawn before and after, with something to see."""
    page = folder / "diff.html"
    subprocess.run([binary, "diff", TINY / "model.onnx", folder / "ort.onnx", "--html", page], stdout=subprocess.DEVNULL)
    stat = subprocess.run([binary, "diff", TINY / "model.onnx", folder / "ort.onnx", "--stat"], capture_output=True, text=True)
    backgrounds = {}
    for scheme in SCHEMES:
        for width in WIDTHS:
            where = f"diff, {scheme}, {width}"
            backgrounds[scheme] = looked_at(browser, page, where, (scheme, width), kept)
            drawn = browser.script(DRAWN)
            assert drawn and all(w > 0 and h > 0 for w, h, _ in drawn), f"{where}: nothing is drawn: {drawn}"
            assert sum(boxes for _, _, boxes in drawn) > 10, f"{where}: {drawn}"
            assert "QuantizeLinear" in browser.script(TEXT), where
    assert stat.stdout and backgrounds["light"] != backgrounds["dark"], backgrounds
    return len(SCHEMES) * len(WIDTHS)


def expected(report):
    """Texts that the page must hold."""
    yield from (linear["name"] for linear in report["linears"])
    yield from (site["value"] for site in report["sites"])
    yield from (miss["reason"] for miss in report["near_misses"])
    yield from (finding["message"] for finding in report["lint"])
    yield from (attention["softmax"] for attention in report["attention"])
    yield from report["digests"].values()
    yield from report["notes"]
    yield from report["outputs"]
    yield report["command"]


def main(binary, kept=None):
    checked = 0
    with tempfile.TemporaryDirectory() as temporary, Browser() as browser:
        folder = Path(temporary)
        for name, options in RUNS.items():
            page, report = make(binary, folder, name, options)
            backgrounds = {}
            for scheme in SCHEMES:
                for width in WIDTHS:
                    where = f"{name}, {scheme}, {width}"
                    backgrounds.setdefault(scheme, looked_at(browser, page, where, (scheme, width), kept))
                    text = browser.script(TEXT)
                    missing = [t for t in expected(report) if t not in text]
                    assert not missing, f"{where}: not on the page: {missing}"
                    checked += 1
            assert backgrounds["light"] != backgrounds["dark"], backgrounds
        checked += look_at_a_diff(binary, browser, folder, kept)
    print(f"{checked} views of the pages of a report and of a diff are as they should be")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
