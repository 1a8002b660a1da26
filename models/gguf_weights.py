"""Tensors of a GGUF file as float32 arrays. Needs NumPy.

    Q4_1    32 weights in 20 bytes: f16 d, f16 m, 16 bytes of nibbles; w = d q + m, low nibbles are the first 16
    Q8_0    32 weights in 34 bytes: f16 d, 32 × i8;                    w = d q
"""

from pathlib import Path

import numpy as np
from gguf_file import GgufError, read_header

F32, F16, Q4_1, Q8_0 = 0, 1, 3, 8
BLOCK = 32
BLOCK_BYTES = {Q4_1: 20, Q8_0: 34}


def dequantize_q4_1(blocks):
    """u8 [blocks, 20] → f32 [blocks, 32]"""
    scale, offset = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * nibbles.astype(np.float32) + offset


def dequantize_q8_0(blocks):
    """u8 [blocks, 34] → f32 [blocks, 32]"""
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return scale * blocks[:, 2:].view(np.int8).astype(np.float32)


DEQUANTIZE = {Q4_1: dequantize_q4_1, Q8_0: dequantize_q8_0}


def read_tensor(data, name, tensor):
    """The array of one tensor; data: the file as u8 [bytes]."""
    count = int(np.prod(tensor.shape))
    if tensor.kind in (F32, F16):
        kind = np.dtype(np.float32 if tensor.kind == F32 else np.float16)
        flat = data[tensor.start : tensor.start + count * kind.itemsize].view(kind)
        return flat.astype(np.float32).reshape(tensor.shape)
    if tensor.kind not in DEQUANTIZE:
        raise GgufError(f"tensor {name} is of type {tensor.kind}; known are F32, F16, Q4_1 and Q8_0 (0, 1, 3, 8)")
    size = BLOCK_BYTES[tensor.kind]
    blocks = data[tensor.start : tensor.start + count // BLOCK * size].reshape(-1, size)
    return DEQUANTIZE[tensor.kind](blocks).reshape(tensor.shape)


def read_gguf(path, wanted=lambda name: True):
    """({key: value}, {name: f32 array}) of the file; `wanted` chooses among the names of its tensors."""
    known, tensors = read_header(path)
    data = np.memmap(Path(path), np.uint8, "r")
    return known, {name: read_tensor(data, name, tensor) for name, tensor in tensors.items() if wanted(name)}
