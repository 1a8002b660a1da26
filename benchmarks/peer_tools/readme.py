"""The table of README.md: one row per tool, from the rows of peers.py."""

from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "README.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
MODELS = ("MiniLM-L3", "MiniLM-L6", "BERT-tiny SPLADE", "ALBERT")  # SQNR of these, and everything else of one
MAIN = "MiniLM-L6"
COLUMNS = (
    ("cosine", "cosine", "{:.4f}", 1),
    ("probe acc.", "probe_accuracy", "{:.1f} %", 100),
    ("top-10", "top_10", "{:.1f} %", 100),
    ("CPU s", "cpu_s", "{:.1f}", 1),
    ("peak MB", "peak_mb", "{:.0f}", 1),
    ("file MB", "file_mb", "{:.1f}", 1),
    ("speed-up", "speed_up", "{:.2f}", 1),
)


def cell(row, key, form, factor=1):
    return form.format(row[key] * factor) if row.get(key) is not None else "–"


def table(results):
    """Markdown lines. results: dictionaries with model, tool, activations and what was measured."""
    rows = {}
    for result in results:
        rows.setdefault((result["tool"], result["activations"]), {})[result["model"]] = result
    heads = ["tool", "activations", *(f"{m} dB" for m in MODELS), *(head for head, *_ in COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (tool, activations), found in rows.items():
        cells = [cell(found.get(model, {}), "sqnr_db", "{:.2f}") for model in MODELS]
        cells += [cell(found.get(MAIN, {}), key, form, factor) for _, key, form, factor in COLUMNS]
        lines.append(f"| {tool} | {activations} | {' | '.join(cells)} |")
    return lines


def write(results, caption):
    """Put the table and its caption between the marks in README.md."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    block = "\n".join([BEGIN, caption, "", *table(results), END])
    README.write_text(head + block + rest.split(END)[1], encoding="utf-8")
