#!/usr/bin/env python3
"""onnxsim's migrations, then ONNX Runtime's static quantizer at its best setting: quantize_onnxsim.py SETTING MODEL OUT CALIB

smoothquant:α           its SmoothQuant of Quark's flow; the pass of the same name migrates 2-D activations only
smoothquant-symmetric:α the same, then int8 activations with zero point 0
simplify                shapes and constants folded, nothing migrated
auto                    its own search for a scheme, with the calibration rows and its budget (a relative error of 0.02)
osplus                  its Outlier Suppression+, α = 0.5 (2-D activations only: a Linear on [batch, tokens, channels] stays)
"""

import sys
import tempfile
from pathlib import Path

import onnx
import onnxsim
import quantize_ort
from calibration import batches
from onnxsim.quark_smoothquant import smooth_quant


def main():
    setting, model, out, calib = sys.argv[1:]
    setting, _, alpha = setting.partition(":")
    rows, original = batches(model, calib), onnx.load(model)
    if setting == "auto":
        return onnx.save(onnxsim.quantize_auto(original, calibration_data=rows), out)
    if setting == "osplus":
        migrated = onnxsim.apply_outlier_suppression_plus(original, rows, alpha=0.5)
    elif setting == "simplify":
        migrated, _ = onnxsim.simplify(original)
    else:
        migrated = smooth_quant(original, rows, alpha=float(alpha))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "migrated.onnx")
        onnx.save(migrated, path)
        quantize_ort.static("symmetric" if setting.endswith("symmetric") else "best", path, out, calib)


if __name__ == "__main__":
    main()
