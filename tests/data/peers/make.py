"""Makes the files beside it: the model of tests/python/block_forms.py as ONNX Runtime's weight-only quantizers write it.

    python tests/data/peers/make.py

Needs onnxruntime 1.31, onnx 1.20 and onnx_ir, which that quantizer imports; the tests need the files alone. HQQ would need torch,
and k-quant fails on widths that are no multiple of its group.
"""

import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent.parent / "python"))
from block_forms import float_model  # noqa: E402

WAYS = {
    "default": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4),
    "default_asymmetric_8": nbits.DefaultWeightOnlyQuantConfig(block_size=64, is_symmetric=False, bits=8, accuracy_level=4),
    "default_qdq": nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, quant_format=QuantFormat.QDQ),
    "default_table": nbits.DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, op_types_to_quantize=("MatMul", "Gather"), quant_axes=(("MatMul", 0), ("Gather", 1))
    ),
    "rtn": nbits.RTNWeightOnlyQuantConfig(),
}


def main():
    for name, config in WAYS.items():
        quantizer = nbits.MatMulNBitsQuantizer(float_model(), block_size=32, is_symmetric=True, algo_config=config)
        quantizer.process()
        onnx.save(quantizer.model.model, HERE / f"{name}.onnx")


if __name__ == "__main__":
    main()
