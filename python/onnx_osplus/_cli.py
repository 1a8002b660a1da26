"""The program `onnx-osplus`, in this process."""

import sys

from . import _onnx_osplus


def main():
    sys.exit(_onnx_osplus.main(sys.argv))
