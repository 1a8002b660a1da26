#!/usr/bin/env python3
"""NNCF: quantize_nncf.py SETTING MODEL OUT CALIB

transformer      the preset for transformers: SmoothQuant with α = 0.95 and fast bias correction
transformer:α    the same with another α
no-smoothquant   the same without SmoothQuant
"""

import sys

import nncf
import onnx
from calibration import batches


def main():
    setting, model, out, calib = sys.argv[1:]
    setting, _, alpha = setting.partition(":")
    rows = batches(model, calib)
    advanced = nncf.AdvancedQuantizationParameters()
    if setting == "no-smoothquant":
        advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    if alpha:
        advanced.smooth_quant_alphas = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=float(alpha))
    quantized = nncf.quantize(
        onnx.load(model),
        nncf.Dataset(rows),
        subset_size=len(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=advanced,
    )
    onnx.save(quantized, out)


if __name__ == "__main__":
    main()
