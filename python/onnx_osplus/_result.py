"""What a run made."""

import html as escape
import json
from pathlib import Path


class Result:
    """A quantized model and the account of how it was made.

    `report` has every key of the command line's JSON report; `path` is the written file, `None` where the model is only in
    memory; `metric` is what a metric says of the float and the quantized model: the caller's, or that of labels.
    """

    def __init__(self, report, html, text, path, data, metric=None):
        self.report = json.loads(report)
        self.html = html
        self.text = text
        self.path = path
        judged = self.report.get("metric")
        self.metric = metric or (judged and {name: judged[name] for name in ("float", "quantized")})
        self._data = data

    @property
    def model(self):
        """The quantized model as the bytes of its file, without weights that are in a file beside it."""
        return self._data if self._data is not None else Path(self.path).read_bytes()

    @property
    def sqnr_db(self):
        """SQNR of every float output on held-out data, in dB; `None` for one without a difference."""
        return {name: output.get("sqnr_db") for name, output in self.report["outputs"].items()}

    @property
    def notes(self):
        """What else a reader should know."""
        return self.report["notes"]

    def model_proto(self):
        """The quantized model as an `onnx.ModelProto`."""
        import onnx

        return onnx.load(self.path) if self._data is None else onnx.load_from_string(self._data)

    def session(self, **options):
        """An `onnxruntime.InferenceSession` of the quantized model."""
        import onnxruntime

        return onnxruntime.InferenceSession(self._data if self._data is not None else str(self.path), **options)

    def __repr__(self):
        return self.text.rstrip()

    def _repr_html_(self):
        # A page of its own, with its own style.
        page = escape.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0"></iframe>'


class Candidate(bytes):
    """A model as a metric gets it: its bytes, which `onnxruntime.InferenceSession` takes, and a session of it."""

    _session = None

    @property
    def session(self):
        """An `onnxruntime.InferenceSession` of the model."""
        if self._session is None:
            import onnxruntime

            self._session = onnxruntime.InferenceSession(bytes(self))
        return self._session

    def run(self, output_names, input_feed, run_options=None):
        """What `session.run` gives."""
        return self.session.run(output_names, input_feed, run_options)

    def get_inputs(self):
        return self.session.get_inputs()

    def get_outputs(self):
        return self.session.get_outputs()


class Diff:
    """What differs between two models."""

    def __init__(self, same, json_text, text, stat):
        self.same = same
        self.json = json.loads(json_text)
        self.text = text
        self.stat = stat

    def __bool__(self):
        """Whether there is a difference."""
        return not self.same

    def __repr__(self):
        return self.text.rstrip() if self else "no difference"
