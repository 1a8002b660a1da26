"""The table of docs/results.md: one row per tool, from the rows of peers.py."""

from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent.parent / "docs" / "results.md"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
# SQNR and cost of these, and everything else of one. All models take half a day; what came out is told below the table.
MODELS = ("MiniLM-L3", "MiniLM-L6", "BERT-tiny SPLADE", "ALBERT")
MAIN = "MiniLM-L6"
COSTS = (("CPU s", "cpu_s", "{:.1f}"), ("peak MB", "peak_mb", "{:.0f}"))
COLUMNS = (
    ("cosine", "cosine", "{:.4f}", 1),
    ("probe acc.", "probe_accuracy", "{:.1f} %", 100),
    ("top-10", "top_10", "{:.1f} %", 100),
    ("file MB", "file_mb", "{:.1f}", 1),
    ("speed-up", "speed_up", "{:.2f}", 1),
)


def cell(row, key, form, factor=1):
    return form.format(row[key] * factor) if row.get(key) is not None else "–"


def by_tool(results):
    """{(tool, activations): {model: result}}"""
    rows = {}
    for result in results:
        rows.setdefault((result["tool"], result["activations"]), {})[result["model"]] = result
    return rows


def table(rows):
    """Markdown lines of by_tool's rows. A result is a dictionary with model, tool, activations and what was measured."""
    heads = ["tool", "activations", *(f"{m} dB" for m in MODELS), *(head for head, *_ in COSTS + COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for (tool, activations), found in rows.items():
        cells = [cell(found.get(model, {}), "sqnr_db", "{:.2f}") for model in MODELS]
        for _, key, form in COSTS:
            cells.append(" / ".join(cell(found.get(model, {}), key, form) for model in MODELS))
        cells += [cell(found.get(MAIN, {}), key, form, factor) for _, key, form, factor in COLUMNS]
        lines.append(f"| {tool} | {activations} | {' | '.join(cells)} |")
    return lines


def write(results, caption):
    """Put the table and its caption between the marks in docs/results.md."""
    rows = by_tool(results)
    measured = {tool: found for tool, found in rows.items() if any("sqnr_db" in r for r in found.values())}
    lines = table(measured)
    for key, found in rows.items():
        if key not in measured:
            errors = sorted({result["error"] for result in found.values()})
            lines += ["", f"Without a result: {key[0]}: {'; '.join(errors)}."]
    text = RESULTS.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    block = "\n".join([BEGIN, caption, "", *lines, END])
    RESULTS.write_text(head + block + rest.split(END)[1], encoding="utf-8")
