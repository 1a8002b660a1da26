"""The figure that the tool shows is what its user sees on other data; what cannot be known is said."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import truth_models as models
from conftest import run_tool

FILL = 1e3  # no number of these models is that large, but those that they fill in


def run_ort(path, data):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {name: data[name] for name in names})


def run_ort_by_row(path, data):
    rows = len(next(iter(data.values())))
    one = [run_ort(path, {name: a[i : i + 1] for name, a in data.items()}) for i in range(rows)]
    return [np.concatenate(parts) for parts in zip(*one)]


def sqnr(float_out, out, keep):
    r, o = float_out[keep].astype(np.float64), out[keep].astype(np.float64)
    return 10 * np.log10((r**2).sum() / ((r - o) ** 2).sum())


class Result:
    """A quantized model with its report, and the truth about it on 256 unseen rows."""

    def __init__(self, folder, made, rows=256, options=(), keep=None, by_row=False):
        model, data = made
        self.folder, self.data, self.keep, self.by_row = folder, data(256, 77), keep, by_row
        self.path = folder / "model.onnx"
        onnx.save(model, self.path)
        np.savez(folder / "calib.npz", **data(rows, 5))
        self.out, self.plain = folder / "out.onnx", folder / "plain.onnx"
        self.job = self.quantize(self.out, *options)
        assert self.job.returncode == 0, self.job.stderr
        self.report = json.loads((folder / "report.json").read_text())
        job = self.quantize(self.plain, "--method", "none")
        assert job.returncode == 0, job.stderr

    def quantize(self, out, *options):
        report = ["--report", self.folder / "report.json"] if out == self.out else []
        return run_tool(self.path, out, "--calib", self.folder / "calib.npz", "--force", *report, *options)

    def truth(self, path):
        run = run_ort_by_row if self.by_row else run_ort
        float_out, out = run(self.path, self.data)[0], run(path, self.data)[0]
        keep = np.abs(float_out) < FILL
        if self.keep is not None:
            keep &= self.keep(self.data)[..., None]
        return sqnr(float_out, out, keep)

    def check(self, output, least_gain=1.0, tolerance=2.0):
        told = self.report["outputs"][output]["sqnr_db"]
        true, plain = self.truth(self.out), self.truth(self.plain)
        assert abs(told - true) < tolerance, (told, true, plain)
        assert true > plain + least_gain, (told, true, plain)
        return told


def notes(result):
    return " ".join(result.report["notes"])


# ------------------------------------------------------------------------------------------------- whose mask is it?


@pytest.mark.parametrize(
    "made",
    [
        models.encoder_decoder(16, 16),
        models.encoder_decoder(16, 15),
        models.encoder_decoder(16, 16, "encoder_attention_mask"),
        models.encoder_decoder(16, 16, "src_mask"),
        models.encoder_decoder(16, 16, causal=True),
    ],
    ids=["same_length", "other_length", "other_name", "unknown_name", "causal"],
)
def test_a_mask_counts_for_its_own_sequence_alone(tmp_path, made):
    result = Result(tmp_path, made)
    result.check("logits")
    assert "is read as a mask: 0 is padding" in notes(result)


@pytest.mark.parametrize(
    "read, name, said",
    [
        ("usual", "attention_mask", "0 is padding"),
        ("additive", "attention_mask", "-1000000000 is padding"),
        ("inverted", "attention_mask", "1 is padding"),
        ("inverted", "src_key_padding_mask", "1 is padding"),
        ("additive", "bias", "-1000000000 is padding"),
    ],
)
def test_a_mask_is_read_as_the_graph_uses_it(tmp_path, read, name, said):
    def real(data):
        return {"usual": data[name] == 1, "additive": data[name] == 0, "inverted": data[name] == 0}[read]

    result = Result(tmp_path, models.masked_encoder(read, name), keep=real)
    result.check("y")
    assert f"{name} is read as a mask: {said}" in notes(result)


# --------------------------------------------------------------------------------------------------- every layout


@pytest.fixture(scope="module")
def batch_first(tmp_path_factory):
    return Result(tmp_path_factory.mktemp("twin"), models.patches("batch_first"))


@pytest.mark.parametrize("layout", ["seq_first", "windows", "image", "fixed", "flat"])
def test_a_layout_does_not_matter(tmp_path, layout, batch_first):
    result = Result(tmp_path, models.patches(layout), by_row=layout == "fixed")
    result.check("y")
    if layout != "windows":  # which attends to fewer tokens, so it is another model
        # The same model but for where its tokens are.
        assert abs(result.truth(result.out) - batch_first.truth(batch_first.out)) < 1
    if layout != "fixed":  # one short row is too little to run a block on
        gains = [site["validated_gain_db"] for site in result.report["sites"] if site["loss"] == "attention output"]
        assert gains and max(gains) > 3, gains


# ---------------------------------------------------------------------------------------------- what a user can trust


@pytest.mark.parametrize("how", ["where", "where1e4", "added", "infinite"])
def test_what_the_model_fills_in_is_in_no_figure(tmp_path, how):
    result = Result(tmp_path, models.filled(how))
    told = result.check("logits")
    output = result.report["outputs"]["logits"]
    assert 0.1 < output["filled"] / (output["filled"] + output["elements"]) < 0.3
    assert f"without {output['filled']} of" in result.job.stdout
    above = result.quantize(result.folder / "above.onnx", "--min-sqnr", told + 40)
    assert above.returncode == 1
    # int8 attention is judged by what is not filled in.
    result.job = result.quantize(result.out, "--attention", "int8")
    result.report = json.loads((tmp_path / "report.json").read_text())
    result.check("logits")
    if cost := result.report["attention_cost"]:
        assert cost["int8_sqnr_db"] == result.report["outputs"]["logits"]["sqnr_db"]


@pytest.mark.parametrize("whole", [True, False], ids=["tokens", "channels"])
@pytest.mark.parametrize("fill", [-1e4, models.FLOAT_MIN, -np.inf], ids=["-1e4", "smallest", "-inf"])
def test_what_is_filled_in_before_a_linear_sets_no_range(tmp_path, fill, whole):
    result = Result(tmp_path, models.filled_within(fill, whole), rows=768)
    # The largest value of a row's tokens: one row of 256 may have a quarter of the error.
    assert result.check("y", tolerance=4) > 25
    lows = [site["range_before"][0] for site in result.report["sites"]]
    assert len(lows) == 5 and min(lows) > -200, lows


def test_integer_outputs_are_compared_by_agreement(tmp_path):
    result = Result(tmp_path, models.labels(), rows=32)
    label = result.report["agreements"]["label"]
    assert label["elements"] == 32 and 24 <= label["agreeing"] <= 32
    assert "32 numbers of 4 rows are too few for a verdict" in label["caution"]
    assert "of 32 elements are the same" in result.job.stdout
    for job in (
        result.quantize(result.folder / "x.onnx", "--min-sqnr", "1"),
        run_tool("verify", result.path, result.out, "--calib", result.folder / "calib.npz", "--min-sqnr", "1"),
    ):
        assert job.returncode == 1 and "SQNR" in job.stderr


def test_integer_outputs_beside_float_ones(tmp_path):
    result = Result(tmp_path, models.labels(logits_too=True))
    agreement = result.report["agreements"]["label"]
    assert agreement["plain_agreeing"] <= agreement["agreeing"] <= agreement["elements"]
    assert set(result.report["outputs"]) == {"logits"}
    assert result.quantize(result.folder / "x.onnx", "--min-sqnr", "10").returncode == 0


def test_too_few_numbers_are_no_verdict(tmp_path):
    result = Result(tmp_path, models.scalar(), rows=24)
    assert "3 numbers of 3 rows are too few for a verdict" in result.job.stdout
    job = run_tool("verify", result.path, result.out, "--calib", result.folder / "calib.npz")
    assert "24 numbers of 24 rows are too few for a verdict" in job.stdout


@pytest.mark.parametrize("decomposed", [False, True])
def test_probabilities_are_judged_by_their_logarithms(tmp_path, decomposed):
    result = Result(tmp_path, models.classes(decomposed=decomposed))
    told = result.report["outputs"]["p"]
    assert told["log_sqnr_db"] is not None and "logarithms, by which it is judged" in result.job.stdout

    def centred(path):
        p = np.maximum(run_ort(path, result.data)[0].astype(np.float64), 1e-30)
        return np.log(p) - np.log(p).mean(-1, keepdims=True)

    float_out = centred(result.path)
    out, plain = (sqnr(float_out, centred(path), np.ones_like(float_out, bool)) for path in (result.out, result.plain))
    assert abs(told["log_sqnr_db"] - out) < 2 and out > plain + 1, (told, out, plain)
    assert abs(told["plain_log_sqnr_db"] - plain) < 2
    checked = run_tool("verify", result.path, result.out, "--calib", result.folder / "calib.npz", "--json", tmp_path / "v.json")
    assert checked.returncode == 0
    [output] = json.loads((tmp_path / "v.json").read_text())["outputs"]
    assert abs(output["log_sqnr_db"] - out) < 2


def test_what_is_no_distribution_has_no_logarithms(tmp_path):
    result = Result(tmp_path, models.classes(axis=1))
    assert result.report["outputs"]["p"]["log_sqnr_db"] is None


def test_few_held_out_rows_say_that_they_are_few(tmp_path):
    model, _ = models.long_rows(64)
    alike = model, lambda rows, seed: {"x": np.random.default_rng(seed).normal(size=(rows, 64, models.C)).astype(np.float32)}
    few = Result(tmp_path, alike, rows=32)
    assert "of 4 held-out rows" in few.report["outputs"]["y"]["caution"]
    assert "of 4 held-out rows" in few.job.stdout
    (tmp_path / "more").mkdir()
    more = Result(tmp_path / "more", alike, rows=128)
    assert more.report["outputs"]["y"]["caution"] is None
    # A float model is the original on every row.
    (tmp_path / "float").mkdir()
    in_float = Result(tmp_path / "float", alike, rows=32, options=["--format", "float"])
    assert in_float.report["outputs"]["y"]["caution"] is None


def test_of_few_long_rows_one_is_held_out(tmp_path):
    result = Result(tmp_path, models.long_rows(), rows=5)
    assert result.report["settings"]["held_out_rows"] == 1
    assert result.report["verified_on"] == "1 rows held out of calibration"
    assert "of 1 row are too few for a verdict" in result.job.stdout
    result.check("y")


# ------------------------------------------------------------------------------------------------ pools in OpenVINO


def run_openvino(path, data):
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return model({i.any_name: data[i.any_name] for i in model.inputs})[0]


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "masked"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("target", ["openvino", "portable"])
def test_the_affine_goes_through_a_pool(tmp_path, op, keepdims, target):
    result = Result(tmp_path, models.pooled(op, keepdims), options=("--target", target))
    assert [site["kind"] for site in result.report["sites"]] == ["commuted"]
    true = result.truth(result.out)
    assert true > result.truth(result.plain) + 8
    float_out, out = run_ort(result.path, result.data)[0], run_openvino(result.out, result.data)
    assert abs(sqnr(float_out, out, np.full(out.shape, True)) - true) < 0.5


def test_no_mul_stands_behind_a_pool_that_openvino_computes_wrongly(tmp_path):
    made = models.pooled("ReduceMax")
    result = Result(tmp_path, made, options=("--target", "openvino"))
    (site,) = result.report["sites"]
    assert site["sink"] is None and "which keeps no axes" in site["reason"]
    # ONNX Runtime gets the Mul, which OpenVINO's lint refuses.
    result.quantize(tmp_path / "ort.onnx")
    job = run_tool("lint", tmp_path / "ort.onnx", "--target", "openvino")
    assert job.returncode == 1 and "O6-pool" in job.stdout


# ------------------------------------------------------------------------------------------- attention and the work


def test_softmaxes_of_poolers_routers_and_classifiers_are_no_attention(tmp_path):
    result = Result(tmp_path, models.softmaxes())
    assert len(result.report["attention"]) == 1
    for path in (result.path, result.out):
        job = run_tool("inspect", path, "--json", "-")
        assert json.loads(job.stdout)["architecture"]["attentions"] == 1, path


def multiplications(made, rows=1):
    """MatMuls by hand: of weights, and of two activations."""
    model, _ = made
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    weights = [shapes[n.input[1]] for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in shapes]
    return sum(k * n for k, n in weights)


def test_the_work_of_shapes_that_only_the_engine_knows(tmp_path):
    result = Result(tmp_path, models.convolved())
    work = result.report["work"]
    [convolutions] = [f for f in work["float"] if f["what"] == "Conv"]
    assert convolutions["nodes"] == 3
    # 12 × 12, then 6 × 6 twice.
    multiplied = 144 * 8 * 27 + 36 * 8 * 72 + 36 * 4 * 72
    linear = 36 * 4 * 16
    assert work["multiplications"] == multiplied + linear
    assert convolutions["part"] == pytest.approx(multiplied / (multiplied + linear))


def test_the_share_of_the_work_is_told(tmp_path):
    made = models.filled("where")  # 16 tokens: q kᵀ and p v are 16 · 16 · 32 each
    result = Result(tmp_path, made, rows=32)
    work = result.report["work"]
    linears, products = 16 * multiplications(made), 2 * 16 * 16 * 32
    share = linears / (linears + products)
    in_float = {f["what"]: f["part"] for f in work["float"]}
    without = 1 - in_float.pop("rotations", 0)  # those are work that the float model has not
    assert work["multiplications"] * without == pytest.approx(linears + products)
    assert work["int8"] == pytest.approx(share * without)
    assert in_float == pytest.approx({"MatMul of two activations": (1 - share) * without})
    assert work["speed_at_most"] == pytest.approx(1 / (1 - work["int8"] + work["int8"] / 4))
    assert f"{100 * work['int8']:.1f} % of the multiplications in int8" in result.job.stdout
    assert "times as fast as float" in result.job.stdout
    inspected = run_tool("inspect", result.path, "--json", "-")
    assert json.loads(inspected.stdout)["work"]["int8"] == pytest.approx(share)


def test_embedding_tables_in_float_are_told(tmp_path):
    result = Result(tmp_path, models.masked_encoder("usual"), rows=32)
    assert result.report["work"]["embedding_bytes"] == 100 * models.C * 4
