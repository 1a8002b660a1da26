"""Byte-level byte-pair encoding as GPT-2 and SmolLM2 use it, from the merges in a GGUF file. Standard library alone."""

import functools
import re

# GPT-2's pieces: contractions, a space and letters, a space and marks, spaces. Digits stand alone, as SmolLM2 has them.
PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def byte_letters():
    """The printable letter that stands for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


class Tokenizer:
    """Text to token ids. tokens: every token in the order of its id; merges: "left right", the first ones first."""

    def __init__(self, tokens, merges):
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.letters = byte_letters()
        self.piece_ids = functools.lru_cache(maxsize=None)(self.merge)

    def merge(self, piece):
        """Ids of one piece: of all neighbours, those of the lowest rank are joined until none has a rank."""
        parts = [self.letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            rank, at = min((self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(self.ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts]

    def encode(self, text):
        found = []
        for part in re.split(r"(\d)", text):
            for piece in [part] if part.isdigit() else PIECES.findall(part):
                found += self.piece_ids(piece)
        return found
