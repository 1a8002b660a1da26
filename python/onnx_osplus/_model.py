"""A file of whatever is a model."""

import os
from pathlib import Path


def as_path(model, folder, name="model.onnx"):
    """The path of a model; what is in memory is written to `folder`. The model of the caller is never changed."""
    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    path = Path(folder) / name
    if isinstance(model, (bytes, bytearray, memoryview)):
        path.write_bytes(model)
        return path
    # What torch.onnx.export gives.
    model = getattr(model, "model_proto", model)
    if not hasattr(model, "SerializeToString"):
        raise TypeError(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
    try:
        data = model.SerializeToString()
    except Exception:  # protobuf and upb say "larger than 2 GB" by errors of several types
        save_large(model, path)
    else:
        path.write_bytes(data)
    return path


def save_large(model, path):
    """A model above 2 GB, with its weights beside it."""
    import onnx

    copy = type(model)()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=path.name + ".data")
