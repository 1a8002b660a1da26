"""The command line as a user meets it: options, exit status, what goes to stdout and stderr, what is left on disk.

Exit status: 0 done, 1 failed, 2 usage, 3 no Linear could be quantized.
"""

import json
import os
import re
import shutil

import numpy as np
import onnx
import pytest
from conftest import TINY, run_tool
from measure import constants, largest_relative_error, outputs
from onnx import TensorProto, helper, numpy_helper

OPTIONS = """--calib --target --format --method --weight-bits --activation-bits --include --exclude --batch --threads --seed
--no-extra-nodes --max-slowdown --keep-float --min-sqnr --report --no-layers --external-data --no-metadata --force --quiet --verbose --version --help""".split()


def float_mlp(path, channels=16, linear=True):
    """x [B, S, C] → LayerNormalization → MatMul → Relu, in floats: an input that can hold a NaN."""
    random = np.random.RandomState(0)
    arrays = {"gamma": np.ones(channels), "beta": np.zeros(channels), "w": random.standard_normal((channels, channels))}
    nodes = [helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm", axis=-1)]
    if linear:
        nodes.append(helper.make_node("MatMul", ["n", "w"], ["m"], name="linear"))
    nodes.append(helper.make_node("Relu", ["m" if linear else "n"], ["y"], name="relu"))
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", channels])  # noqa: E731
    initializers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items() if linear or n != "w"]
    graph = helper.make_graph(nodes, "mlp", [value("x")], [value("y")], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def tiny_text():
    return dict(np.load(TINY.calib))


def assert_fails(result, status, *words, out=None):
    """The exit status, an error on stderr that names every one of `words`, nothing on stdout, no panic, no OUT."""
    assert result.returncode == status, f"exit status {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "panicked" not in result.stderr and "RUST_BACKTRACE" not in result.stderr
    assert re.search(r"^error", result.stderr, re.MULTILINE), result.stderr
    for word in words:
        assert word in result.stderr, f"{word!r} is not in: {result.stderr}"
    if out is not None:
        left = [p.name for p in out.parent.iterdir() if p.name.startswith((out.name, ".tmp", "tmp"))]
        assert not out.exists() and not left, left


# --- usage ---


def test_version():
    result = run_tool("--version")
    assert result.returncode == 0 and re.fullmatch(r"onnx-osplus \d+\.\d+\.\d+\S*\n", result.stdout) and not result.stderr


def test_help_shows_every_option():
    result = run_tool("--help")
    assert result.returncode == 0 and not result.stderr
    missing = [option for option in OPTIONS if not re.search(rf"(^|[\s,]){option}\b", result.stdout)]
    assert not missing, missing
    assert re.search(r"(^|\s)-q\b", result.stdout) and re.search(r"(^|\s)-v\b", result.stdout)


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "magic"],
        ["--target", "gpu"],
        ["--format", "int3"],
        ["--weight-bits", "1"],
        ["--weight-bits", "9"],
        ["--activation-bits", "1"],
        ["--activation-bits", "sixteen"],
        ["--batch", "0"],
        ["--include", "("],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_option_is_a_usage_error(tmp_path, options):
    out = tmp_path / "out.onnx"
    assert_fails(run_tool(TINY.model, out, "--calib", TINY.calib, *options), 2, options[0], out=out)


# What each option may be, they cannot mean together.
CONTRADICTIONS = [
    "--reduce-range --target tensorrt".split(),
    *(f"--format qoperator --target {target}".split() for target in ("tensorrt", "openvino", "portable")),
    "--keep-float 2 --format float".split(),
    "--min-sqnr 20 --format float".split(),
    "--attention int8 --format float".split(),
    "--weights-as-float-qdq --format float".split(),
    "--weights-as-float-qdq --format qoperator".split(),
    "--min-sqnr nan".split(),
    "--min-sqnr inf".split(),
]


@pytest.mark.parametrize("options", CONTRADICTIONS, ids=" ".join)
def test_contradictions_are_usage_errors_before_any_work(tmp_path, options):
    """Neither IN nor the data exists, nor the folder of the report: none of it is looked at."""
    out, missing = tmp_path / "out.onnx", tmp_path / "missing"
    files = [missing / "in.onnx", out, "--calib", missing / "calib.npz", "--report", missing / "report.json"]
    flags = [option for option in options if option.startswith("--")]
    assert_fails(run_tool(*files, *options), 2, *flags, out=out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["in.onnx"], ["in.onnx", "out.onnx"]], ids=["nothing", "no OUT", "no --calib"])
def test_missing_argument_is_a_usage_error(tmp_path, arguments):
    assert_fails(run_tool(*arguments, cwd=tmp_path), 2)
    assert not list(tmp_path.iterdir())


# --- what a run says ---


def test_summary(job):
    """The closing summary names what was found and what it did to the outputs."""
    run = job(TINY)
    for word in ("site", "Linear", "quantized", "SQNR", "dB", "plain", "MB", "last_hidden_state", "token_type_ids"):
        assert word.lower() in (run.stdout + run.stderr).lower(), word
    assert "last_hidden_state" in run.stdout
    assert "\x1b" not in run.stdout + run.stderr and "\r" not in run.stdout + run.stderr, "not a terminal"


def test_quiet(tmp_path):
    result = run_tool(TINY.model, tmp_path / "out.onnx", "--calib", TINY.calib, "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_verbose_says_more(job):
    normal, verbose = job(TINY), job(TINY, "-v")
    assert len((verbose.stdout + verbose.stderr).splitlines()) > len((normal.stdout + normal.stderr).splitlines())
    assert verbose.path.read_bytes() == normal.path.read_bytes()


def test_writes_nothing_else(tmp_path):
    result = run_tool(TINY.model, "out.onnx", "--calib", TINY.calib, cwd=tmp_path)
    assert result.returncode == 0 and [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").stat().st_mode & 0o777 == (0o666 & ~current_umask())


def current_umask():
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# --- OUT ---


def test_in_is_never_overwritten(tmp_path):
    model = tmp_path / "model.onnx"
    shutil.copyfile(TINY.model, model)
    (tmp_path / "link.onnx").symlink_to(model)
    for out in (model, tmp_path / "." / "model.onnx", tmp_path / "link.onnx"):
        for force in ([], ["--force"]):
            result = run_tool(model, out, "--calib", TINY.calib, *force)
            assert result.returncode in (1, 2) and "model.onnx" in result.stderr, result.stderr
    assert model.read_bytes() == TINY.model.read_bytes()


def test_existing_out_needs_force(job, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    result = run_tool(TINY.model, out, "--calib", TINY.calib)
    assert_fails(result, 1, str(out), "--force")
    assert out.read_text() == "precious"
    assert run_tool(TINY.model, out, "--calib", TINY.calib, "--force").returncode == 0
    assert out.read_bytes() == job(TINY).path.read_bytes()


def test_out_in_a_missing_folder(tmp_path):
    out = tmp_path / "nowhere" / "out.onnx"
    result = run_tool(TINY.model, out, "--calib", TINY.calib)
    assert_fails(result, 1, "nowhere")
    assert not out.parent.exists()


# --- IN ---


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999], ids=str)
def test_truncated_model(tmp_path, keep):
    data = TINY.model.read_bytes()
    model, out = tmp_path / "cut.onnx", tmp_path / "out.onnx"
    model.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert_fails(run_tool(model, out, "--calib", TINY.calib), 1, "cut.onnx", out=out)


def test_not_a_model(tmp_path):
    model, out = tmp_path / "text.onnx", tmp_path / "out.onnx"
    model.write_text("This is no protobuf.\n" * 50)
    assert_fails(run_tool(model, out, "--calib", TINY.calib), 1, "text.onnx", out=out)


def test_missing_model(tmp_path):
    out = tmp_path / "out.onnx"
    assert_fails(run_tool(tmp_path / "none.onnx", out, "--calib", TINY.calib), 1, "none.onnx", out=out)


def test_weight_shorter_than_its_shape(tmp_path):
    model, path, out = onnx.load(TINY.model), tmp_path / "short.onnx", tmp_path / "out.onnx"
    tensor = next(t for t in model.graph.initializer if t.name == "encoder.layer.0.attention.self.query.weight_t")
    tensor.raw_data = tensor.raw_data[:-4]
    path.write_bytes(model.SerializeToString())
    assert_fails(run_tool(path, out, "--calib", TINY.calib), 1, tensor.name, out=out)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.0.attention.self.query.weight_t",
        "encoder.layer.0.attention.self.query.bias",
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
    ],
)
def test_nan_in_a_constant(tmp_path, name, bad):
    model, path, out = onnx.load(TINY.model), tmp_path / "nan.onnx", tmp_path / "out.onnx"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[5] = bad
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path.write_bytes(model.SerializeToString())
    assert_fails(run_tool(path, out, "--calib", TINY.calib), 1, name, "element 5", out=out)


def test_unsorted_nodes(tmp_path):
    model, path, out = onnx.load(TINY.model), tmp_path / "unsorted.onnx", tmp_path / "out.onnx"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    path.write_bytes(model.SerializeToString())
    assert_fails(run_tool(path, out, "--calib", TINY.calib), 1, "nothing before it defines", out=out)


def test_external_weights(job, tmp_path):
    """A model whose weights lie in a second file gives the same function."""
    path, out = tmp_path / "external.onnx", tmp_path / "out.onnx"
    onnx.save_model(onnx.load(TINY.model), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    result = run_tool(path, out, "--calib", TINY.calib)
    assert result.returncode == 0, result.stderr
    feeds = TINY.load_heldout()
    assert np.array_equal(outputs(job(TINY).path, feeds)[TINY.output], outputs(out, feeds)[TINY.output])


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_external_weights_outside_the_folder(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    path, out = folder / "model.onnx", folder / "out.onnx"
    onnx.save_model(onnx.load(TINY.model), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    shutil.copyfile(folder / "weights.bin", tmp_path / "outside.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    assert_fails(run_tool(path, out, "--calib", TINY.calib), 1, location, out=out)


def test_missing_external_weights(tmp_path):
    path, out = tmp_path / "external.onnx", tmp_path / "out.onnx"
    onnx.save_model(onnx.load(TINY.model), path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    (tmp_path / "weights.bin").unlink()
    assert_fails(run_tool(path, out, "--calib", TINY.calib), 1, "weights.bin", out=out)


def test_nothing_to_quantize(tmp_path):
    model, out = float_mlp(tmp_path / "model.onnx", linear=False), tmp_path / "out.onnx"
    np.save(tmp_path / "x.npy", np.ones((4, 3, 16), np.float32))
    assert_fails(run_tool(model, out, "--calib", tmp_path / "x.npy"), 3, out=out)


def test_everything_excluded(tmp_path):
    out = tmp_path / "out.onnx"
    assert_fails(run_tool(TINY.model, out, "--calib", TINY.calib, "--exclude", "."), 3, out=out)


# --- calibration data ---


def save(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda ids: ids.astype(np.float32) + 0.5, ["input_ids"]),  # floats that are no integers
        (lambda ids: ids[0], ["input_ids", "32"]),  # rank 1
        (lambda ids: ids[None], ["input_ids", "32"]),  # rank 3
        (lambda ids: ids[:0], ["input_ids"]),  # no rows
        (lambda ids: ids + 100_000, []),  # no such token
    ],
    ids=["dtype", "rank 1", "rank 3", "empty", "token id"],
)
def test_wrong_ids(tmp_path, tiny_text, change, words):
    out, ids = tmp_path / "out.onnx", save(tmp_path / "ids.npy", change(tiny_text["input_ids"]))
    assert_fails(run_tool(TINY.model, out, "--calib", f"input_ids={ids}"), 1, *words, out=out)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_value_that_is_not_finite(tmp_path, value):
    model, out = float_mlp(tmp_path / "model.onnx"), tmp_path / "out.onnx"
    x = np.random.RandomState(1).standard_normal((4, 3, 16)).astype(np.float32)
    x[2, 1, 5] = value
    assert_fails(run_tool(model, out, "--calib", save(tmp_path / "x.npy", x)), 1, "x", out=out)


def test_missing_input_lists_what_is_wanted(tmp_path, tiny_text):
    out, calib = tmp_path / "out.onnx", tmp_path / "mask.npz"
    np.savez(calib, attention_mask=tiny_text["attention_mask"])
    result = run_tool(TINY.model, out, "--calib", calib)
    assert_fails(result, 1, "input_ids", "attention_mask", "token_type_ids", "int64", "batch", "sequence", out=out)


def test_array_without_an_input(tmp_path, tiny_text):
    """A misspelt name would otherwise be filled in without a word."""
    out, calib = tmp_path / "out.onnx", tmp_path / "calib.npz"
    np.savez(calib, input_ids=tiny_text["input_ids"], attention_masks=tiny_text["attention_mask"])
    assert_fails(run_tool(TINY.model, out, "--calib", calib), 1, "attention_masks", out=out)


def test_rows_that_do_not_agree(tmp_path, tiny_text):
    out, calib = tmp_path / "out.onnx", tmp_path / "calib.npz"
    np.savez(calib, input_ids=tiny_text["input_ids"], attention_mask=tiny_text["attention_mask"][:-1])
    assert_fails(run_tool(TINY.model, out, "--calib", calib), 1, "attention_mask", out=out)


@pytest.mark.parametrize("name", ["none.npy", "none.npz"])
def test_missing_calibration_file(tmp_path, name):
    out = tmp_path / "out.onnx"
    assert_fails(run_tool(TINY.model, out, "--calib", tmp_path / name), 1, name, out=out)


def test_calibration_file_that_is_cut(tmp_path):
    out, calib = tmp_path / "out.onnx", tmp_path / "cut.npz"
    calib.write_bytes(TINY.calib.read_bytes()[:5000])
    assert_fails(run_tool(TINY.model, out, "--calib", calib), 1, "cut.npz", out=out)


def test_forms_of_calibration_data_are_one(job, tmp_path, tiny_text):
    """The same rows as .npz, as NAME=file.npy, in narrower integers, in a folder, as test data: the same bytes, but for
    the digest of the data."""
    expected = job(TINY, "--no-metadata").path.read_bytes()
    ids, mask = tiny_text["input_ids"], tiny_text["attention_mask"]
    ids_file, mask_file = save(tmp_path / "ids.npy", ids), save(tmp_path / "mask.npy", mask)
    np.savez(tmp_path / "narrow.npz", input_ids=ids.astype(np.int16), attention_mask=mask.astype(np.uint8))
    np.savez_compressed(tmp_path / "all.npz", input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    test_data = tmp_path / "test_data_set_0"
    test_data.mkdir()
    for number, (name, array) in enumerate(dict(input_ids=ids, attention_mask=mask, token_type_ids=0 * ids).items()):
        (test_data / f"input_{number}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    forms = {
        "NAME=file": ["--calib", f"input_ids={ids_file}", "--calib", f"attention_mask={mask_file}"],
        "narrow": ["--calib", tmp_path / "narrow.npz"],
        "compressed, all inputs": ["--calib", tmp_path / "all.npz"],
        "test data": ["--calib", test_data],
    }
    for form, options in forms.items():
        out = tmp_path / "out.onnx"
        result = run_tool(TINY.model, out, *options, "--force", "--no-metadata")
        assert result.returncode == 0, f"{form}: {result.stderr}"
        assert out.read_bytes() == expected, form


def test_folder_with_several_shapes(tmp_path, tiny_text):
    folder, out = tmp_path / "batches", tmp_path / "out.onnx"
    folder.mkdir()
    for number, length in enumerate((32, 20, 9)):
        part = slice(8 * number, 8 * number + 8)
        np.savez(folder / f"{number}.npz", **{name: array[part, :length] for name, array in tiny_text.items()})
    result = run_tool(TINY.model, out, "--calib", folder)
    assert result.returncode == 0, result.stderr
    onnx.checker.check_model(str(out), full_check=True)


def test_padding_is_never_seen(job, tmp_path, tiny_text):
    """Other ids under the padding change no byte of the result."""
    ids, mask = tiny_text["input_ids"], tiny_text["attention_mask"]
    assert (mask == 0).sum() > 100
    np.savez(tmp_path / "calib.npz", input_ids=np.where(mask == 1, ids, 17), attention_mask=mask)
    out = tmp_path / "out.onnx"
    assert run_tool(TINY.model, out, "--calib", tmp_path / "calib.npz", "--no-metadata").returncode == 0
    assert out.read_bytes() == job(TINY, "--no-metadata").path.read_bytes()


def test_filled_inputs_are_reported(job, tmp_path, tiny_text):
    ids = save(tmp_path / "ids.npy", tiny_text["input_ids"])
    result = run_tool(TINY.model, tmp_path / "out.onnx", "--calib", ids)
    assert result.returncode == 0, result.stderr
    for name in ("attention_mask", "token_type_ids"):
        assert name in result.stdout + result.stderr


# --- options ---


def test_exclude_keeps_linears_in_float(tmp_path):
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    result = run_tool(TINY.model, out, "--calib", TINY.calib, "--exclude", r"layer\.0/.*dense", "--no-layers", "--report", report)
    assert result.returncode == 0, result.stderr
    linears = json.loads(report.read_text())["linears"]
    skipped = {entry["name"] for entry in linears if entry["status"] == "skipped"}
    layer = "/encoder/layer.0"
    dense = [f"{layer}/attention/output/dense", f"{layer}/intermediate/dense", f"{layer}/output/dense"]
    assert skipped == {f"{path}/MatMul" for path in dense}
    assert all(entry["reason"] for entry in linears if entry["status"] == "skipped")
    model = onnx.load(out)
    weights = [array for array in constants(model).values() if array.ndim == 2 and array.dtype == np.int8]
    assert len(weights) == 12 - 3


def test_include_quantizes_nothing_else(tmp_path):
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    result = run_tool(TINY.model, out, "--calib", TINY.calib, "--include", "query|key|value", "--no-layers", "--report", report)
    assert result.returncode == 0, result.stderr
    linears = json.loads(report.read_text())["linears"]
    assert sum(entry["status"] == "quantized" for entry in linears) == 6


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_weight_bits(job, bits):
    model = job(TINY, "--weight-bits", bits).model()
    weights = [a for a in constants(model).values() if a.ndim == 2 and a.dtype == np.int8]
    largest = 2 ** (bits - 1) - 1
    assert len(weights) == 12 and all(np.abs(w.astype(int)).max() == largest for w in weights)


def test_fewer_activation_bits_give_coarser_scales(job):
    def scales(run):
        consts = constants(run.model())
        return [float(consts[n.input[1]]) for n in run.model().graph.node if n.op_type == "QuantizeLinear"]

    eight, four = (scales(job(TINY, "--method", "none", "--activation-bits", bits)) for bits in (8, 4))
    assert len(eight) == len(four) and np.allclose(np.array(four) / eight, 255 / 15, rtol=1e-5)


@pytest.mark.parametrize("method", ["smoothquant", "none"])
def test_methods_share_the_placement(job, method):
    ours, theirs = job(TINY), job(TINY, "--method", method)
    names = [[entry["name"] for entry in run.report["linears"] if entry["status"] == "quantized"] for run in (ours, theirs)]
    assert names[0] == names[1] and len(names[0]) == 12
    if method == "none":
        assert ours.report["outputs"][TINY.output]["plain_sqnr_db"] == pytest.approx(
            theirs.report["outputs"][TINY.output]["sqnr_db"], abs=0.05
        )


def test_external_data(job, tmp_path):
    out = tmp_path / "out.onnx"
    result = run_tool(TINY.model, out, "--calib", TINY.calib, "--external-data")
    assert result.returncode == 0, result.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"out.onnx", "out.onnx.data"}
    assert out.stat().st_size < 100_000
    onnx.checker.check_model(str(out), full_check=True)
    feeds = TINY.load_heldout()
    assert np.array_equal(outputs(job(TINY).path, feeds)[TINY.output], outputs(out, feeds)[TINY.output])


def test_batch_size_changes_no_range(job):
    """Another grouping of the same rows sees the same tokens."""
    one, many = ({site["value"]: site["range_before"] for site in job(TINY, "--batch", n).report["sites"]} for n in (1, 32))
    assert one and one.keys() == many.keys()
    assert all(np.allclose(one[value], many[value], rtol=1e-5) for value in one)


def test_site_that_is_a_graph_output(tmp_path):
    """A value that the caller reads is never changed."""
    model, path, out = onnx.load(TINY.model), tmp_path / "model.onnx", tmp_path / "out.onnx"
    value = "/encoder/layer.0/output/LayerNorm/LayerNormalization_output_0"
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", "sequence", 64]))
    onnx.save(model, path)
    result = run_tool(path, out, "--calib", TINY.calib, "--format", "float")
    assert result.returncode == 0, result.stderr
    feeds = TINY.load_heldout()
    expected, got = outputs(path, feeds), outputs(out, feeds)
    assert list(expected) == list(got) and all(largest_relative_error(expected[n], got[n]) <= 1e-5 for n in expected)
