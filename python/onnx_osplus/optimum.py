"""Folders as Optimum has them: a quantizer with the methods of its `ORTQuantizer`, without Optimum itself."""

from pathlib import Path

from . import OsplusError, quantize

# Names of files that are another form of a model beside them.
FORMS = ("quantized", "int8", "uint8", "q4", "q4f16", "bnb4", "fp16", "optimized")


class OsplusQuantizer:
    """Quantizes the model of a folder.

    quantizer = OsplusQuantizer.from_pretrained("all-MiniLM-L6-v2")
    quantizer.quantize("all-MiniLM-L6-v2-int8", calibration_dataset=["some", "sentences"])
    """

    def __init__(self, model_path):
        self.model_path = Path(model_path)

    @classmethod
    def from_pretrained(cls, model_or_path, file_name=None):
        """A folder (or an `ORTModel`, whose `model_path` or `model_save_dir` is taken), and the file in it if there are several."""
        folder = getattr(model_or_path, "model_path", None) or getattr(model_or_path, "model_save_dir", model_or_path)
        folder = Path(folder)
        if folder.is_file():
            return cls(folder)
        places = [folder / "onnx", folder]
        if file_name is not None:
            found = [place / file_name for place in places if (place / file_name).is_file()]
        else:
            found = next(filter(None, map(float_models, places)), [])
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise OsplusError(f"{folder} has one model to be quantized by its name, or by file_name=…; found {names}")
        return cls(found[0])

    def quantize(self, save_dir, calibration_dataset, file_suffix="quantized", **options):
        """Writes `save_dir`/`name`_`file_suffix`.onnx and copies of tokenizer and configuration; gives the `Result`."""
        save_dir = Path(save_dir)
        save_dir.mkdir(parents=True, exist_ok=True)
        ending = f"_{file_suffix}" if file_suffix else ""
        out = save_dir / f"{self.model_path.stem}{ending}.onnx"
        result = quantize(self.model_path, calibration_dataset, out, **options)
        folder = self.model_path.parent
        for place in (folder.parent, folder) if folder.name == "onnx" else (folder,):
            copy_small(place, save_dir)
        return result


def float_models(folder):
    """The float models in a folder."""
    models = sorted(folder.glob("*.onnx"))
    return [path for path in models if not set(path.stem.split("_")[1:]) & set(FORMS)]


def copy_small(folder, to):
    """Copies what is text: configuration, vocabularies, tokenizers; what is there stays."""
    import shutil

    for path in sorted(folder.iterdir()):
        small = path.is_file() and path.suffix in {".json", ".txt", ".model", ".jinja", ".md"}
        if small and not (to / path.name).exists():
            shutil.copyfile(path, to / path.name)
