"""Inputs for the models of `models/fetch --packages`: drawn by a seed, as like the real thing as a script can draw them.

Every function takes a numpy Generator and a number of rows, and gives arrays [rows, …] by the names of the inputs.
"""

from pathlib import Path

import numpy as np

REAL = Path(__file__).resolve().parent.parent / "models" / "real"
SAMPLES = 500  # of a second, for the signals


def words():
    """English words of the vocabulary that models/fetch brings."""
    pieces = (REAL / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 2]


def text(rng, vocabulary, fits):
    """Words and numbers, as many as fit."""
    line = []
    while True:
        word = vocabulary[rng.integers(len(vocabulary))] if rng.random() < 0.8 else str(rng.integers(10 ** rng.integers(1, 6)))
        word = word.title() if rng.random() < 0.3 else word
        word += ",.;:!?"[rng.integers(6)] if rng.random() < 0.15 else ""
        if not fits(" ".join([*line, word])):
            return " ".join(line)
        line.append(word)


def page(rng, vocabulary, width, height, lines):
    """An image [height, width, 3], 0 to 255, of `lines` lines of text: any size and colour, a little turned, blurred and noisy."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    paper, ink = rng.integers(150, 256, 3), rng.integers(0, 90, 3)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    paper, ink = (tuple(int(value) for value in colour) for colour in (paper, ink))
    image = Image.new("RGB", (width, height), paper)
    pen, step = ImageDraw.Draw(image), height / lines
    for number in range(lines):
        font = ImageFont.load_default(max(8, min(40, int(step * rng.uniform(0.45, 0.8)))))
        written = text(rng, vocabulary, lambda line, font=font: font.getlength(line) <= width - 12)
        pen.text((float(rng.integers(2, 9)), (number + 0.5) * step + rng.normal()), written, font=font, fill=ink, anchor="lm")
    image = image.rotate(rng.normal() * 0.6, resample=Image.Resampling.BILINEAR, fillcolor=paper)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.random()))
    noisy = np.asarray(image).astype(np.float32) + rng.normal(size=(height, width, 3)) * rng.random() * 10
    return np.clip(noisy, 0, 255).astype(np.float32)


def pages(name, width, height, lines, mean=127.5, deviation=127.5):
    """Images [rows, 3, height, width] of text, normalized."""

    def make(rng, rows):
        vocabulary = words()
        images = [page(rng, vocabulary, width, height, lines) for _ in range(rows)]
        return {name: ((np.stack(images) - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)}

    return make


def file_bytes(rng, rows):
    """What magika reads of a file: its first and its last 1024 bytes, 256 where it is shorter. Files of this repository."""
    root = REAL.parent.parent
    kinds = ("*.py", "*.rs", "*.md", "*.toml", "*.onnx", "*.npz", "*.json", "*.snap", "*.html", "*.pb", "*.txt")
    folders = ("src", "tests/python", "tests/data", "tests/snapshots", "benchmarks", "models/tiny", "models/architectures", "docs")
    found = sorted(file for folder in folders for kind in kinds for file in (root / folder).rglob(kind))
    features = []
    for index in rng.permutation(len(found))[:rows]:
        data = list(found[index].read_bytes())
        begin, end = data[:1024], data[-1024:]
        features.append(begin + [256] * (1024 - len(begin)) + [256] * (1024 - len(end)) + end)
    return {"bytes": np.array(features, np.int32)}


def molecules(rng, rows):
    """Atoms, their numbers of neighbours, and how many bonds lie between two of them: random trees with a few rings.
    One reaction a row, half of its atoms on either side, none at hand across (distance 0)."""
    atoms = 40
    made = {"atoms": [], "neighbors": [], "distances": [], "roles": []}
    for _ in range(rows):
        distance = np.full((atoms, atoms), 99)
        for atom in range(atoms):
            distance[atom, atom] = 0
            first = atoms // 2 * (atom >= atoms // 2)
            if atom > first:
                other = rng.integers(max(first, atom - 4), atom)
                distance[atom, other] = distance[other, atom] = 1
                if rng.random() < 0.15 and atom - first > 5:
                    distance[atom, atom - 5] = distance[atom - 5, atom] = 1
        degree = (distance == 1).sum(0)
        for middle in range(atoms):
            distance = np.minimum(distance, distance[:, middle : middle + 1] + distance[middle])
        made["atoms"].append(rng.choice([6, 6, 6, 6, 7, 8, 8, 9, 16, 17], atoms) + 2)
        made["neighbors"].append(np.minimum(degree + rng.integers(0, 4, atoms), 14) + 2)
        made["distances"].append(np.where(distance >= 99, 0, np.minimum(distance, 8) + 2))
        made["roles"].append(np.repeat([2, 3], atoms // 2))
    return {name: np.array(rows, np.int64) for name, rows in made.items()}


def letters(name, mask, count, tokens, keep):
    """Ids of letters and a boolean mask, rows of different lengths. keep: what the mask is at letters."""

    def make(rng, rows):
        lengths = rng.integers(tokens // 3, tokens + 1, rows)
        padding = np.arange(tokens)[None] >= lengths[:, None]
        ids = rng.zipf(1.4, (rows, tokens)) % (count - 2) + 2
        return {name: np.where(padding, 0, ids).astype(np.int64), mask: ~padding if keep else padding}

    return make


def pink(rng, rows, samples):
    """Noise whose power falls with the frequency, as that of a brain does, with bursts at 13 Hz: [rows, samples]"""
    frequencies = np.fft.rfftfreq(samples, 1 / 250)
    spectrum = rng.normal(size=(rows, len(frequencies))) + 1j * rng.normal(size=(rows, len(frequencies)))
    noise = np.fft.irfft(spectrum / np.maximum(frequencies, 0.5), samples)
    noise /= noise.std(1, keepdims=True)
    time = np.arange(samples) / 250
    for row in range(rows):
        for _ in range(rng.integers(0, 8)):
            at = rng.uniform(0, samples / 250)
            noise[row] += rng.uniform(0.5, 2) * np.exp(-(((time - at) / 0.4) ** 2)) * np.sin(2 * np.pi * 13 * time)
    return noise


def spindles(rng, rows):
    """A signal of 30 s at 250 Hz and the strength of 15 frequencies from 18 to 9 Hz in it."""
    signal = pink(rng, rows, 7500)
    bands = []
    for frequency in np.geomspace(18, 9, 15):
        wave = np.exp(-((np.arange(-125, 126) / 60) ** 2)) * np.exp(2j * np.pi * frequency * np.arange(-125, 126) / 250)
        bands.append(np.abs([np.convolve(row, wave, "same") for row in signal]))
    spectrogram = np.stack(bands, 1)
    spectrogram /= spectrogram.std((1, 2), keepdims=True)
    return {"raw_signal": signal[:, None].astype(np.float32), "spectrogram": spectrogram.astype(np.float32)}


def seizures(rng, rows):
    """Spectra of 100 frequencies in 120 steps of time, each frequency normalized."""
    signal = pink(rng, rows, 200 * 121)
    frames = np.stack([signal[:, at * 200 : at * 200 + 400] for at in range(120)], 2)
    power = np.log(np.abs(np.fft.rfft(frames * np.hanning(400)[None, :, None], axis=1))[:, 1:101] ** 2 + 1e-6)
    power = (power - power.mean(2, keepdims=True)) / power.std(2, keepdims=True)
    return {"x": power.astype(np.float32)}
