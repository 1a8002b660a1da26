"""Read the tensors of a PyTorch checkpoint (torch.save before 1.6: a row of pickles, then raw storages) without PyTorch.

A pickle can name any function to call. This reader looks up three names and refuses every other one, so nothing of what
a file says is ever run.
"""

import collections
import pickle
import struct

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "LongStorage": np.int64}


class WeightsError(Exception):
    """The file is not what this reader knows."""


def rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None):
    """Where a tensor lies in its storage; the storages' bytes come later in the file."""
    return storage, offset, tuple(shape), tuple(strides)


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild_tensor
        if module == "torch" and name in STORAGES:
            return name
        raise WeightsError(f"the file asks for {module}.{name}, which no list of tensors needs")

    def persistent_load(self, reference):
        kind, storage, key, _device, count = reference[:5]
        if kind != "storage":
            raise WeightsError(f"expected a storage, found {kind}")
        return key, STORAGES[storage], count


def read_torch(path):
    """{name: array} of a checkpoint that holds a flat dictionary of tensors."""
    with open(path, "rb") as file:
        magic, protocol = Unpickler(file).load(), Unpickler(file).load()
        if (magic, protocol) != (MAGIC, PROTOCOL):
            raise WeightsError(f"{path}: not a checkpoint of torch.save before 1.6")
        Unpickler(file).load()  # type sizes of the machine that wrote it
        tensors, keys = Unpickler(file).load(), Unpickler(file).load()
        kinds = {storage[0]: storage[1] for storage, *_ in tensors.values()}
        data = {}
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            kind = np.dtype(kinds[key])
            data[key] = np.frombuffer(file.read(count * kind.itemsize), kind)
    arrays = {}
    for name, ((key, _, _), offset, shape, strides) in tensors.items():
        flat = data[key][offset:]
        steps = [step * flat.itemsize for step in strides]
        last = sum((size - 1) * step for size, step in zip(shape, strides))  # the highest element that is read
        if last >= len(flat):
            raise WeightsError(f"{path}: tensor {name} lies outside its storage")
        arrays[name] = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, steps))
    return arrays
