#!/usr/bin/env python3
"""onnxslim, then ONNX Runtime's static quantizer at its best setting: quantize_onnxslim.py best MODEL OUT CALIB"""

import sys
import tempfile
from pathlib import Path

import onnx
import onnxslim
import quantize_ort


def main():
    setting, model, out, calib = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "slim.onnx")
        onnx.save(onnxslim.slim(onnx.load(model)), path)
        quantize_ort.static(setting, path, out, calib)


if __name__ == "__main__":
    main()
