"""Golden numbers for the solver: an independent NumPy implementation of the equations it computes.

Written from Wei et al., "Outlier Suppression+", EMNLP 2023, and the ONNX operator documentation, not from the Rust
code. `cases()` makes small seeded problems and their expected results; run as a script, it writes them to
tests/data/solver_golden.json, which the Rust test tests/solver_golden.rs reads.

All arithmetic that decides a rounding is done in float32, as in the file that will be written; losses are summed in
float64.
"""

import json
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parent.parent / "data" / "solver_golden.json"
f32 = np.float32


def activation_params(low, high, bits, symmetric):
    """(scale, zero_point, qmin, qmax) of a per-tensor activation quantizer that covers low..high."""
    low, high = np.float64(low), np.float64(high)
    if symmetric:
        levels = 2 ** (bits - 1) - 1
        extreme = max(abs(low), abs(high))
        return f32(extreme / levels) if extreme else f32(1), 0, -levels - 1, levels
    levels = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = f32((high - low) / levels) if high > low else f32(1)
    return scale, int(np.clip(np.rint(-low / np.float64(scale)), 0, levels)), 0, levels


def fake_quantize(x, scale, zero_point, qmin, qmax):
    """DequantizeLinear(QuantizeLinear(x)): round half to even, then saturate."""
    q = np.clip(np.rint(x.astype(f32) / f32(scale)) + zero_point, qmin, qmax)
    return ((q - zero_point) * f32(scale)).astype(f32)


def fake_quantize_weight(w, bits, per_channel):
    """Symmetric weight quantizer, one scale per column of w [C, N] or one in all."""
    levels = 2 ** (bits - 1) - 1
    extreme = np.abs(w).max(axis=0 if per_channel else None, keepdims=True).astype(np.float64)
    scale = np.where(extreme > 0, extreme / levels, 1.0).astype(f32)
    return np.clip(np.rint(w / scale), -levels, levels).astype(f32) * scale


def shift_of(kind, low, high):
    """z_j = (max_j + min_j) / 2 for every channel ("mid_range"), for those that never change sign ("one_sided")."""
    middle = ((high.astype(np.float64) + low) / 2).astype(f32)
    if kind == "none":
        return np.zeros_like(middle)
    if kind == "one_sided":
        return np.where((low > 0) | (high < 0), middle, f32(0))
    return middle


def scale_of(low, high, z, threshold):
    """s_j = max(1, extreme_j / t), extreme_j the largest |x_j - z_j|."""
    if threshold is None:
        return np.ones_like(low)
    return np.maximum(f32(1), np.maximum(np.abs(low - z), np.abs(high - z)) / f32(threshold))


def loss(z, s, low, high, x, weights, margin, activation, weight):
    """Sum over the Linears of || Q(x') Q(diag(s) W) + z W - x W ||^2, x' = (x - z) / s.

    The range of x' comes from low, high: [C]; x: [T, C] are the tokens scored.
    """
    r_low, r_high = ((low - z) / s).min(), ((high - z) / s).max()
    params = activation_params(f32(r_low * f32(margin)), f32(r_high * f32(margin)), **activation)
    q = fake_quantize((x - z) / s, *params).astype(np.float64)
    total = 0.0
    for w in weights:
        wq = fake_quantize_weight(w * s[:, None], **weight).astype(np.float64)
        error = q @ wq + z.astype(np.float64) @ w - x.astype(np.float64) @ w
        total += float((error**2).sum())
    return total


def cross_fit(case, kind, threshold, margin):
    """Ranges, z and s from one fold, loss on the other; both ways, summed."""
    total = 0.0
    for fit, score in ((0, 1), (1, 0)):
        low, high = case["folds"][fit].min(0), case["folds"][fit].max(0)
        z = shift_of(kind, low, high)
        s = scale_of(low, high, z, threshold)
        total += loss(z, s, low, high, case["folds"][score], case["weights"], margin, case["activation"], case["weight"])
    return total


def thresholds_of(case, kind, fractions):
    """Thresholds as fractions of the largest extreme after the shift, over all tokens."""
    x = np.concatenate(case["folds"])
    low, high = x.min(0), x.max(0)
    z = shift_of(kind, low, high)
    largest = np.maximum(np.abs(low - z), np.abs(high - z)).max()
    return [f32(f32(f) * largest) for f in fractions]


def plain_search(case, fractions):
    """The paper's own search: mid-range shift, ranges and loss on all tokens, no margin. [(t, loss)]."""
    x = np.concatenate(case["folds"])
    low, high = x.min(0), x.max(0)
    z = shift_of("mid_range", low, high)
    return [
        (t, loss(z, scale_of(low, high, z, t), low, high, x, case["weights"], 1.0, case["activation"], case["weight"]))
        for t in thresholds_of(case, "mid_range", fractions)
    ]


def width(low, high):
    return max(high, 0.0) - min(low, 0.0)


def solve(case, fractions, margins):
    """Cross-fitted search over all candidates, then z, s and range from all tokens."""
    candidates = [("none", None, 1.0)]
    for kind in ("none", "one_sided", "mid_range"):
        for t in [None, *thresholds_of(case, kind, fractions)]:
            candidates += [(kind, t, m) for m in margins]
    losses = [cross_fit(case, *c) for c in candidates]
    best = int(np.argmin(losses))
    kind, t, margin = candidates[best]
    x = np.concatenate(case["folds"])

    def fitted(x):
        low, high = x.min(0), x.max(0)
        z = shift_of(kind, low, high)
        s = scale_of(low, high, z, t)
        return z, s, float(((low - z) / s).min()), float(((high - z) / s).max())

    z, s, low, high = fitted(x)
    halves = [width(*fitted(fold)[2:]) for fold in case["folds"]]
    grown = width(low, high) / np.mean(halves)
    if margin > 1 and grown > 1:  # the range of all tokens is wider than the range the margin was validated on
        margin = max(1.0, margin / grown)
    others = [l for l in losses if l != losses[best]]  # equal: the same candidate under another name
    return {
        "kind": kind,
        "threshold": t,
        "margin": margin,
        "shift": z,
        "scale": s,
        "range": [low * margin, high * margin],
        "loss_before": losses[0],
        "loss_after": losses[best],
        # Float sums differ in the last bits; a case whose two best candidates are closer would test nothing.
        "lead": (min(others) - losses[best]) / losses[best],
    }


FRACTIONS = [0.1, 0.2, 0.4, 0.8]
MARGINS = [0.9, 1.0, 1.1, 1.35]


def make_case(rng, t, c, n, bits, symmetric, per_channel, kind):
    """A problem with planted outlier channels: folds [T, C] x 2, weights [C, N_i]."""
    center, spread = rng.normal(0, 0.3, c), np.exp(rng.normal(0, 0.4, c))
    if kind == "one_sided":
        center[:2], spread[:2] = [9.0, -14.0], [1.0, 1.5]
    if kind == "two_sided":
        spread[:2] = [12.0, 20.0]
    folds = [rng.normal(center, spread, (t, c)).astype(f32) for _ in range(2)]
    return {
        "folds": folds,
        "weights": [rng.normal(0, 1 / np.sqrt(c), (c, k)).astype(f32) for k in n],
        "activation": {"bits": bits, "symmetric": symmetric},
        "weight": {"bits": bits, "per_channel": per_channel},
    }


def cases():
    """All golden cases with inputs and expected results, as plain JSON values."""
    rng = np.random.default_rng(20)
    out = []
    for t, c, n, bits, symmetric, per_channel, kind in [
        (12, 8, [6], 8, False, True, "one_sided"),
        (12, 8, [4, 3, 5], 8, True, True, "two_sided"),
        (10, 6, [5, 2], 6, False, False, "one_sided"),
        (10, 7, [6], 4, True, True, "one_sided"),
        (16, 5, [4], 8, False, True, "plain"),
        (9, 2, [1], 8, False, True, "plain"),
    ]:
        case = make_case(rng, t, c, n, bits, symmetric, per_channel, kind)
        x = np.concatenate(case["folds"])
        params = activation_params(x.min(), x.max(), **case["activation"])
        expected = {
            "params": params,
            "fake_quantized": fake_quantize(case["folds"][0], *params),
            "fake_quantized_weight": fake_quantize_weight(case["weights"][0], **case["weight"]),
            "plain_search": plain_search(case, FRACTIONS),
            "cross_fit": [
                {"kind": k, "threshold": th, "margin": m, "loss": cross_fit(case, k, th, m)}
                for k in ("none", "one_sided", "mid_range")
                for th in [None, *thresholds_of(case, k, FRACTIONS)]
                for m in (1.0, 1.1)
            ],
            "solution": solve(case, FRACTIONS, MARGINS),
        }
        out.append({**case, "expected": expected})
    return plain({"fractions": FRACTIONS, "margins": MARGINS, "cases": out})


def plain(v):
    """NumPy values as JSON values; float32 keeps its exact value."""
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    if isinstance(v, np.ndarray):
        return plain(v.tolist())
    if isinstance(v, f32):
        return float(v)
    return v.item() if isinstance(v, np.generic) else v


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(cases(), indent=None, separators=(",", ":")) + "\n")
    print(f"{PATH}: {PATH.stat().st_size} bytes")
