"""A model judged by labels: the figures are those that ONNX Runtime gives for the same rows, and what must be reached is."""

import csv
import json
import re

import measure
import numpy as np
import onnx
import pyarrow
import pytest
from architectures import FOLDER, ROWS, feeds_of, run
from conftest import TINY, run_tool
from onnx import TensorProto, helper, numpy_helper
from pyarrow import parquet
from test_text_data import sentences, text_model, wordpiece
from transformers import PreTrainedTokenizerFast

CLASSIFIER = "bert_classifier-dynamo18-sdpa"
LINE = re.compile(r"^metric     (.*)$", re.M)


def accuracy(logits, labels):
    return float(np.mean(logits.argmax(-1) == labels))


def spearman(a, b):
    def ranks(values):
        return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])

    return float(np.corrcoef(ranks(np.asarray(a)), ranks(np.asarray(b)))[0, 1])


def balanced(model, row):
    """The classifier with random weights says the same of every row; this one says each of its classes as often as any other."""
    feeds = feeds_of(row, model, 64, 9)
    output = model.graph.output[0]
    logits = run(FOLDER / row["file"], row, feeds)[output.name]
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            if name == output.name:
                node.output[at] = "unbalanced"
    mean = numpy_helper.from_array(logits.mean(0).astype(np.float32), "mean_logits")
    scale = numpy_helper.from_array(logits.std(0).astype(np.float32), "std_logits")
    model.graph.initializer.extend([mean, scale])
    model.graph.node.append(helper.make_node("Sub", ["unbalanced", "mean_logits"], ["centred"]))
    model.graph.node.append(helper.make_node("Div", ["centred", "std_logits"], [output.name]))
    return model


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A classifier with rows to calibrate and rows to judge, whose labels its float model gives in nine cases of ten."""
    folder = tmp_path_factory.mktemp("classes")
    row = ROWS[CLASSIFIER]
    path = folder / "model.onnx"
    model = balanced(onnx.load(FOLDER / row["file"]), row)
    onnx.save(model, path)
    rng = np.random.default_rng(5)
    files = {"model": path, "row": row, "folder": folder}
    for name, rows, seed in [("calib", 64, 1), ("eval", 160, 2)]:
        feeds = feeds_of(row, model, rows, seed)
        np.savez(folder / f"{name}.npz", **feeds)
        logits = next(iter(run(path, row, feeds).values()))
        labels = logits.argmax(-1)
        wrong = rng.random(rows) < 0.1
        labels[wrong] = (labels[wrong] + 1) % logits.shape[-1]
        np.save(folder / f"{name}-labels.npy", labels)
        files[name] = folder / f"{name}.npz"
        files[f"{name}_feeds"], files[f"{name}_labels"] = feeds, labels
    return files


def quantized(files, out, *options):
    report = out.with_suffix(".json")
    command = [files["model"], out, "--calib", files["calib"], "--no-layers", "--report", report, "--force", *options]
    done = run_tool(*command)
    return done, json.loads(report.read_text()) if done.returncode == 0 else None


def test_the_figure_is_that_of_rows_that_set_no_range(classes, tmp_path):
    out = tmp_path / "out.onnx"
    labels = classes["folder"] / "calib-labels.npy"
    done, report = quantized(classes, out, "--labels", labels)
    assert done.returncode == 0, done.stderr
    held_out = slice(7, None, 8)
    feeds = {n: a[held_out] if len(a) == 64 else a for n, a in classes["calib_feeds"].items()}
    of = lambda path: accuracy(next(iter(run(path, classes["row"], feeds).values())), classes["calib_labels"][held_out])  # noqa: E731
    metric = report["metric"]
    assert (metric["name"], metric["rows"]) == ("accuracy", 8)
    assert metric["float"] == pytest.approx(of(classes["model"]))
    assert metric["quantized"] == pytest.approx(of(out))
    assert "8 rows are too few for a verdict" in done.stdout
    assert LINE.search(done.stdout).group(1).endswith("(8 rows), held out of calibration")


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_rows_of_their_own_judge(classes, tmp_path, metric):
    out = tmp_path / "out.onnx"
    labels = classes["folder"] / "eval-labels.npy"
    bits = ["--weight-bits", "3", "--activation-bits", "4"]
    options = ["--eval", classes["eval"], "--labels", labels, "--metric", metric]
    done, report = quantized(classes, out, *options, *bits)
    assert done.returncode == 0, done.stderr
    found = report["metric"]
    assert found["rows"] == 160 and found["name"] == metric and found["changed"] > 0
    logits = lambda path: next(iter(run(path, classes["row"], classes["eval_feeds"]).values()))  # noqa: E731
    before, after = logits(classes["model"]), logits(out)
    if metric == "accuracy":
        assert found["float"] == pytest.approx(accuracy(before, classes["eval_labels"]))
        # ONNX Runtime's integer kernels may decide a tie of the quantizer otherwise.
        assert found["quantized"] == pytest.approx(accuracy(after, classes["eval_labels"]), abs=2 / 160)
    same = float(np.mean(before.argmax(-1) == after.argmax(-1)))
    assert found["changed"] == pytest.approx(160 * (1 - same), abs=2)
    # The same rows with verify.
    verified = run_tool(
        "verify", classes["model"], out, "--calib", classes["eval"], "--no-layers", "--labels", labels, "--metric", metric, "--json", "-"
    )
    told = json.loads(verified.stdout)["metric"]
    assert told["quantized"] == pytest.approx(found["quantized"]) and told["float"] == pytest.approx(found["float"])


def test_linears_go_back_to_float_until_it_holds(classes, tmp_path):
    labels = classes["folder"] / "eval-labels.npy"
    options = ["--eval", classes["eval"], "--labels", labels, "--weight-bits", "3", "--activation-bits", "4"]
    _, before = quantized(classes, tmp_path / "before.onnx", *options)
    fall = before["metric"]["float"] - before["metric"]["quantized"]
    assert fall > 0.1, "the case shows nothing"
    done, after = quantized(classes, tmp_path / "after.onnx", *options, "--min-metric", f"-{fall / 2}")
    assert done.returncode == 0, done.stderr
    metric = after["metric"]
    assert metric["quantized"] >= metric["float"] - fall / 2 - 1e-9 and metric["least"] == pytest.approx(metric["float"] - fall / 2)
    kept = len(after["kept_float"]["linears"])
    assert 0 < kept < len(after["linears"])
    assert any("how many Linears to leave in float" in note for note in metric["notes"])
    logits = next(iter(run(tmp_path / "after.onnx", classes["row"], classes["eval_feeds"]).values()))
    assert accuracy(logits, classes["eval_labels"]) >= metric["float"] - fall / 2 - 2 / 160
    # A limit on what stays in float that is too narrow, and a value that nothing reaches.
    for more in [["--min-metric", f"-{fall / 2}", "--keep-float", "0"], ["--min-metric", "99.9%"]]:
        out = tmp_path / "none.onnx"
        done, _ = quantized(classes, out, *options, *more)
        assert done.returncode == 1 and not out.exists()
        assert re.search(r"accuracy falls from \d+\.\d % \(float\) to \d+\.\d % \(quantized\).* asked for", done.stderr), done.stderr


def test_nothing_is_left_in_float_for_nothing(classes, tmp_path):
    labels = classes["folder"] / "eval-labels.npy"
    options = ["--eval", classes["eval"], "--labels", labels]
    _, report = quantized(classes, tmp_path / "out.onnx", *options, "--min-metric", "-5%")
    assert report["kept_float"] is None
    plain, _ = quantized(classes, tmp_path / "plain.onnx")
    assert plain.returncode == 0
    names = ["out.onnx", "plain.onnx"]
    graphs = [onnx.load(tmp_path / name).graph.SerializeToString() for name in names]
    assert graphs[0] == graphs[1], "a metric that is content changes nothing"


def test_verify_fails_below(classes, tmp_path):
    out = tmp_path / "out.onnx"
    quantized(classes, out, "--weight-bits", "2", "--activation-bits", "4")
    command = ["verify", classes["model"], out, "--calib", classes["eval"], "--no-layers", "--labels", classes["folder"] / "eval-labels.npy"]
    assert run_tool(*command).returncode == 0
    done = run_tool(*command, "--min-metric", "-0.1%")
    assert done.returncode == 1 and "below --min-metric" in done.stderr


def labelled_text(folder, names):
    """A classifier of sentences beside its tokenizer, and sentences with the classes that it gives, a blank one now and then."""
    model = onnx.load(text_model(folder / "text.onnx", inputs=("input_ids",)))
    graph, rng = model.graph, np.random.default_rng(3)
    graph.initializer.append(numpy_helper.from_array(rng.normal(size=(16, 3)).astype(np.float32), "head"))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "tokens"))
    graph.node.append(helper.make_node("ReduceMean", [graph.output[0].name], ["pooled"], axes=[1], keepdims=0))
    graph.node.append(helper.make_node("MatMul", ["pooled", "head"], ["logits"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]))
    onnx.save(model, folder / "model.onnx")
    tokenizer, special = wordpiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 40}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    made = PreTrainedTokenizerFast.from_pretrained(folder)
    session = measure.session(folder / "model.onnx")
    lines = sentences()
    tokens = [made(line, truncation=True, return_tensors="np")["input_ids"].astype(np.int64) for line in lines]
    logits = np.concatenate([session.run(None, {"input_ids": ids})[0] for ids in tokens])
    # Every class is given to about as many sentences as the others, whatever the texts are.
    centre = np.median(logits, axis=0).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(-centre, "centre"))
    graph.node[-1].output[0] = "raw"
    graph.node.append(helper.make_node("Add", ["raw", "centre"], ["logits"]))
    onnx.save(model, folder / "model.onnx")
    rows = []
    for at, (line, given) in enumerate(zip(lines, (logits - centre).argmax(1), strict=True)):
        rows.append((line, names[int(given)]))
        if at % 9 == 4:
            rows.append(("  ", names[0]))
    return rows


def test_rows_that_statistics_keep_keep_their_numbers(tmp_path):
    """Without a mask rows are in the order of their lengths, and blank ones left out; labels go by the lines of the text."""
    texts = labelled_text(tmp_path, [0, 1, 2])
    calib, labels, kept = tmp_path / "calib.csv", tmp_path / "labels.npy", tmp_path / "kept.stats"
    with calib.open("w", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text, _ in texts)])
    np.save(labels, np.array([label for _, label in texts]))
    model, told = tmp_path / "model.onnx", []
    assert run_tool("stats", model, "--calib", calib, "-o", kept, "--with-data").returncode == 0
    for data in (["--calib", calib], ["--stats", kept]):
        done = run_tool(model, tmp_path / "out.onnx", *data, "--labels", labels, "--force")
        assert done.returncode == 0, done.stderr
        told.append([line for line in done.stdout.splitlines() if not line.startswith(("time", "wrote"))])
    assert told[0] == told[1] and any("100.0 %" in line for line in told[0])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "words", "parquet"])
def test_labels_stay_with_their_texts(tmp_path, kind):
    """Rows without text are left out, and without a mask rows are put in the order of their lengths: the label goes along."""
    names = ["calm", "angry", "sad"] if kind == "words" else [0, 1, 2]
    texts = labelled_text(tmp_path, names)
    assert len({label for _, label in texts}) == 3
    if kind == "words":
        (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    data = tmp_path / f"data.{'csv' if kind == 'words' else kind}"
    if kind == "parquet":
        # As hubs store datasets: groups of rows, dictionaries, zstd.
        columns = {"text": [text for text, _ in texts], "label": [label for _, label in texts]}
        parquet.write_table(pyarrow.table(columns), data, row_group_size=40, compression="zstd")
    elif kind == "jsonl":
        data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts))
    else:
        with data.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *texts])
    calib = tmp_path / "calib.txt"
    calib.write_text("\n".join(sentences()))
    done = run_tool(tmp_path / "model.onnx", tmp_path / "out.onnx", "--calib", calib, "--eval", data, "--metric", "accuracy")
    assert done.returncode == 0, done.stderr
    told = LINE.search(done.stdout).group(1)
    assert "from 100.0 %" in told or "at 100.0 %" in told, told
    assert "(100 rows), of --eval" in told
    # A part of the rows, and those of calibration that set no range.
    for options, rows in [(["--calib", calib, "--eval", data, "--eval-samples", "30"], 30), (["--calib", data], 12)]:
        command = [tmp_path / "model.onnx", tmp_path / "out.onnx", *options, "--metric", "accuracy", "--force"]
        told = LINE.search(run_tool(*command).stdout).group(1)
        assert ("from 100.0 %" in told or "at 100.0 %" in told) and f"({rows} rows)" in told, told


def test_wrong_labels_are_told(classes, tmp_path):
    short = tmp_path / "short.npy"
    np.save(short, np.zeros(10, np.int64))
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["good"] * 160))
    large = tmp_path / "large.npy"
    np.save(large, np.full(160, 70))
    own = ["--eval", classes["eval"]]
    for options, status, told in [
        ([*own, "--labels", short], 1, "10 labels and 160 rows"),
        ([*own, "--labels", words], 1, "`good` is no number"),
        ([*own, "--labels", large], 1, "label 70 is none of the"),
        ([*own, "--labels", classes["folder"] / "eval-labels.npy", "--metric-output", "no"], 1, "no float output `no`"),
        ([*own], 2, "--labels FILE"),
        ([*own, "--metric", "accuracy"], 2, "--labels FILE"),
        (["--min-metric", "x"], 2, "neither a value"),
        (["--eval-samples", "3"], 2, "--eval"),
        (["--labels", tmp_path / "none.npy", "--streaming", "on"], 1, "none.npy"),
    ]:
        done, _ = quantized(classes, tmp_path / "out.onnx", *options)
        assert done.returncode == status and told in done.stderr, (options, done.stderr)


def test_numbers_and_pairs(tmp_path):
    """Two rows a label: the cosine of two rows' vectors, ranked as the labels are."""
    data = np.load(TINY.heldout)
    rows = len(next(iter(data.values()))) // 2 * 2
    feeds = {name: data[name][:rows] for name in data.files}
    np.savez(tmp_path / "pairs.npz", **feeds)
    labels = np.random.default_rng(1).random(rows // 2).round(1)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels)))

    def of(path):
        full = measure.with_token_types(TINY.model, feeds)
        vectors = measure.session(path).run([TINY.output], full)[0]
        mask = feeds["attention_mask"][..., None].astype(np.float64)
        pooled = (vectors * mask).sum(1) / mask.sum(1)
        a, b = pooled[::2], pooled[1::2]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        return spearman(labels, cosine)

    out = tmp_path / "out.onnx"
    report = tmp_path / "report.json"
    done = run_tool(
        TINY.model, out, "--calib", TINY.calib, "--eval", tmp_path / "pairs.npz", "--labels", tmp_path / "labels.txt", "--report", report
    )
    assert done.returncode == 0, done.stderr
    metric = json.loads(report.read_text())["metric"]
    assert (metric["name"], metric["rows"]) == ("spearman", rows // 2)
    assert metric["float"] == pytest.approx(of(TINY.model), abs=1e-6)
    assert metric["quantized"] == pytest.approx(of(out), abs=0.02)
    # Without rows of their own the pairs would be torn.
    done = run_tool(TINY.model, out, "--calib", tmp_path / "pairs.npz", "--labels", tmp_path / "labels.txt", "--force")
    assert done.returncode == 1 and "pairs of their own" in done.stderr


def test_a_label_for_every_token(tmp_path):
    """Token classification: labels [rows, tokens], with -100 where there is none, as its datasets are."""
    model = onnx.load(TINY.model)
    graph, rng = model.graph, np.random.default_rng(4)
    hidden = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    graph.initializer.append(numpy_helper.from_array(rng.normal(size=(hidden, 5)).astype(np.float32), "head"))
    graph.node.append(helper.make_node("MatMul", [graph.output[0].name, "head"], ["logits"], "head"))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    feeds = measure.with_token_types(TINY.model, np.load(TINY.calib))
    mask = feeds["attention_mask"].astype(bool)
    logits = lambda path: measure.session(path).run(["logits"], feeds)[0]  # noqa: E731
    labels = logits(path).argmax(-1)
    wrong = rng.random(labels.shape) < 0.2
    labels[wrong] = (labels[wrong] + 1) % 5
    # What is cut into pieces has a label at the first alone.
    judged = mask & (rng.random(labels.shape) < 0.7)
    np.save(tmp_path / "labels.npy", np.where(judged, labels, -100))
    eval_data = ["--eval", TINY.calib, "--labels", tmp_path / "labels.npy", "--metric-output", "logits"]
    bits = ["--weight-bits", "4", "--activation-bits", "4"]
    report = tmp_path / "report.json"
    done = run_tool(path, out, "--calib", TINY.calib, *eval_data, *bits, "--report", report, "--no-layers")
    assert done.returncode == 0, done.stderr
    metric = json.loads(report.read_text())["metric"]
    of = lambda path: float(np.mean((logits(path).argmax(-1) == labels)[judged]))  # noqa: E731
    assert metric["float"] == pytest.approx(of(path)) and 0.7 < metric["float"] < 0.9
    assert metric["quantized"] == pytest.approx(of(out), abs=3 / judged.sum())
    assert metric["quantized"] < metric["float"] and metric["rows"] == len(labels)
