"""Outlier Suppression+ for ONNX transformers: migrate, quantize, verify.

    import onnx_osplus
    result = onnx_osplus.quantize("model.onnx", "sentences.txt", "int8.onnx")
    print(result.sqnr_db)

Options are those of the command line, with underscores: `weight_bits=4` is `--weight-bits 4`, `no_extra_nodes=True` is
`--no-extra-nodes`.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from . import _data, _model, _onnx_osplus
from ._onnx_osplus import NothingToQuantize, OsplusError, UsageError, __version__
from ._result import Candidate, Diff, Result

__all__ = [
    "Candidate",
    "Diff",
    "MetricError",
    "NothingToQuantize",
    "OsplusError",
    "Result",
    "UsageError",
    "data",
    "diff",
    "inspect",
    "lint",
    "quantize",
    "stats",
    "verify",
    "__version__",
]


class MetricError(OsplusError):
    """The quantized model is below `min_metric`. `float` and `quantized` are what the metric says of the two."""

    def __init__(self, before, after, least):
        super().__init__(
            f"the metric falls from {before:.6g} (float) to {after:.6g} (quantized), below min_metric {least:.6g}; nothing was "
            "written; keep_float leaves Linears in float"
        )
        self.float, self.quantized, self.least = before, after, least


def quantize(model, calibration, out=None, *, progress=None, metric=None, min_metric=None, labels=None, eval=None, **options):
    """Quantizes a model.

    model: a path, bytes, or an onnx.ModelProto; it is never changed.
    calibration: a path as for `--calib` (or a list of them, or a dict of paths by input), texts, a dict of arrays, an iterable of
        dicts or tensors (a torch DataLoader, a datasets.Dataset), or a CalibrationDataReader; None where files of `stats=` keep
        the rows.
    out: the file to write; without it the model is in memory: `Result.model`.
    progress: True for a line on the standard error, or a function of (what, done, total).
    metric: a function of the model (a `Candidate`: bytes with a `session`) that gives a number, more is better; it judges the
        float and the quantized model. Or the name of a metric of labelled rows: "accuracy", "f1", "spearman", …
    labels: instead of a metric, what the model should say of each row of `eval`, or of the calibration rows: a path as for
        `--labels`, or an array.
    eval: rows that judge and set no range, as `calibration`.
    min_metric: what the quantized model must reach, or a text such as "-0.5%" for how much less than the float model it may reach:
        Linears are left in float until it does. If it never does, MetricError is raised, and nothing is written.
    options: those of the command line. `force=True` overwrites `out`.
    """
    if isinstance(metric, str):
        options, metric = {**options, "metric": metric}, None
    with _temporary() as folder:
        source = _model.as_path(model, folder)
        made = folder / "quantized.onnx"
        # A metric that only tells is asked about the very file, before it gets its name.
        tells = metric is not None and min_metric is None
        target = made if out is None or tells else Path(out)
        options = dict(options)
        if target is made and out is not None:
            _refuse(out, options.get("force", False))
            options["force"] = True
        words = _words(calibration, source, folder, options)
        words += _judging(labels, eval, source, folder, options)
        judging = [None, None]
        if min_metric is not None and not isinstance(min_metric, str):
            judging[1] = float(min_metric)
        elif min_metric is not None:
            words.append(f"--min-metric={min_metric}")
        if metric is not None and not tells:
            judging[0] = (lambda path: float(metric(Candidate(Path(path).read_bytes()))), folder)
        words += ["--", os.fspath(source), os.fspath(target)]
        try:
            report, page, text = _onnx_osplus.quantize(words, _listener(progress), *judging)
        except _onnx_osplus.MinMetricError as error:
            raise MetricError(*error.args) from None
        judged = _judge(metric, source, target) if tells else None
        if out is not None and target is made:
            _move(made, Path(out))
        data = made.read_bytes() if out is None else None
        return Result(report, page, text, None if out is None else Path(out), data, judged)


def stats(model, calibration, out, *, progress=None, **options):
    """Statistics of the calibration rows in a file, or of one part of them (`shard="2/8"`), as `onnx-osplus stats` takes them:
    `quantize(…, stats=[file, …])` need not measure them again. With `with_data=True` the file keeps the rows too, and
    `quantize(model, None, …, stats=file)` needs no other data. Gives the path of the file."""
    with _temporary() as folder:
        path = _model.as_path(model, folder)
        words = _words(calibration, path, folder, dict(options), "stats")
        _onnx_osplus.stats([*words, "--quiet", f"--output={os.fspath(out)}", "--", os.fspath(path)], _listener(progress))
        return Path(out)


def verify(float_model, quantized, calibration, *, progress=None, labels=None, **options):
    """How far `quantized`, of any tool, is from `float_model`: the JSON of `onnx-osplus verify` as a dict. `labels` as for
    `quantize`, of all rows."""
    with _temporary() as folder:
        before = _model.as_path(float_model, folder, "float.onnx")
        after = _model.as_path(quantized, folder, "quantized.onnx")
        words = _words(calibration, before, folder, options, "verify")
        words += _judging(labels, None, before, folder, options)
        return _json(_onnx_osplus.verify([*words, "--", os.fspath(before), os.fspath(after)], _listener(progress)))


def inspect(model, calibration=None, *, progress=None, **options):
    """What is seen in a model: the JSON of `onnx-osplus inspect` as a dict."""
    with _temporary() as folder:
        path = _model.as_path(model, folder)
        words = _words(calibration, path, folder, options, "inspect")
        return _json(_onnx_osplus.inspect([*words, "--", os.fspath(path)], _listener(progress)))


def data(model, calibration, *, tokenizer=None, preprocessor=None, column=(), max_length=None, samples=None):
    """What a model is fed with: a list of batches, each a dict of NumPy arrays by input. Every row is in one of them."""
    import numpy as np

    with _temporary() as folder:
        path = _model.as_path(model, folder)
        inputs = [] if _data.is_path(calibration) else _onnx_osplus.inputs(path)
        words, sampled = _data.sources(calibration, inputs, folder, samples)
        sources = [_named(word) for word in words]
        columns = [column] if isinstance(column, str) else list(column)
        samples = None if sampled else samples
        batches, _ = _onnx_osplus.data(path, sources, tokenizer, preprocessor, columns, max_length, samples)
        return [{name: np.frombuffer(of, kind).reshape(shape) for name, kind, shape, of in batch} for batch in batches]


def _named(word):
    """`NAME=PATH` in two, as the command line reads it."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and name and not os.path.exists(word) else (None, word)


def lint(model, target="portable"):
    """What a runtime would make of a file: a list of findings, empty if there are none."""
    with _temporary() as folder:
        return _json(_onnx_osplus.lint(_model.as_path(model, folder), target))


def diff(before, after):
    """What differs between two models; false if nothing does."""
    with _temporary() as folder:
        before = _model.as_path(before, folder, "before.onnx")
        after = _model.as_path(after, folder, "after.onnx")
        return Diff(*_onnx_osplus.diff(before, after))


class _temporary(tempfile.TemporaryDirectory):
    """A folder for what is only in memory, which goes at the end."""

    def __init__(self):
        super().__init__(prefix="onnx-osplus-", ignore_cleanup_errors=True)

    def __enter__(self):
        return Path(super().__enter__())


def _json(text):
    import json

    return json.loads(text)


def _words(calibration, model, folder, options, command=None):
    """The words of the command line."""
    words = ["onnx-osplus"] + ([command] if command else [])
    if calibration is not None:
        inputs = []
        if not _data.is_path(calibration):
            inputs = _onnx_osplus.inputs(model)
        data, sampled = _data.sources(calibration, inputs, folder, options.get("samples"))
        if sampled:
            options.pop("samples", None)
        for word in data:
            words += ["--calib", word]
    if "columns" in options:
        options["column"] = options.pop("columns")
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
            continue
        if name == "keep_float" and isinstance(value, float):
            value = f"{100 * value:g}%"
        for one in value if isinstance(value, (list, tuple)) else [value]:
            words.append(f"{flag}={os.fspath(one) if isinstance(one, os.PathLike) else one}")
    return words


def _judging(labels, rows, model, folder, options):
    """The words for labels and for the rows that judge."""
    words = []
    if labels is not None and _data.is_path(labels):
        words.append(f"--labels={os.fspath(labels)}")
    elif labels is not None:
        import numpy as np

        np.save(folder / "labels.npy", _data.as_array(labels))
        words.append(f"--labels={folder / 'labels.npy'}")
    if rows is not None:
        inputs = [] if _data.is_path(rows) else _onnx_osplus.inputs(model)
        place = folder / "eval"
        place.mkdir()
        # All of them: they have labels.
        found, _ = _data.sources(rows, inputs, place, options.get("eval_samples", sys.maxsize), labelled=True)
        words += [f"--eval={word}" for word in found]
    return words


def _listener(progress):
    """Who is told of the progress."""
    return _Line() if progress is True else progress or None


class _Line:
    """Progress as one line on the standard error, which notebooks show too."""

    def __init__(self):
        self.last = 0.0

    def __call__(self, what, done, total):
        now = time.monotonic()
        if done in (0, total) or now - self.last > 0.2:
            self.last = now
            end = "\n" if total and done == total else ""
            print(f"\r{what}: {done} of {total}   ", end=end, file=sys.stderr, flush=True)


def _judge(metric, source, target):
    """What the metric says of the float and of the quantized model."""
    models = {"float": source, "quantized": target}
    return {name: float(metric(Candidate(Path(path).read_bytes()))) for name, path in models.items()}


def _refuse(out, force):
    """What the command line refuses before any work."""
    out = Path(out)
    if out.exists() and not force:
        raise OsplusError(f"{out} exists; force=True overwrites it")
    if not out.parent.is_dir():
        raise OsplusError(f"the folder {out.parent} of {out} does not exist")


def _move(made, out):
    """Gives a judged file its name, whole or not at all."""
    import shutil

    if Path(f"{made}.data").exists():
        raise OsplusError("a metric judges models whose weights are in the same file; leave external_data out")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        shutil.copyfile(made, beside)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
