#!/usr/bin/env python3
"""Makes contrib.npz: one small model per form of ONNX Runtime's own operators, with inputs and ONNX Runtime's outputs.

    python tests/data/contrib/make.py

tests/contrib.rs runs the same models in the calibration engine. Keys: "case|model" (the file's bytes), "case|in|name",
"case|out|name". Random numbers are seeded per case, so that a new case changes no other one.
"""

import zlib
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
B, S, C, N = 2, 5, 16, 4  # batch, sequence, channels, heads
H = C // N
MS = "com.microsoft"


class Case:
    def __init__(self, name, opset=17):
        self.name, self.opset = name, opset
        self.random = np.random.default_rng(zlib.crc32(name.encode()))
        self.feeds, self.constants, self.nodes, self.outputs = {}, {}, [], []

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def feed(self, name, array):
        self.feeds[name] = np.asarray(array)
        return name

    def const(self, name, array):
        self.constants[name] = np.asarray(array)
        return name

    def op(self, op, inputs, outputs=("y",), domain=MS, **attributes):
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), domain=domain, **attributes))
        self.outputs += [o for o in outputs if o]
        return self

    def run(self):
        info = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in self.feeds.items()
        ]
        outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in self.outputs]
        constants = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, self.name, info, outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        data = model.SerializeToString(deterministic=True)
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        results = session.run(self.outputs, self.feeds)
        entries = {f"{self.name}|model": np.frombuffer(data, np.uint8)}
        entries |= {f"{self.name}|in|{k}": v.astype(np.uint8) if v.dtype == bool else v for k, v in self.feeds.items()}
        return entries | {f"{self.name}|out|{k}": v for k, v in zip(self.outputs, results) if v.dtype == np.float32}


def norms():
    for bias in (False, True):
        for beta in (False, True):
            c = Case(f"SkipLayerNormalization{'_beta' * beta}{'_bias' * bias}")
            x, skip = c.feed("x", c.normal(B, S, C)), c.feed("skip", c.normal(B, S, C))
            inputs = [x, skip, c.const("g", c.normal(C)), c.const("b", c.normal(C)) if beta else ""]
            inputs += [c.const("bias", c.normal(C))] if bias else []
            yield c.op("SkipLayerNormalization", inputs, ["y", "", "", "sum"], epsilon=1e-3)
        c = Case(f"SkipSimplifiedLayerNormalization{'_bias' * bias}")
        inputs = [c.feed("x", c.normal(B, S, C)), c.feed("skip", c.normal(B, S, C)), c.const("g", c.normal(C))]
        inputs += [c.const("bias", c.normal(C))] if bias else []
        yield c.op("SkipSimplifiedLayerNormalization", inputs, ["y", "", "", "sum"], epsilon=1e-3)
    c = Case("SkipLayerNormalization_broadcast_skip")
    inputs = [c.feed("x", c.normal(B, S, C)), c.feed("skip", c.normal(1, S, C)), c.const("g", c.normal(C))]
    yield c.op("SkipLayerNormalization", inputs)
    c = Case("SkipLayerNormalization_skip_without_batch")
    inputs = [c.feed("x", c.normal(B, S, C)), c.feed("skip", c.normal(S, C)), c.const("g", c.normal(C))]
    yield c.op("SkipLayerNormalization", inputs)
    c = Case("SimplifiedLayerNormalization")
    inputs = [c.feed("x", c.normal(B, S, C)), c.const("g", c.normal(C))]
    yield c.op("SimplifiedLayerNormalization", inputs, domain="", axis=-1, epsilon=1e-3)
    for segments in (False, True):
        for mask in (False, True):
            for positions in (False, True):
                parts = ["EmbedLayerNormalization"]
                parts += [n for n, on in (("segments", segments), ("mask", mask), ("positions", positions)) if on]
                c = Case("_".join(parts))
                ids = c.feed("ids", c.random.integers(0, 9, (B, S)).astype(np.int32))
                inputs = [ids, c.feed("seg", c.random.integers(0, 2, (B, S)).astype(np.int32)) if segments else ""]
                inputs += [c.const("words", c.normal(9, C)), c.const("pos", c.normal(S + 2, C))]
                inputs += [c.const("types", c.normal(2, C)) if segments else ""]
                inputs += [c.const("g", c.normal(C)), c.const("b", c.normal(C))]
                inputs += [c.feed("mask", np.array([[1] * S, [1] * 3 + [0] * (S - 3)], np.int32)) if mask else ""]
                inputs += [c.feed("at", c.random.integers(0, S, (B, S)).astype(np.int32))] if positions else []
                c.op("EmbedLayerNormalization", inputs, ["y", "index", "sum"], epsilon=1e-3)
                c.op("Cast", ["index"], ["lengths"], domain="", to=TensorProto.FLOAT)
                c.outputs.remove("index")
                yield c


def activations():
    for op, inputs in (
        ("BiasGelu", 2), ("FastGelu", 1), ("FastGelu", 2), ("Gelu", 1), ("QuickGelu", 1),
    ):
        c = Case(f"{op}_{inputs}")
        names = [c.feed("x", 2 * c.normal(B, S, C)), c.const("b", c.normal(C))]
        attributes = {"alpha": 1.3} if op == "QuickGelu" else {}
        yield c.op(op, names[:inputs], **attributes)
    c = Case("QuickGelu_default")
    yield c.op("QuickGelu", [c.feed("x", 2 * c.normal(B, S, C))])


def products():
    for trans_a, trans_b, batch_a, batch_b in np.ndindex(2, 2, 2, 2):
        c = Case(f"FusedMatMul_{trans_a}{trans_b}{batch_a}{batch_b}")

        def stored(shape, batch_first, transposed):
            shape = [*shape[:-2], shape[-1], shape[-2]] if transposed else list(shape)
            # transBatch: the rows stand before the batch axes.
            return [shape[-2], *shape[:-2], shape[-1]] if batch_first else shape

        x = c.feed("x", c.normal(*stored((B, 3, S, C), batch_a, trans_a)))
        w = c.feed("w", c.normal(*stored((B, 3, C, 6), batch_b, trans_b)))
        attributes = {"transA": trans_a, "transB": trans_b, "transBatchA": batch_a, "transBatchB": batch_b}
        yield c.op("FusedMatMul", [x, w], alpha=0.5, **{k: int(v) for k, v in attributes.items()})
    c = Case("FusedMatMul_matrix")
    yield c.op("FusedMatMul", [c.feed("x", c.normal(B, S, C)), c.const("w", c.normal(6, C))], transB=1, alpha=0.3)
    for activation, attributes in (
        ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("Softplus", {}), ("Softsign", {}),
        ("LeakyRelu", {"activation_alpha": 0.2}), ("Elu", {"activation_alpha": 0.7}),
        ("ThresholdedRelu", {"activation_alpha": 0.4}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ):
        c = Case(f"FusedGemm_{activation}")
        inputs = [c.feed("x", c.normal(S, C)), c.const("w", c.normal(6, C)), c.const("c", c.normal(6))]
        yield c.op("FusedGemm", inputs, transB=1, alpha=0.5, beta=2.0, activation=activation, **attributes)
    for activation, parameters in (
        ("Relu", []), ("Tanh", []), ("Sigmoid", []), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.75]), ("HardSigmoid", [0.3, 0.4]),
    ):
        c = Case(f"FusedConv_{activation}")
        inputs = [c.feed("x", c.normal(B, 3, 7, 6)), c.const("w", c.normal(4, 3, 3, 2)), c.const("b", c.normal(4))]
        attributes = {"activation_params": parameters} if parameters else {}
        yield c.op("FusedConv", inputs, strides=[2, 1], pads=[1, 0, 2, 1], activation=activation, **attributes)
    c = Case("FusedConv_sum")
    inputs = [c.feed("x", c.normal(B, 3, 7)), c.const("w", c.normal(4, 3, 3)), "", c.feed("z", c.normal(B, 4, 5))]
    yield c.op("FusedConv", inputs, activation="Relu")


def masks(c, total):
    """The forms of a mask: name, array."""
    lengths = np.array([total, max(total - 2, 1)], np.int32)
    yield "lengths", lengths
    yield "2d", (np.arange(total) < lengths[:, None]).astype(np.int32)
    yield "left", (np.arange(total) >= np.array([[0], [2]])).astype(np.int32)
    yield "3d", (c.random.random((B, S, total)) > 0.3).astype(np.int32)


def attention():
    def start(name, sizes=(C, C, C)):
        c = Case(f"Attention_{name}")
        weight, bias = c.normal(C, sum(sizes)) / 3, c.normal(sum(sizes))
        return c, [c.feed("x", c.normal(B, S, C)), c.const("w", weight), c.const("b", bias)]

    c, inputs = start("plain")
    yield c.op("Attention", inputs, num_heads=N)
    c, inputs = start("scale_unidirectional")
    yield c.op("Attention", inputs, num_heads=N, scale=0.3, unidirectional=1)
    c, inputs = start("sizes", (C, C, 2 * C))
    yield c.op("Attention", inputs, num_heads=N, qkv_hidden_sizes=[C, C, 2 * C])
    for past in (0, 3):
        for index in range(4):
            for unidirectional in (0, 1):
                name, _ = list(masks(Case(""), S + past))[index]
                c, inputs = start(f"{name}{'_past' * bool(past)}{'_unidirectional' * unidirectional}")
                inputs.append(c.feed("mask", list(masks(c, S + past))[index][1]))
                outputs = ["y"]
                if past:
                    inputs.append(c.feed("past", c.normal(2, B, N, past, H)))
                    outputs.append("present")
                yield c.op("Attention", inputs, outputs, num_heads=N, unidirectional=unidirectional)
    c, inputs = start("start_and_end")
    inputs.append(c.feed("mask", np.array([S, S - 1, 0, 2], np.int32)))
    yield c.op("Attention", inputs, num_heads=N)
    c, inputs = start("dummy_mask")
    inputs.append(c.feed("mask", np.ones((B, 1), np.int32)))
    yield c.op("Attention", inputs, num_heads=N)
    c, inputs = start("filter_value")
    inputs.append(c.feed("mask", np.array([[1] * S, [1] * 3 + [0] * (S - 3)], np.int32)))
    yield c.op("Attention", inputs, num_heads=N, mask_filter_value=-2.0)
    for shape in ((B, N, S, S), (1, N, S, S), (1, 1, S, S)):
        c, inputs = start(f"attention_bias_{shape[0]}{shape[1]}")
        mask = c.feed("mask", np.array([[1] * S, [1] * 3 + [0] * (S - 3)], np.int32))
        yield c.op("Attention", [*inputs, mask, "", c.feed("bias", c.normal(*shape))], num_heads=N)
    c, inputs = start("present_without_past")
    yield c.op("Attention", inputs, ["y", "present"], num_heads=N)


def multi_head_attention():
    def start(name, length=S, value=C, bias=False):
        c = Case(f"MultiHeadAttention_{name}")
        q, k, v = c.normal(B, S, C), c.normal(B, length, C), c.normal(B, length, value)
        inputs = [c.feed("q", q), c.feed("k", k), c.feed("v", v)]
        return c, [*inputs, c.const("b", c.normal(2 * C + value)) if bias else ""]

    c, inputs = start("plain")
    yield c.op("MultiHeadAttention", inputs[:3], num_heads=N)
    c, inputs = start("bias", bias=True)
    yield c.op("MultiHeadAttention", inputs, num_heads=N)
    c, inputs = start("cross_bias_scale", length=7, bias=True)
    yield c.op("MultiHeadAttention", inputs, num_heads=N, scale=0.4)
    c, inputs = start("wide_values", length=7, value=2 * C, bias=True)
    yield c.op("MultiHeadAttention", inputs, num_heads=N)
    c, inputs = start("unidirectional")
    yield c.op("MultiHeadAttention", inputs[:3], num_heads=N, unidirectional=1)
    c, inputs = start("present")
    yield c.op("MultiHeadAttention", inputs[:3], ["y", "pk", "pv"], num_heads=N)
    for index in range(4):
        for past in (0, 3):
            name, _ = list(masks(Case(""), S + past))[index]
            c, inputs = start(f"{name}{'_past' * bool(past)}", bias=bool(past))
            inputs.append(c.feed("mask", list(masks(c, S + past))[index][1]))
            outputs = ["y"]
            if past:
                inputs += ["", c.feed("past_k", c.normal(B, N, past, H)), c.feed("past_v", c.normal(B, N, past, H))]
                outputs += ["pk", "pv"]
            yield c.op("MultiHeadAttention", inputs, outputs, num_heads=N)
    for shape in ((B, N, S, S), (1, N, S, S), (1, 1, S, S), (B, 1, S, S)):
        c, inputs = start(f"attention_bias_{shape[0]}{shape[1]}")
        yield c.op("MultiHeadAttention", [*inputs, "", c.feed("bias", c.normal(*shape))], num_heads=N)
    c = Case("MultiHeadAttention_cross_past")
    inputs = [c.feed("q", c.normal(B, S, C)), c.feed("k", c.normal(B, N, 7, H)), c.feed("v", c.normal(B, N, 7, H))]
    yield c.op("MultiHeadAttention", inputs, num_heads=N)
    c = Case("MultiHeadAttention_query_bias_cross_past")
    inputs = [c.feed("q", c.normal(B, S, C)), c.feed("k", c.normal(B, N, 7, H)), c.feed("v", c.normal(B, N, 7, H))]
    bias = np.concatenate([c.normal(C), np.zeros(2 * C, np.float32)])
    yield c.op("MultiHeadAttention", [*inputs, c.const("b", bias)], num_heads=N)


def group_query_attention():
    n, kv, h = 4, 2, 16  # ONNX Runtime wants heads of a multiple of 16 to rotate them

    def start(name, past=0, lengths=None, packed=False, length=S):
        c = Case(f"GroupQueryAttention_{name}")
        b = 1 if past and length > 1 else 2
        if packed:
            inputs = [c.feed("qkv", c.normal(b, length, (n + 2 * kv) * h)), "", ""]
        else:
            inputs = [c.feed("q", c.normal(b, length, n * h))]
            inputs += [c.feed("k", c.normal(b, length, kv * h)), c.feed("v", c.normal(b, length, kv * h))]
        inputs += [c.feed("past_k", c.normal(b, kv, past, h)), c.feed("past_v", c.normal(b, kv, past, h))]
        lengths = np.array(lengths if lengths is not None else [past + length] * b, np.int32)
        inputs += [c.feed("seqlens_k", lengths - 1), c.feed("total", np.array([past + length], np.int32))]
        return c, inputs

    def rotary(c, inputs, most=16):
        angles = np.outer(np.arange(most), 10000.0 ** (-np.arange(0, h, 2) / h)).astype(np.float32)
        return [*inputs, c.const("cos", np.cos(angles)), c.const("sin", np.sin(angles))]

    outputs = ["y", "pk", "pv"]
    attributes = {"num_heads": n, "kv_num_heads": kv}
    c, inputs = start("plain")
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c, inputs = start("scale")
    yield c.op("GroupQueryAttention", inputs, outputs, scale=0.4, **attributes)
    c, inputs = start("past_one_token", past=4, length=1)
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c, inputs = start("past_chunk", past=4)
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    # What ONNX Runtime computes for padding is of no meaning: it is multiplied by 0.
    c, inputs = start("padded_prompt", lengths=[S, S - 2])
    c.op("GroupQueryAttention", inputs, ["all", "pk", "pv"], **attributes)
    c.outputs.remove("all")
    real = c.feed("real", (np.arange(S)[:, None] < np.array([[[S]], [[S - 2]]])).astype(np.float32))
    yield c.op("Mul", ["all", real], domain="")
    c, inputs = start("packed", packed=True)
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c, inputs = start("window")
    yield c.op("GroupQueryAttention", inputs, outputs, local_window_size=2, **attributes)
    c, inputs = start("window_past", past=4)
    yield c.op("GroupQueryAttention", inputs, outputs, local_window_size=3, **attributes)
    c, inputs = start("softcap")
    yield c.op("GroupQueryAttention", inputs, outputs, softcap=0.7, **attributes)
    c, inputs = start("smooth_softmax")
    yield c.op("GroupQueryAttention", inputs, outputs, smooth_softmax=1, **attributes)
    for interleaved in (0, 1):
        for past, packed in ((0, False), (4, False), (0, True), (4, True)):
            c, inputs = start(f"rotary_{interleaved}{'_past' * bool(past)}{'_packed' * packed}", past=past, packed=packed)
            inputs = rotary(c, inputs)
            attributes_ = {"do_rotary": 1, "rotary_interleaved": interleaved, **attributes}
            yield c.op("GroupQueryAttention", inputs, outputs, **attributes_)
    c, inputs = start("rotary_past_one_token", past=4, length=1)
    yield c.op("GroupQueryAttention", rotary(c, inputs), outputs, do_rotary=1, **attributes)
    c, inputs = start("rotary_everything", past=4, packed=True)
    inputs = rotary(c, inputs)
    inputs += ["", c.feed("bias", c.normal(1, 1, S, 4 + S))]
    yield c.op("GroupQueryAttention", inputs, outputs, do_rotary=1, local_window_size=3, softcap=0.9, **attributes)
    c, inputs = start("attention_bias")
    inputs += ["", "", "", c.feed("bias", c.normal(1, n, S, S))]
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c, inputs = start("head_sink")
    inputs += ["", "", "", "", c.const("sink", c.normal(n))]
    yield c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c, inputs = start("past_padded_token", past=4, lengths=[5, 3], length=1)
    c.op("GroupQueryAttention", inputs, outputs, **attributes)
    c.outputs = ["y"]
    yield c
    c, inputs = start("no_past")
    yield c.op("GroupQueryAttention", [*inputs[:3], "", "", *inputs[5:]], outputs, **attributes)


def rotary_embedding():
    for interleaved in (0, 1):
        for rank in (3, 4):
            for positions in ("start", "each"):
                c = Case(f"RotaryEmbedding_{interleaved}{rank}{positions}")
                x = c.feed("x", c.normal(B, S, C) if rank == 3 else c.normal(B, N, S, H))
                at = np.array([3], np.int64) if positions == "start" else c.random.integers(0, 12, (B, S))
                inputs = [x, c.feed("at", at), c.const("cos", c.normal(16, H // 2)), c.const("sin", c.normal(16, H // 2))]
                yield c.op("RotaryEmbedding", inputs, interleaved=interleaved)
        c = Case(f"RotaryEmbedding_{interleaved}_partial")
        inputs = [c.feed("x", c.normal(B, S, C)), c.feed("at", np.tile(np.arange(S), (B, 1)))]
        inputs += [c.const("cos", c.normal(16, H // 4)), c.const("sin", c.normal(16, H // 4))]
        attributes = {"interleaved": interleaved, "num_heads": N, "rotary_embedding_dim": H // 2}
        yield c.op("RotaryEmbedding", inputs, **attributes)
    c = Case("RotaryEmbedding_scaled")
    inputs = [c.feed("x", c.normal(B, S, C)), c.feed("at", np.array([0], np.int64))]
    inputs += [c.const("cos", c.normal(16, H // 2)), c.const("sin", c.normal(16, H // 2))]
    yield c.op("RotaryEmbedding", inputs, scale=0.5)


def main():
    entries, failed = {}, []
    for group in (
        norms, activations, products, attention, multi_head_attention, group_query_attention, rotary_embedding,
    ):
        for case in group():
            try:
                made = case.run()
            except Exception as error:  # ONNX Runtime has no CPU kernel for the form
                failed.append(f"{case.name}: {str(error).splitlines()[0][-150:]}")
                continue
            assert not entries.keys() & made.keys(), case.name
            entries |= made
    np.savez_compressed(HERE / "contrib.npz", **entries)
    count = len({k.split("|")[0] for k in entries})
    print(f"{count} cases; ONNX Runtime cannot run {len(failed)}:", *failed, sep="\n  ")


if __name__ == "__main__":
    main()
