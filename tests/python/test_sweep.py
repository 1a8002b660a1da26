"""benchmarks/peer_tools/sweep.py gives a rival the α that is best on calibration rows it was not given."""

import sys

import numpy as np
import onnx
import pytest
from conftest import ROOT, TINY
from measure import constants
from onnx import numpy_helper

sys.path.append(str(ROOT / "benchmarks" / "peer_tools"))

import sweep  # noqa: E402  (needs the path above)

# A tool whose result is the better the nearer α is to the one that this file's name ends with, and which needs every
# column of the data. It writes beside the model how many rows it was given.
TOOL = """
import sys
import numpy as np, onnx
from onnx import numpy_helper
setting, model, out, calib = sys.argv[1:]
name, alpha = setting.split(":")
if float(alpha) in {fails}:
    sys.exit("this α fails")
graph = onnx.load(model)
weight = next(i for i in graph.graph.initializer if i.name.endswith("weight_t"))
array = numpy_helper.to_array(weight)
weight.CopyFrom(numpy_helper.from_array(array * np.float32(1 + abs(float(alpha) - {best})), weight.name))
graph.doc_string = f"{{name}} {{len(np.load(calib)['input_ids'])}}"
onnx.save(graph, out)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(best, fails) sweeps three α and returns the path of the result."""

    def sweep_tool(best, fails):
        script, out = tmp_path / "tool.py", tmp_path / "out.onnx"
        script.write_text(TOOL.format(best=best, fails=fails))
        monkeypatch.setattr(sweep, "ALPHAS", ("0.50", "0.80", "0.95"))
        monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, (script, "name", TINY.model, out, TINY.calib))])
        sweep.main()
        return out

    return sweep_tool


@pytest.mark.parametrize(("best", "fails", "chosen"), [(0.79, [], "0.80"), (0.52, [0.5], "0.80")])
def test_the_best_alpha_on_other_rows_is_taken_and_then_all_rows(run, capsys, best, fails, chosen):
    out = run(best, fails)
    assert capsys.readouterr().out.split("\n")[-2] == f"alpha {chosen}"
    model = onnx.load(out)
    assert model.doc_string == f"name {len(np.load(TINY.calib)['input_ids'])}"
    weight = next(i for i in onnx.load(TINY.model).graph.initializer if i.name.endswith("weight_t"))
    factor = 1 + abs(float(chosen) - best)
    assert np.allclose(constants(model)[weight.name], numpy_helper.to_array(weight) * np.float32(factor), rtol=1e-6)


def test_a_sweep_where_every_alpha_fails_says_what_the_tool_said(run):
    with pytest.raises(SystemExit, match="this α fails"):
        run(0.8, [0.5, 0.8, 0.95])
