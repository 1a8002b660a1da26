#!/usr/bin/env python3
"""NVIDIA ModelOpt for ONNX: quantize_modelopt.py SETTING MODEL OUT CALIB

max      int8 by the largest magnitude, zero point 0, inputs of Linears only
entropy  its default: ranges by the entropy of histograms
"""

import sys

from calibration import Reader, not_linear
from modelopt.onnx.quantization import quantize


def main():
    setting, model, out, calib = sys.argv[1:]
    quantize(
        model,
        calibration_method=setting,
        calibration_data_reader=Reader(model, calib),
        calibration_eps=["cpu"],
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=not_linear(model),
        high_precision_dtype="fp32",
        output_path=out,
        log_level="ERROR",
    )


if __name__ == "__main__":
    main()
