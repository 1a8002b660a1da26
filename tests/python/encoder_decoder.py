"""A small encoder–decoder model as exporters write it: encoder, decoder, decoder with a cache, and the two merged by an If."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from test_text_data import VOCABULARY, text_model

WIDTH, WORDS = 16, 64
INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL


def weights():
    rng = np.random.default_rng(7)
    square = lambda: rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)  # noqa: E731
    arrays = {name: square() for name in ("query", "key", "out", "query2", "out2")}
    arrays |= {"table": rng.normal(size=(VOCABULARY, WIDTH)), "head": rng.normal(size=(WIDTH, WORDS))}
    # Outlier channels, as norms of real models have them.
    arrays |= {f"gamma{n}": np.r_[np.ones(WIDTH - 1), 20.0] for n in range(3)}
    arrays |= {f"beta{n}": np.zeros(WIDTH) for n in range(3)}
    floats = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    floats += [numpy_helper.from_array(np.float32(v), name) for name, v in (("one", 1), ("large", 1e4))]
    return floats + [numpy_helper.from_array(np.array([v]), name) for name, v in (("axis1", 1), ("axis2", 2))]


def nodes(cached, p=""):
    """The nodes of a decoder; `p` is before the names of its values."""
    made = []

    def add(op, inputs, output, **attributes):
        made.append(helper.make_node(op, inputs, [p + output], name=f"{p}{output}_{op}", **attributes))
        return p + output

    def attend(q, k, mask, name):
        swapped = add("Transpose", [k], f"{name}_t", perm=[0, 2, 1])
        scores = add("MatMul", [q, swapped], f"{name}_scores")
        scores = add("Add", [scores, mask], f"{name}_masked") if mask else scores
        return add("MatMul", [add("Softmax", [scores], f"{name}_p", axis=-1), k], f"{name}_context")

    x = add("Gather", ["table", "input_ids"], "x")
    n = add("LayerNormalization", [x, "gamma0", "beta0"], "n0")
    q, k = add("MatMul", [n, "query"], "q"), add("MatMul", [n, "key"], "k")
    states, causal = "encoder_hidden_states", None
    if cached:
        past = add("Squeeze", ["past_key_values.0.decoder.key", "axis1"], "past")
        k = add("Concat", [past, k], "all", axis=1)
        states = add("Squeeze", ["past_key_values.0.encoder.key", "axis1"], "states")
    else:
        length = add("Shape", ["input_ids"], "length", start=1, end=2)
        square = add("Concat", [length, length], "square", axis=0)
        ones = add("ConstantOfShape", [square], "ones", value=helper.make_tensor("v", FLOAT, [1], [1.0]))
        ones = add("Trilu", [ones], "lower", upper=0)
        causal = add("Mul", [add("Sub", [ones, "one"], "above"), "large"], "causal")
    add("Unsqueeze", [k, "axis1"], "present.0.decoder.key")
    add("Unsqueeze", [states, "axis1"], "present.0.encoder.key")
    h = add("Add", [x, add("MatMul", [attend(q, k, causal, "self"), "out"], "o")], "h")
    q = add("MatMul", [add("LayerNormalization", [h, "gamma1", "beta1"], "n1"), "query2"], "q2")
    real = add("Unsqueeze", [add("Cast", ["encoder_attention_mask"], "real", to=FLOAT), "axis1"], "real1")
    mask = add("Mul", [add("Sub", [real, "one"], "less"), "large"], "mask")
    h = add("Add", [h, add("MatMul", [attend(q, states, mask, "cross"), "out2"], "o2")], "h2")
    add("MatMul", [add("LayerNormalization", [h, "gamma2", "beta2"], "n2"), "head"], "logits")
    return made


OUTPUTS = ["logits", "present.0.decoder.key", "present.0.encoder.key"]


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, list(shape))


def save(path, made, inputs):
    outputs = [value("logits", FLOAT, "batch", "tokens", WORDS), *(value(n, FLOAT, None, 1, None, WIDTH) for n in OUTPUTS[1:])]
    graph = helper.make_graph(made, "decoder", inputs, outputs, weights())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write(folder, *kinds):
    """Writes the encoder and decoders of some kinds: "decoder_model", "decoder_with_past_model", "decoder_model_merged"."""
    text_model(folder / "encoder_model.onnx", ["input_ids", "attention_mask"])
    ids = value("input_ids", INT, "batch", "tokens")
    mask = value("encoder_attention_mask", INT, "batch", "length")
    states = value("encoder_hidden_states", FLOAT, "batch", "length", WIDTH)
    past = [
        value("past_key_values.0.decoder.key", FLOAT, "batch", 1, "past", WIDTH),
        value("past_key_values.0.encoder.key", FLOAT, "batch", 1, "length", WIDTH),
    ]
    if "decoder_model" in kinds:
        save(folder / "decoder_model.onnx", nodes(False), [ids, mask, states])
    if "decoder_with_past_model" in kinds:
        save(folder / "decoder_with_past_model.onnx", nodes(True), [ids, mask, *past])
    if "decoder_model_merged" in kinds:

        def branch(cached, p):
            given = [helper.make_tensor_value_info(p + n, FLOAT, None) for n in OUTPUTS]
            return helper.make_graph(nodes(cached, p), p, [], given)

        node = helper.make_node("If", ["use_cache_branch"], OUTPUTS, name="if", then_branch=branch(True, "c/"), else_branch=branch(False, "n/"))
        inputs = [ids, mask, states, *past, value("use_cache_branch", BOOL, 1)]
        save(folder / "decoder_model_merged.onnx", [node], inputs)
