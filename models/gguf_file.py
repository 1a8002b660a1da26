"""The header of a GGUF file: what is known of the model, and where its tensors lie. Needs the standard library alone.

    magic "GGUF", u32 version, u64 tensors, u64 entries; entries (key, type, value); tensors (name, dimensions, type,
    offset), the fastest dimension first; the data, from the next multiple of `general.alignment` on
"""

import mmap
import struct
from dataclasses import dataclass

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class GgufError(Exception):
    """The file is not what this reader knows."""


@dataclass(frozen=True)
class Tensor:
    """shape: as NumPy has it, the fastest dimension last. kind: number of the format. start: offset in the file."""

    shape: tuple
    kind: int
    start: int


class Cursor:
    """Little-endian values one behind the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code):
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self):
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return [self.value(inner) for _ in range(count)]
        if kind not in NUMBERS:
            raise GgufError(f"an entry of type {kind}; known are 0 to 12")
        return self.number(NUMBERS[kind])


def read_header(path):
    """({key: value}, {name: Tensor}) of the file."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise GgufError(f"{path}: expected a GGUF file, found one that begins with {data[:4]!r}")
        cursor = Cursor(data)
        cursor.at = 4
        version, tensors, entries = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
        if version not in (2, 3):
            raise GgufError(f"{path}: expected GGUF version 2 or 3, found {version}")
        known, places = {}, []
        for _ in range(entries):
            key = cursor.string()
            known[key] = cursor.value(cursor.number("I"))
        for _ in range(tensors):
            name = cursor.string()
            shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
            places.append((name, tuple(reversed(shape)), cursor.number("I"), cursor.number("Q")))
        alignment = known.get("general.alignment", 32)
        begin = -(-cursor.at // alignment) * alignment
    return known, {name: Tensor(shape, kind, begin + offset) for name, shape, kind, offset in places}
