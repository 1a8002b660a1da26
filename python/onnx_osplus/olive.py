"""A pass of Olive: `OnnxOsplus` quantizes an ONNX model of a workflow.

    from olive.passes.olive_pass import create_pass_from_dict
    from onnx_osplus.olive import OnnxOsplus
    one = create_pass_from_dict(OnnxOsplus, {"calibration": "sentences.txt", "tokenizer": "folder"}, disable_search=True)
    one.run(model, "out")

In a workflow it is known by its name, `{"type": "OnnxOsplus", "calibration": "sentences.txt"}`, if Olive is told of it:
`olive.workflows.run(config, package_config=package_config())`. Olive is imported from here alone, and is not installed with this package.
"""

import json
from pathlib import Path
from typing import Any, Optional, Union

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from . import UsageError, quantize

# What is said of every option elsewhere: `onnx-osplus --help`.
OPTIONS = {
    "target": (str, "ort", "the runtime that loads the result: ort, tensorrt, openvino or portable"),
    "format": (str, None, "qdq, qoperator, matmulnbits or float"),
    "preset": (str, None, "a usual choice of bits and granularities"),
    "weight_bits": (int, None, "2 to 8"),
    "activation_bits": (int, None, "2 to 8"),
    "keep_float": (Union[int, float, str], None, "at most so many Linears, or that part of the work, in float"),
    "min_sqnr": (float, None, "the SQNR that every output must have, in dB"),
    "eval": (Union[str, list], None, "rows with labels that judge the result"),
    "labels": (str, None, "the labels of the rows that judge"),
    "metric": (str, None, "what is told of labels and outputs: accuracy, f1, spearman, …"),
    "min_metric": (Union[float, str], None, "the least value of the metric, or a fall such as -0.5%"),
    "tokenizer": (str, None, "the tokenizer of text: tokenizer.json, or its folder"),
    "preprocessor": (str, None, "how images and recordings are prepared"),
    "column": (Union[str, list], None, "the column with the text"),
    "samples": (int, None, "rows of data to use"),
}


class OnnxOsplus(Pass):
    """Outlier Suppression+: moves outlier channels into constants, then quantizes every Linear to 8 bits or fewer."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        config = {
            name: PassConfigParam(type_=Optional[kind], default_value=default, description=text)
            for name, (kind, default, text) in OPTIONS.items()
        }
        config["calibration"] = PassConfigParam(
            type_=Union[str, list, dict],
            required=True,
            description="calibration data: a path as for --calib, or a list of them, or a dict of paths by input",
        )
        config["options"] = PassConfigParam(
            type_=dict, default_value={}, description="further options of the command line, by name with underscores"
        )
        return config

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        given = config if isinstance(config, dict) else config.model_dump()
        out = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        out.parent.mkdir(parents=True, exist_ok=True)
        options = {name: given[name] for name in OPTIONS if given.get(name) is not None}
        twice = options.keys() & given["options"].keys()
        if twice:
            raise UsageError(f"said twice, by itself and among options: {', '.join(sorted(twice))}")
        quantize(model.model_path, given["calibration"], out, force=True, **options, **given["options"])
        return ONNXModelHandler(model_path=str(out))


def package_config():
    """What Olive knows of passes, with this one: `olive.workflows.run(config, package_config=package_config())`."""
    from olive.package_config import OlivePackageConfig

    config = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text())
    config["passes"][OnnxOsplus.__name__] = {
        "module_path": f"{__name__}.{OnnxOsplus.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
    }
    return config
