import sys, json, onnx, onnxsim, tempfile
from calibration import rows
setting, model, out, calib = sys.argv[1:5]
extra = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
from onnxsim.quark_smoothquant import smooth_quant
f = {"sq": onnxsim.apply_smoothquant, "qsq": smooth_quant, "osp": onnxsim.apply_outlier_suppression_plus}[setting]
m = f(onnx.load(model), rows(model, calib), alpha=extra.pop("alpha", 0.5))
onnx.save(m, out + ".f")
import ort
sys.argv[1:] = ["static", out + ".f", out, calib, json.dumps(extra)]
ort.main()
