"""A BERT encoder (post-LN) as an ONNX graph, written node by node as the PyTorch exporter writes it.

    python models/build_bert.py models/real/minilm-l6.safetensors OUT.onnx --heads 12 [--layer-norm decomposed]

`bert_model` needs no PyTorch: weights come as a dictionary of NumPy arrays under their Hugging Face names. Layer
normalization is one LayerNormalization node (opset 17) or the nine nodes of opset 13.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MASKED = np.float32(np.finfo(np.float32).min)  # what PyTorch adds to the scores of padding


def read_safetensors(path):
    """{name: array} of a .safetensors file: u64 header length, JSON header, data."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            tensors[name] = np.frombuffer(raw, kinds[entry["dtype"]]).reshape(entry["shape"])
    return tensors


class Graph:
    """Nodes and initializers in the order in which they are added. A node's output is named after the node."""

    def __init__(self):
        self.nodes, self.initializers, self.known = [], [], set()

    def constant(self, name, array):
        """Add an initializer once; a second use under the same name shares it."""
        if name not in self.known:
            self.known.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op_type, name, inputs, output=None, **attributes):
        output = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def linear(self, path, x, weight, bias=None, constants=None):
        """y = x W + b with W: [K, N]; the bias is the first operand of Add, as torch writes it.
        constants: prefix of the names of W and b where several nodes share them; else it derives from `path`."""
        prefix = constants or path.strip("/").replace("/", ".")
        y = self.add("MatMul", f"{path}/MatMul", [x, self.constant(f"{prefix}.weight_t", weight)])
        return y if bias is None else self.add("Add", f"{path}/Add", [self.constant(f"{prefix}.bias", bias), y])

    def gelu(self, path, x):
        """0.5 x (1 + erf(x / √2))"""
        y = self.add("Div", f"{path}/Div", [x, self.constant("sqrt_2", np.float32(2**0.5))])
        y = self.add("Erf", f"{path}/Erf", [y])
        y = self.add("Add", f"{path}/Add", [y, self.constant("one", np.float32(1))])
        y = self.add("Mul", f"{path}/Mul", [x, y])
        return self.add("Mul", f"{path}/Mul_1", [y, self.constant("half", np.float32(0.5))])

    def layer_norm(self, path, x, gamma, beta, epsilon, fused, output=None, constants=None):
        prefix = constants or path.strip("/").replace("/", ".")
        gamma, beta = self.constant(f"{prefix}.weight", gamma), self.constant(f"{prefix}.bias", beta)
        if fused:
            inputs = [x, gamma, beta]
            return self.add("LayerNormalization", f"{path}/LayerNormalization", inputs, output, axis=-1, epsilon=epsilon)
        mean = self.add("ReduceMean", f"{path}/ReduceMean", [x], axes=[-1])
        d = self.add("Sub", f"{path}/Sub", [x, mean])
        square = self.add("Pow", f"{path}/Pow", [d, self.constant("two", np.float32(2))])
        variance = self.add("ReduceMean", f"{path}/ReduceMean_1", [square], axes=[-1])
        variance = self.add("Add", f"{path}/Add", [variance, self.constant("layer_norm_epsilon", np.float32(epsilon))])
        deviation = self.add("Sqrt", f"{path}/Sqrt", [variance])
        y = self.add("Div", f"{path}/Div", [d, deviation])
        y = self.add("Mul", f"{path}/Mul", [y, gamma])
        return self.add("Add", f"{path}/Add_1", [y, beta], output)

    def split_heads(self, path, x, heads, perm):
        """[B, S, heads · D] → [B, S, heads, D] → transposed by `perm`"""
        # 0 copies a dimension, so batch and sequence stay dynamic.
        shape = self.constant(f"split_{heads}_heads", np.array([0, 0, heads, -1], np.int64))
        return self.add("Transpose", f"{path}/Transpose", [self.add("Reshape", f"{path}/Reshape", [x, shape])], perm=perm)

    def attend(self, path, q, k_t, v, head_size, mask):
        """softmax(Q Kᵀ / √D + mask) V, heads merged: [B, S, heads · D]"""
        scores = self.add("MatMul", f"{path}/MatMul", [q, k_t])
        scores = self.add("Div", f"{path}/Div", [scores, self.constant("sqrt_head_size", np.float32(head_size**0.5))])
        scores = self.add("Add", f"{path}/Add", [scores, mask])
        probabilities = self.add("Softmax", f"{path}/Softmax", [scores], axis=-1)
        context = self.add("MatMul", f"{path}/MatMul_1", [probabilities, v])
        context = self.add("Transpose", f"{path}/Transpose", [context], perm=[0, 2, 1, 3])
        return self.add("Reshape", f"{path}/Reshape", [context, self.constant("merge_heads", np.array([0, 0, -1], np.int64))])

    def sequence_length(self):
        shape = self.add("Shape", "/Shape", ["input_ids"])
        return self.add("Gather", "/Gather", [shape, self.constant("axis_1", np.array([1], np.int64))], axis=0)

    def padding_mask(self):
        """attention_mask [B, S] → what to add to the scores [B, 1, 1, S]: 0 or the lowest float"""
        mask = self.add("Unsqueeze", "/Unsqueeze", ["attention_mask", self.constant("axes_1_2", np.array([1, 2], np.int64))])
        mask = self.add("Cast", "/Cast", [mask], to=TensorProto.FLOAT)
        mask = self.add("Sub", "/Sub", [self.constant("one", np.float32(1)), mask])
        return self.add("Mul", "/Mul", [mask, self.constant("masked", MASKED)])

    def model(self, name, inputs, output, width, opset, shape=None):
        """shape: of the output where it is not [batch, sequence, width]."""
        shape = shape or ["batch", "sequence", width]
        ids = [helper.make_tensor_value_info(i, TensorProto.INT64, ["batch", "sequence"]) for i in inputs]
        out = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, name, ids, [out], self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="build_bert")


def hugging_face_names(weights):
    """Names as BertModel has them: without the prefix of a model with a head, γ and β of old files as weight and bias."""
    renamed = {}
    for name, array in weights.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = array
    return renamed


def splade_head(g, x, weights, norm, linear):
    """max over tokens of log(1 + relu(masked language model's logits)): [B, S, H] → [B, vocabulary]. The decoder's
    weight is the embedding table transposed; exporters write it as a second constant."""
    x = g.gelu("/cls/predictions/transform/act", linear("/cls/predictions/transform/dense", x))
    x = norm("/cls/predictions/transform/LayerNorm", x)
    table, bias = weights["embeddings.word_embeddings.weight"], weights["cls.predictions.bias"]
    x = g.add("Relu", "/Relu", [g.linear("/cls/predictions/decoder", x, table.T, bias)])
    x = g.add("Log", "/Log", [g.add("Add", "/Add", [x, g.constant("one", np.float32(1))])])
    mask = g.add("Unsqueeze", "/Unsqueeze_1", ["attention_mask", g.constant("axes_2", np.array([2], np.int64))])
    mask = g.add("Cast", "/Cast_1", [mask], to=TensorProto.FLOAT)
    g.add("ReduceMax", "/ReduceMax", [g.add("Mul", "/Mul_1", [x, mask])], "splade", axes=[1], keepdims=0)


def bert_model(weights, *, heads, fused, epsilon=1e-12, name="bert", splade=False):
    """The encoder as a ModelProto; inputs input_ids, attention_mask, token_type_ids: int64 [B, S]; output
    last_hidden_state: f32 [B, S, H], or with `splade` its sparse vector splade: f32 [B, vocabulary]. Linear weights in
    `weights` are [N, K], as PyTorch keeps them."""
    weights = hugging_face_names(weights)
    g, h = Graph(), weights["embeddings.word_embeddings.weight"].shape[1]

    def linear(path, x):
        key = path.strip("/").replace("/", ".")
        return g.linear(path, x, weights[f"{key}.weight"].T, weights[f"{key}.bias"])

    def norm(path, x, output=None):
        key = path.strip("/").replace("/", ".")
        return g.layer_norm(path, x, weights[f"{key}.weight"], weights[f"{key}.bias"], epsilon, fused, output)

    def embed(table, ids):
        key = f"embeddings.{table}.weight"
        return g.add("Gather", f"/embeddings/{table}/Gather", [g.constant(key, weights[key]), ids])

    positions = len(weights["embeddings.position_embeddings.weight"])
    ids = g.constant("embeddings.position_ids", np.arange(positions, dtype=np.int64)[None])
    bounds = [g.constant("zero", np.array([0], np.int64)), g.sequence_length(), g.constant("axis_1", np.array([1], np.int64))]
    position_ids = g.add("Slice", "/embeddings/Slice", [ids, *bounds])
    mask = g.padding_mask()
    x = g.add("Add", "/embeddings/Add", [embed("word_embeddings", "input_ids"), embed("token_type_embeddings", "token_type_ids")])
    x = g.add("Add", "/embeddings/Add_1", [x, embed("position_embeddings", position_ids)])
    x = norm("/embeddings/LayerNorm", x)

    layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("encoder.layer."))
    for number in range(layers):
        layer = f"/encoder/layer.{number}"
        attention = f"{layer}/attention/self"
        q = g.split_heads(f"{attention}/q", linear(f"{attention}/query", x), heads, [0, 2, 1, 3])
        k_t = g.split_heads(f"{attention}/k", linear(f"{attention}/key", x), heads, [0, 2, 3, 1])
        v = g.split_heads(f"{attention}/v", linear(f"{attention}/value", x), heads, [0, 2, 1, 3])
        y = linear(f"{layer}/attention/output/dense", g.attend(attention, q, k_t, v, h // heads, mask))
        x = norm(f"{layer}/attention/output/LayerNorm", g.add("Add", f"{layer}/attention/output/Add", [y, x]))
        y = g.gelu(f"{layer}/intermediate/act", linear(f"{layer}/intermediate/dense", x))
        y = linear(f"{layer}/output/dense", y)
        last = "last_hidden_state" if number == layers - 1 and not splade else None
        x = norm(f"{layer}/output/LayerNorm", g.add("Add", f"{layer}/output/Add", [y, x]), last)

    inputs, opset = ["input_ids", "attention_mask", "token_type_ids"], 17 if fused else 13
    if splade:
        vocabulary = len(weights["embeddings.word_embeddings.weight"])
        splade_head(g, x, weights, norm, linear)
        return g.model(name, inputs, "splade", vocabulary, opset, ["batch", vocabulary])
    return g.model(name, inputs, "last_hidden_state", h, opset)


def main():
    parser = argparse.ArgumentParser(description="Write BERT weights (.safetensors) as an ONNX graph.")
    parser.add_argument("weights", help="a .safetensors file with Hugging Face names")
    parser.add_argument("out", help="the ONNX file to write")
    parser.add_argument("--heads", type=int, required=True, help="number of attention heads (12 in MiniLM, 2 in BERT-tiny)")
    parser.add_argument("--splade", action="store_true", help="with the head of a sparse retrieval model")
    parser.add_argument("--layer-norm", choices=["fused", "decomposed"], default="fused")
    args = parser.parse_args()
    model = bert_model(read_safetensors(args.weights), heads=args.heads, fused=args.layer_norm == "fused", splade=args.splade)
    onnx.checker.check_model(model, full_check=True)
    Path(args.out).write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
