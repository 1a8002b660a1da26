"""ONNX Runtime's own quantizer of weights in groups: MatMulNBits of 4 bits in groups of 32, accuracy level 4.

It needs the package onnx_ir, HQQ PyTorch as well; without them `quantize` raises ImportError.
"""

import logging

import calibration

FORMS = ("default", "symmetric", "k-quant", "HQQ", "GPTQ")


def quantize(model, out, form, calib):
    """Writes `model` in one of FORMS; `calib` is the .npz of the rows for GPTQ."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    logging.getLogger(nbits.__name__).setLevel(logging.WARNING)
    symmetric, loaded = form == "symmetric", nbits.onnx.load(str(model))
    if form == "k-quant":
        config = nbits.KQuantWeightOnlyQuantConfig()
    elif form == "GPTQ":
        config = nbits.GPTQWeightOnlyQuantConfig(calibration.Reader(model, calib, padded=True))
    elif form == "HQQ":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4)
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, accuracy_level=4)
    quantizer = nbits.MatMulNBitsQuantizer(
        loaded, block_size=32, is_symmetric=symmetric, accuracy_level=4, algo_config=config
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)
