"""The verses of Debian's package bible-kjv-text, whose text is one stream of compress(1). Standard library alone."""

import io
import re
import tarfile

MEMBER = "./usr/lib/bible.data"
CLEAR, FIRST_BITS = 256, 9


class KjvError(Exception):
    """The package is not what this reader knows."""


def ar_member(data, prefix):
    """The bytes of the first member of an ar archive whose name begins with `prefix`. A header has 60 bytes, the size
    as text from byte 48 on; members begin at even offsets."""
    at = 8
    while at < len(data):
        header = data[at : at + 60]
        size = int(header[48:58])
        if header.startswith(prefix):
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise KjvError(f"expected a member {prefix.decode()} in the package, found none")


def decompress(data):
    """What compress(1) made: LZW, codes of 9 bits and more, the lowest bit first. Codes come in groups of eight; where
    their width changes, the rest of a group is padding."""
    most = data[2] & 31
    table, previous, width, start, found = [bytes([i]) for i in range(256)] + [b""], None, FIRST_BITS, 3, []
    while start < len(data):
        chunk = data[start : start + width]
        start += width
        group, count = int.from_bytes(chunk, "little"), 8 * len(chunk) // width
        for number in range(count):
            code = group >> (number * width) & ((1 << width) - 1)
            if code == CLEAR:
                del table[CLEAR + 1 :]
                previous, width = None, FIRST_BITS
                break
            entry = table[code] if code < len(table) else previous + previous[:1]
            found.append(entry)
            if previous is not None and len(table) < 1 << most:
                table.append(previous + entry[:1])
            previous = entry
            if len(table) == 1 << width and width < most:
                width += 1
                break
    return b"".join(found)


def read_verses(deb):
    """Every verse in order, without its number. deb: bytes of the package."""
    with tarfile.open(fileobj=io.BytesIO(ar_member(deb, b"data.tar"))) as archive:
        data = archive.extractfile(MEMBER).read()
    text = decompress(data[data.index(b"\x1f\x9d") :]).decode("ascii")
    return re.findall(r"^\S+:\d+ (.+)$", text, re.MULTILINE)
