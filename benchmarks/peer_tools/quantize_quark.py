#!/usr/bin/env python3
"""AMD Quark for ONNX: quantize_quark.py SETTING MODEL OUT CALIB

static        uint8 activations, int8 weights per channel, inputs of Linears only
smoothquant:α the same after its SmoothQuant
smoothquant+adaround:α    weights are rounded by its AdaRound (its defaults), too
"""

import sys

from calibration import Reader, not_linear
from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, SmoothQuantConfig, UInt8Spec
from quark.onnx.quantization.config.spec import CalibMethod, QuantGranularity

LINEARS = ["MatMul", "Gemm"]


def main():
    setting, model, out, calib = sys.argv[1:]
    setting, _, alpha = setting.partition(":")
    steps = {"smoothquant": lambda: SmoothQuantConfig(alpha=float(alpha)), "adaround": AdaRoundConfig}
    weights = Int8Spec(quant_granularity=QuantGranularity.Channel, calibration_method=CalibMethod.MinMax)
    settings = QConfig(
        global_config=QLayerConfig(activation=UInt8Spec(calibration_method=CalibMethod.MinMax), weight=weights),
        exclude=not_linear(model),
        algo_config=[steps[name]() for name in setting.split("+") if name in steps] or None,
        OpTypesToQuantize=LINEARS,
        OpTypesToExcludeOutputQuantization=LINEARS,
        DedicatedQDQPair=True,
    )
    ModelQuantizer(settings).quantize_model(model, out, Reader(model, calib))


if __name__ == "__main__":
    main()
