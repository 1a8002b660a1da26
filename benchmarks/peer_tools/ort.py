#!/usr/bin/env python3
"""onnxruntime's own quantizers: ort.py SETTING MODEL OUT CALIB

Settings: `dynamic`; `default`, what quantize_static does to MatMul and Gemm when only weights are set per channel;
"""
import sys, json
import tempfile
from pathlib import Path

from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from calibration import Reader

def main():
    setting, model, out, calib = sys.argv[1:5]
    extra = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {}
    ops = ["MatMul", "Gemm"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        if extra.pop("pre", True):
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
        else: prepared = model
        if setting == "dynamic":
            quantize_dynamic(prepared, out, op_types_to_quantize=ops, per_channel=True, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True})
            return
        act = QuantType.QInt8 if extra.get("ActivationSymmetric") else QuantType.QUInt8
        method = getattr(CalibrationMethod, extra.pop("method", "MinMax"))
        import onnx; m=onnx.load(prepared); ini={i.name for i in m.graph.initializer}; excl=[n.name for n in m.graph.node if n.op_type=='MatMul' and n.input[1] not in ini] if extra.pop('excl',False) else []
        quantize_static(prepared, out, Reader(str(prepared), calib), QuantFormat.QDQ, op_types_to_quantize=ops, per_channel=True, activation_type=act, weight_type=QuantType.QInt8, calibrate_method=method, nodes_to_exclude=excl, extra_options=extra)

if __name__ == "__main__":
    main()
