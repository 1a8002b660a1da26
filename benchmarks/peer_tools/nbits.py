"""ONNX Runtime's own quantizer of weights in groups: MatMulNBits of 4 bits in groups of 32, accuracy level 4.

It needs the package onnx_ir, HQQ PyTorch as well; without them `quantize` raises ImportError.
"""

import logging

import numpy as np

FORMS = ("default", "symmetric", "k-quant", "HQQ", "GPTQ")


class Rows:
    """The rows that calibrate, eight at a time, as GPTQ reads them."""

    def __init__(self, path, inputs):
        self.arrays = dict(np.load(path))
        self.arrays["token_type_ids"] = np.zeros_like(self.arrays["input_ids"])
        self.inputs = inputs

    def __iter__(self):
        for start in range(0, len(self.arrays["input_ids"]), 8):
            yield {name: self.arrays[name][start : start + 8] for name in self.inputs}


def quantize(model, out, form, calib):
    """Writes `model` in one of FORMS; `calib` is the .npz of the rows for GPTQ."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    logging.getLogger(nbits.__name__).setLevel(logging.WARNING)
    symmetric, loaded = form == "symmetric", nbits.onnx.load(str(model))
    if form == "k-quant":
        config = nbits.KQuantWeightOnlyQuantConfig()
    elif form == "GPTQ":
        config = nbits.GPTQWeightOnlyQuantConfig(Rows(calib, [i.name for i in loaded.graph.input]))
    elif form == "HQQ":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4)
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, accuracy_level=4)
    quantizer = nbits.MatMulNBitsQuantizer(
        loaded, block_size=32, is_symmetric=symmetric, accuracy_level=4, algo_config=config
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)
