import sys, json, onnx, nncf, time
from calibration import rows
setting, model, out, calib = sys.argv[1:5]
extra = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
adv = nncf.AdvancedQuantizationParameters(**({} if "alpha" not in extra else {"smooth_quant_alphas": nncf.AdvancedSmoothQuantParameters(matmul=extra["alpha"])}))
m = onnx.load(model)
kw = {}
if extra.get("scope"): kw["ignored_scope"] = nncf.IgnoredScope(types=["Add","Mul","Sub","Div"], validate=False)
if extra.get("preset"): kw["preset"]=getattr(nncf.QuantizationPreset, extra["preset"])
q = nncf.quantize(m, nncf.Dataset(rows(model, calib)), model_type=nncf.ModelType.TRANSFORMER if setting=="transformer" else None, subset_size=64, fast_bias_correction=extra.get("fbc",True), advanced_parameters=adv, **kw)
onnx.save(q, out)
