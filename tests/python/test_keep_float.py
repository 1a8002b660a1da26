"""Linears left in float: those that hurt, as many as allowed or needed, and what was said about them is true."""

import measure
import onnx
import pytest
from conftest import TINY, TINY_DECOMPOSED, run_tool


def kept(job):
    return job.report["kept_float"]


def quantized(job):
    """Linears that read an int8 weight, by the report."""
    return {l["name"] for l in job.report["linears"] if l["status"] == "quantized"}


def float_matmuls(path):
    """Names of MatMuls and Gemms whose weight is a float constant."""
    model = onnx.load(path)
    floats = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) == 2}
    found = {n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in floats}
    return found - set(measure.rotation_products(model))


@pytest.mark.parametrize("case", [TINY, TINY_DECOMPOSED], ids=lambda c: c.name)
def test_a_number_of_linears(job, case):
    few = job(case, "--keep-float", "3")
    names = [l["name"] for l in kept(few)["linears"]]
    assert len(names) == 3 and len(quantized(few)) == case.linears - 3
    assert float_matmuls(few.path) == set(names)
    before, after = kept(few)["sqnr_before_db"], kept(few)["sqnr_after_db"]
    assert after > before
    # On text that the tool has never seen.
    assert measure.heldout_sqnr(case, few.path) > measure.heldout_sqnr(case, job(case).path)


def test_the_first_choice_is_one_that_hurts(job):
    """What the tool calls the worst Linear is worse than the least by ONNX Runtime's measure too."""
    sensitivity = kept(job(TINY, "--keep-float", "3"))["sensitivity"]
    assert len(sensitivity) == TINY.linears
    assert sum(l["error"] for l in sensitivity) == pytest.approx(1)
    assert [l["error"] for l in sensitivity] == sorted((l["error"] for l in sensitivity), reverse=True)
    only = lambda name: job(TINY, "--include", f"^{name}$")  # noqa: E731
    worst, least = (only(sensitivity[i]["name"]) for i in (0, -1))
    assert measure.heldout_sqnr(TINY, worst.path) < measure.heldout_sqnr(TINY, least.path) - 3


def test_a_part_of_the_work(job):
    part = job(TINY, "--keep-float", "25%")
    work = {l["name"]: l["k"] * l["n"] for l in part.report["linears"]}
    in_float = [l["name"] for l in kept(part)["linears"]]
    assert in_float
    assert sum(work[name] for name in in_float) <= 0.25 * sum(work.values())
    assert kept(part)["work"] == pytest.approx(sum(work[name] for name in in_float) / sum(work.values()))


def test_as_few_as_the_sqnr_needs(job):
    plain = next(iter(job(TINY).report["outputs"].values()))["sqnr_db"]
    wanted = plain + 3
    goal = job(TINY, "--min-sqnr", f"{wanted:.2f}")
    assert next(iter(goal.report["outputs"].values()))["sqnr_db"] >= wanted
    n = len(kept(goal)["linears"])
    assert 0 < n < TINY.linears
    # One fewer is not enough.
    if n > 1:
        fewer = run_tool(TINY.model, goal.path.parent / "fewer.onnx", "--calib", TINY.calib,
                         "--min-sqnr", f"{wanted:.2f}", "--keep-float", n - 1)  # fmt: skip
        assert fewer.returncode == 1


def test_what_is_reached_already_changes_nothing(job):
    assert job(TINY, "--min-sqnr", "5", "--no-metadata").path.read_bytes() == job(TINY, "--no-metadata").path.read_bytes()
    assert job(TINY, "--min-sqnr", "5").report["kept_float"] is None


def test_plain_min_max_too(job):
    few = job(TINY, "--method", "none", "--keep-float", "2")
    assert len(kept(few)["linears"]) == 2
    assert kept(few)["sqnr_after_db"] > kept(few)["sqnr_before_db"]


def test_what_cannot_be_reached_fails_and_writes_nothing(tmp_path):
    out = tmp_path / "out.onnx"
    result = run_tool(TINY.model, out, "--calib", TINY.calib, "--min-sqnr", "500")
    assert result.returncode == 1 and not out.exists()
    assert "--min-sqnr" in result.stderr and "500" in result.stderr


@pytest.mark.parametrize("value", ["x", "-1", "120%", "1.5"])
def test_wrong_budgets(tmp_path, value):
    result = run_tool(TINY.model, tmp_path / "out.onnx", "--calib", TINY.calib, f"--keep-float={value}")
    assert result.returncode == 2 and "--keep-float" in result.stderr


def test_nothing_to_keep_with_the_float_format(tmp_path):
    result = run_tool(TINY.model, tmp_path / "o.onnx", "--calib", TINY.calib, "--format", "float", "--keep-float", "1")
    assert result.returncode == 2 and "--keep-float" in result.stderr
