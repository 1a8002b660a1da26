#!/usr/bin/env python3
"""onnxruntime's own quantizers: quantize_ort.py SETTING MODEL OUT CALIB

default      quantize_static as it is, for MatMul and Gemm: outputs and attention are quantized too
best         inputs of Linears only, a Q/DQ pair per reader, so that the residual reads the float value
symmetric    the same with int8 activations, zero point 0
smoothquant:α     best after neural-compressor's SmoothQuant, not folded (folding fails on a shared norm)
dynamic      quantize_dynamic: scales at run time
"""

import sys

from calibration import Reader, not_linear
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

LINEARS = ["MatMul", "Gemm"]
INPUTS_ONLY = {"OpTypesToExcludeOutputQuantization": LINEARS, "DedicatedQDQPair": True}
SMOOTH = {"SmoothQuant": True, "SmoothQuantFolding": False}
SETTINGS = {
    "default": {},
    "best": INPUTS_ONLY,
    "symmetric": INPUTS_ONLY | {"ActivationSymmetric": True},
    "smoothquant": INPUTS_ONLY | SMOOTH,
}


def static(setting, model, out, calib):
    setting, _, alpha = setting.partition(":")
    options = SETTINGS[setting] | ({"SmoothQuantAlpha": float(alpha)} if alpha else {})
    activations = QuantType.QInt8 if "ActivationSymmetric" in options else QuantType.QUInt8
    quantize_static(
        model,
        out,
        Reader(model, calib, padded="SmoothQuant" in options),
        QuantFormat.QDQ,
        op_types_to_quantize=LINEARS,
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=not_linear(model) if options else None,
        extra_options=options,
    )


def main():
    setting, model, out, calib = sys.argv[1:]
    if setting == "dynamic":
        options = {"MatMulConstBOnly": True}
        quantize_dynamic(model, out, LINEARS, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    else:
        static(setting, model, out, calib)


if __name__ == "__main__":
    main()
