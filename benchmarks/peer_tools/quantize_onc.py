#!/usr/bin/env python3
"""onnx-neural-compressor: quantize_onc.py SETTING MODEL OUT CALIB

static        its static quantizer, inputs of Linears only
smoothquant:α the same after its SmoothQuant, not folded
"""

import sys

from calibration import Reader, not_linear
from onnx_neural_compressor.quantization import QuantFormat, QuantType, config, quantize

LINEARS = ["MatMul", "Gemm"]


def main():
    setting, model, out, calib = sys.argv[1:]
    setting, _, alpha = setting.partition(":")
    options = {"OpTypesToExcludeOutputQuantization": LINEARS, "DedicatedQDQPair": True}
    if setting == "smoothquant":
        options |= {"SmoothQuant": True, "SmoothQuantAlpha": float(alpha), "SmoothQuantFolding": False}
    settings = config.StaticQuantConfig(
        Reader(model, calib, padded=True),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=LINEARS,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=not_linear(model),
        extra_options=options,
    )
    quantize(model, out, settings)


if __name__ == "__main__":
    main()
