"""Rows that are made from other exports: optimized, simplified, with functions, in half precision, with a cache."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import torch
import zoo
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def make(table, folder, export, row_of):
    """All rows of this file, in the order in which the sections follow."""
    for section in (optimized, simplified, functions, half_precision, caches, generative):
        for name, base, exporter, opset, attention, options, change in section():
            if not table.wants(name):
                continue
            try:
                specimen = zoo.build(base, attention, options.get("cache"))
                if options.get("dtype"):
                    specimen.module.to(options["dtype"])
                    specimen.inputs = [
                        {**i, "dtype": "float16"} if i["dtype"] == "float32" else i for i in specimen.inputs
                    ]
                model = None if exporter is None else export(specimen, folder / "export.onnx", exporter, opset)
                if change is not None:
                    model = change(model, specimen, folder)
            except Exception as e:  # noqa: BLE001 (the other rows are still made)
                print("FAILED", name, repr(e)[:300].replace("\n", " "), flush=True)
                continue
            ops = Counter(n.domain + "::" + n.op_type for n in model.graph.node)
            row = row_of(
                specimen,
                exporter=exporter or "helper",
                attention=attention,
                opset=next(i.version for i in model.opset_import if i.domain in ("", "ai.onnx")),
                variant=name.split("-")[-1],
                packed_attention=ops["com.microsoft::Attention"],
            )
            contrib = sorted(o.split("::")[1] for o in ops if o.startswith("com.microsoft"))
            if contrib:
                row["contrib"] = contrib
            if specimen.merged_linears:
                row["merged_linears"] = specimen.merged_linears
            if "merged" in options:
                row["other_branch"] = zoo.without_past(specimen.inputs)
            table.add(name, model, row, specimen)


# ONNX Runtime's optimizers


def optimized():
    """onnxruntime.transformers.optimizer (fusions in Python) and the graph that a session itself writes."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    def fused(model_type, level, **options):
        def change(model, specimen, folder):
            path = folder / "before.onnx"
            onnx.save(model, path)
            chosen = FusionOptions(model_type)
            for name, value in options.items():
                setattr(chosen, name, value)
            result = optimizer.optimize_model(
                str(path), model_type=model_type, num_heads=zoo.HEADS, hidden_size=zoo.HIDDEN, opt_level=level,
                optimization_options=chosen, use_gpu=False,
            ).model  # fmt: skip
            return result

        return change

    def session(level):
        def change(model, specimen, folder):
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = level
            options.optimized_model_filepath = str(folder / "after.onnx")
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(folder / "after.onnx")

        return change

    extended = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    mha = {"use_multi_head_attention": True}
    return [
        ("bert-script14-eager-optimizer0", "bert", "script", 14, "eager", {}, fused("bert", 0)),
        ("bert-script17-eager-optimizer1", "bert", "script", 17, "eager", {}, fused("bert", 1)),
        ("bert-script14-sdpa-optimizer2", "bert", "script", 14, "sdpa", {}, fused("bert", 2)),
        ("bert-dynamo18-eager-optimizer0", "bert", "dynamo", 18, "eager", {}, fused("bert", 0)),
        ("bert-script13-eager-mha", "bert", "script", 13, "eager", {}, fused("bert", 0, **mha)),
        ("roberta-script17-eager-extended", "roberta", "script", 17, "eager", {}, session(extended)),
        ("distilbert-script14-eager-optimizer0", "distilbert", "script", 14, "eager", {}, fused("bert", 0)),
        ("gpt2-script14-eager-optimizer0", "gpt2", "script", 14, "eager", {}, fused("gpt2", 0)),
        ("gpt2-script14-eager-extended", "gpt2", "script", 14, "eager", {}, session(extended)),
        ("llama-script17-eager-optimizer0", "llama", "script", 17, "eager", {}, fused("gpt2", 0, **mha)),
        ("llama-script14-eager-extended", "llama", "script", 14, "eager", {}, session(extended)),
        ("phi-script17-eager-optimizer0", "phi", "script", 17, "eager", {}, fused("bert", 0)),
        ("t5_encoder-script14-eager-optimizer0", "t5_encoder", "script", 14, "eager", {}, fused("t5", 0)),
        ("vit-script14-eager-optimizer0", "vit", "script", 14, "eager", {}, fused("vit", 0)),
        ("clip_text-script14-eager-optimizer0", "clip_text", "script", 14, "eager", {}, fused("clip", 0)),
        ("clip_vision-script14-eager-optimizer0", "clip_vision", "script", 14, "eager", {}, fused("clip", 0)),
        ("whisper_encoder-script17-eager-optimizer0", "whisper_encoder", "script", 17, "eager", {}, fused("bart", 0)),
    ]  # fmt: skip


def simplified():
    """onnxsim: constants folded, shapes resolved, and with a fixed batch Q, K and V in one product."""
    import onnxsim

    def products(model):
        constant = {i.name for i in model.graph.initializer}
        constant |= {o for n in model.graph.node if n.op_type == "Constant" for o in n.output}
        return sum(n.op_type in ("MatMul", "Gemm") and n.input[1] in constant for n in model.graph.node)

    def change(model, specimen, folder):
        result, ok = onnxsim.simplify(model)
        assert ok
        # With a fixed batch it makes one product of Q, K and V.
        specimen.merged_linears = products(model) - products(result)
        assert specimen.merged_linears in (0, 2 * zoo.LAYERS)
        return result

    return [
        ("bert-script13-eager-onnxsim", "bert", "script", 13, "eager", {}, change),
        ("gpt2-script14-eager-onnxsim", "gpt2", "script", 14, "eager", {}, change),
        ("llama-script17-sdpa-onnxsim", "llama", "script", 17, "sdpa", {}, change),
        ("vit-static14-eager-onnxsim", "vit", "static", 14, "eager", {}, change),
        ("whisper_encoder-dynamo18-sdpa-onnxsim", "whisper_encoder", "dynamo", 18, "sdpa", {}, change),
    ]


# Model-local functions, as exporters write modules: weights are inputs of the function


def functions():
    def leaves(model, specimen, folder):
        """One function Linear(x, w, b) and one LayerNorm(x, γ, β) for all."""
        return with_functions(model, nested=False)

    def nested(model, specimen, folder):
        """One function per layer, which calls the two others."""
        return with_functions(model, nested=True)

    return [
        ("bert-script17-eager-functions", "bert", "script", 17, "eager", {}, leaves),
        ("bert-script17-sdpa-nested", "bert", "script", 17, "sdpa", {}, nested),
        ("opt_pre-script14-eager-functions", "opt_pre", "script", 14, "eager", {}, leaves),
        ("llama-script17-eager-nested", "llama", "script", 17, "eager", {}, nested),
        ("vit-dynamo18-sdpa-functions", "vit", "dynamo", 18, "sdpa", {}, leaves),
    ]


DOMAIN = "pkg.torch.nn.modules"


def with_functions(model, nested):
    opset = [o for o in model.opset_import]
    fixed = {i.name for i in model.graph.initializer}
    uses = Counter(x for n in model.graph.node for x in n.input)
    readers = {}
    for node in model.graph.node:
        for x in node.input:
            readers.setdefault(x, []).append(node)
    outputs = {o.name for o in model.graph.output}
    nodes, made, skipped = [], {}, set()

    def call(kind, inputs, output, name, body_inputs, body):
        if kind not in made:
            made[kind] = helper.make_function(DOMAIN, kind, body_inputs, ["y"], body, opset)
        nodes.append(helper.make_node(kind, inputs, [output], name=name, domain=DOMAIN))

    for node in model.graph.node:
        if node.name in skipped:
            continue
        if node.op_type == "MatMul" and node.input[1] in fixed:
            following = readers.get(node.output[0], [])
            add = following[0] if uses[node.output[0]] == 1 and node.output[0] not in outputs else None
            bias = [i for i in add.input if i in fixed] if add is not None and add.op_type == "Add" else []
            if bias:
                body = [
                    helper.make_node("MatMul", ["x", "w"], ["xw"], name="MatMul"),
                    helper.make_node("Add", ["xw", "b"], ["y"], name="Add"),
                ]
                call("Linear", [*node.input, bias[0]], add.output[0], node.name, ["x", "w", "b"], body)
                skipped.add(add.name)
            else:
                body = [helper.make_node("MatMul", ["x", "w"], ["y"], name="MatMul")]
                call("LinearWithoutBias", list(node.input), node.output[0], node.name, ["x", "w"], body)
        elif node.op_type == "LayerNormalization":
            body = copy.deepcopy(node)
            del body.input[:], body.output[:]
            body.input.extend(["x", "weight", "bias"])
            body.output.append("y")
            call("LayerNorm", list(node.input), node.output[0], node.name, ["x", "weight", "bias"], [body])
        else:
            nodes.append(node)
    functions_made = list(made.values())
    if nested:
        nodes, layers = group_layers(nodes, outputs, [*opset, helper.make_opsetid(DOMAIN, 1)])
        functions_made += layers
    result = copy.deepcopy(model)
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    result.functions.extend(functions_made)
    result.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.checker.check_model(result)
    return result


def group_layers(nodes, outputs, opset):
    """All nodes of a layer, found by their names, become one function; what it reads and gives are its inputs and
    outputs."""
    key = [next((f"Layer_{n}" for n in range(zoo.LAYERS) if f"layer.{n}/" in x.name or f"layers.{n}/" in x.name), None) for x in nodes]
    result, made = [], []
    for layer in dict.fromkeys(k for k in key if k):
        inside = [n for n, k in zip(nodes, key) if k == layer]
        given = {o for n in inside for o in n.output}
        takes = list(dict.fromkeys(i for n in inside for i in n.input if i and i not in given))
        read_outside = {i for n, k in zip(nodes, key) if k != layer for i in n.input} | outputs
        gives = [o for n in inside for o in n.output if o in read_outside]
        made.append(helper.make_function(DOMAIN, layer, takes, gives, inside, opset))
        call = helper.make_node(layer, takes, gives, name=layer, domain=DOMAIN)
        result.append((call, takes, gives))
    # Put the calls among the rest in an order in which every value exists before it is read.
    rest = [(n, list(n.input), list(n.output)) for n, k in zip(nodes, key) if k is None]
    pending, known, ordered = rest + result, None, []
    produced = {o for _, _, gives in pending for o in gives}
    known = set()
    while pending:
        ready = [p for p in pending if all(i not in produced or i in known for i in p[1])]
        assert ready, "a cycle between functions"
        for p in ready:
            ordered.append(p[0])
            known.update(p[2])
        pending = [p for p in pending if not any(p is r for r in ready)]
    return ordered, made


# float16 and bfloat16


def half_precision():
    def converter(keep_io):
        def change(model, specimen, folder):
            from onnxconverter_common import float16

            if not keep_io:
                specimen.inputs = [{**i, "dtype": "float16"} if i["dtype"] == "float32" else i for i in specimen.inputs]
            return float16.convert_float_to_float16(model, keep_io_types=keep_io)

        return change

    def by_onnx_runtime(model, specimen, folder):
        from onnxruntime.transformers.onnx_model import OnnxModel

        result = OnnxModel(model)
        result.convert_float_to_float16(keep_io_types=True)
        return result.model

    def stored_as(type_):
        """Matrices of the Linears are stored in a short type and cast to float32 when the model runs."""

        def change(model, specimen, folder):
            weights = {n.input[1] for n in model.graph.node if n.op_type in ("MatMul", "Gemm")}
            casts = []
            for initializer in model.graph.initializer:
                if initializer.name not in weights:
                    continue
                name = initializer.name
                array = numpy_helper.to_array(initializer)
                initializer.CopyFrom(short(array, type_, name + "_stored"))
                casts.append(helper.make_node("Cast", [name + "_stored"], [name], name=name + "/Cast", to=FLOAT))
            kept = [*casts, *model.graph.node]
            del model.graph.node[:]
            model.graph.node.extend(kept)
            return model

        return change

    half = {"dtype": torch.float16}
    return [
        ("bert-script17-eager-float16", "bert", "script", 17, "eager", {}, converter(True)),
        ("bert-script14-sdpa-float16ort", "bert", "script", 14, "sdpa", {}, by_onnx_runtime),
        ("gpt2-script13-eager-float16ort", "gpt2", "script", 13, "eager", {}, by_onnx_runtime),
        ("llama-script17-eager-float16ort", "llama", "script", 17, "eager", {}, by_onnx_runtime),
        ("llama-dynamo18-sdpa-halfmodule", "llama", "dynamo", 18, "sdpa", half, None),
        ("opt_pre-script17-eager-halfmodule", "opt_pre", "script", 17, "eager", half, None),
        ("vit-script17-sdpa-float16io", "vit", "script", 17, "sdpa", {}, converter(False)),
        ("bert-script17-sdpa-float16weights", "bert", "script", 17, "sdpa", {}, stored_as(HALF)),
        ("llama-script14-eager-bfloat16weights", "llama", "script", 14, "eager", {}, stored_as(BF16)),
        ("gpt2-dynamo18-eager-bfloat16weights", "gpt2", "dynamo", 18, "eager", {}, stored_as(BF16)),
        ("bert-dynamo18-eager-bfloat16module", "bert", "dynamo", 18, "eager", {"dtype": torch.bfloat16}, None),
    ]  # fmt: skip


def short(array, type_, name):
    """array as a tensor of float16 or bfloat16; the planted weights have eight significant bits and fit exactly."""
    if type_ == HALF:
        return numpy_helper.from_array(array.astype(np.float16), name)
    bits = (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return helper.make_tensor(name, BF16, array.shape, bits.tobytes(), raw=True)


# Decoders with past keys and values


def caches():
    def merged(model, specimen, folder):
        from make import export

        first = zoo.build(specimen.name, "eager", "none")
        without = export(first, folder / "first.onnx", "script", model.opset_import[0].version)
        specimen.inputs = [*specimen.inputs, zoo.switch("use_cache_branch", True)]
        return merge(without, model)

    past = {"cache": "past"}
    return [
        ("llama-script17-sdpa-past", "llama", "script", 17, "sdpa", past, None),
        ("llama-dynamo18-eager-past", "llama", "dynamo", 18, "eager", past, None),
        ("gpt2-script14-eager-past", "gpt2", "script", 14, "eager", past, None),
        ("gpt2-dynamo20-sdpa-past", "gpt2", "dynamo", 20, "sdpa", past, None),
        ("opt_pre-script17-eager-past", "opt_pre", "script", 17, "eager", past, None),
        ("llama-script17-eager-merged", "llama", "script", 17, "eager", {"cache": "past", "merged": True}, merged),
        ("gpt2-script14-eager-merged", "gpt2", "script", 14, "eager", {"cache": "past", "merged": True}, merged),
    ]


def merge(without, with_past):
    """One model with an If on use_cache_branch; initializers of equal content are shared outside, as merged decoders
    on the Hugging Face Hub are."""
    shared, by_content = [], {}

    def branch(model, name):
        rename = {}
        for initializer in model.graph.initializer:
            key = (initializer.data_type, tuple(initializer.dims), numpy_helper.to_array(initializer).tobytes())
            if key not in by_content:
                taken = {s.name for s in shared}
                unique = initializer.name if initializer.name not in taken else f"{initializer.name}_{name}"
                by_content[key] = unique
                tensor = TensorProto()
                tensor.CopyFrom(initializer)
                tensor.name = unique
                shared.append(tensor)
            rename[initializer.name] = by_content[key]
        # Values inside a branch keep the names of the export; those it gives out get one of their own.
        given = {o.name for o in model.graph.output}
        rename |= {o: f"{o}_{name}" for o in given}
        nodes = []
        for node in model.graph.node:
            node = copy.deepcopy(node)
            node.input[:] = [rename.get(i, i) for i in node.input]
            node.output[:] = [rename.get(o, o) for o in node.output]
            nodes.append(node)
        outputs = copy.deepcopy(list(model.graph.output))
        for o in outputs:
            o.name = rename[o.name]
        return helper.make_graph(nodes, name, [], outputs)

    then_branch, else_branch = branch(with_past, "with_past"), branch(without, "no_past")
    names = [o.name for o in with_past.graph.output]
    node = helper.make_node(
        "If", ["use_cache_branch"], names, name="optimum::if", then_branch=then_branch, else_branch=else_branch
    )
    outputs = [helper.make_tensor_value_info(o.name, FLOAT, [None] * len(o.type.tensor_type.shape.dim)) for o in with_past.graph.output]
    inputs = [*with_past.graph.input, helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])]
    graph = helper.make_graph([node], "merged", inputs, outputs, shared)
    model = helper.make_model(graph, opset_imports=list(with_past.opset_import), ir_version=with_past.ir_version)
    onnx.checker.check_model(model)
    return model


# The form that ONNX Runtime's generative model builder writes, node by node


def generative():
    def change(grouped):
        def make_one(model, specimen, folder):
            # GroupQueryAttention takes more than one row only when the cache is empty.
            specimen.inputs = [
                {**i, "shape": [*i["shape"][:2], 0, i["shape"][3]]} if "dynamic" in i else {**i, "shape": ["batch", zoo.TOKENS]}
                for i in specimen.inputs
            ]
            return generative_llama(specimen, grouped)

        return make_one

    past = {"cache": "past"}
    return [
        ("llama-helper-gqa", "llama_wide", None, 14, "eager", past, change(True)),
        ("llama-helper-rotary", "llama", None, 14, "eager", {}, change(False)),
    ]


def generative_llama(specimen, grouped):
    """Decoder of com.microsoft operators. grouped: GroupQueryAttention turns and caches; else RotaryEmbedding,
    repeated heads and MultiHeadAttention, and a last Linear as FusedMatMul on the [N, K] weight."""
    heads, kv_heads = (getattr(specimen.module.m.config, f"num_{w}_heads") for w in ("attention", "key_value"))
    size = zoo.HIDDEN // heads
    weights = {n: p.detach().numpy() for n, p in specimen.module.m.named_parameters()}
    config = specimen.module.m.config
    nodes, initializers = [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(op, name, inputs, outputs=1, domain="", **attributes):
        out = [f"{name}/output_{n}" for n in range(outputs)] if isinstance(outputs, int) else outputs
        nodes.append(helper.make_node(op, inputs, out, name=name, domain=domain, **attributes))
        return out[0] if len([o for o in out if o]) == 1 else out

    def linear(path, x):
        return node("MatMul", f"/{path.replace('.', '/')}/MatMul", [x, constant(f"{path}.MatMul.weight", weights[f"{path}.weight"].T)])

    batch_sequence = ["batch_size", "sequence_length"]
    total = "total_sequence_length" if grouped else "sequence_length"
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, batch_sequence),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", total]),
    ]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, [*batch_sequence, zoo.VOCABULARY])]
    angle = np.arange(zoo.POSITIONS)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    caches_ = [constant("cos_cache", np.cos(angle).astype("f")), constant("sin_cache", np.sin(angle).astype("f"))]
    one = constant("one", np.array([1], np.int64))
    if grouped:
        lengths = node("ReduceSum", "/attn_mask/ReduceSum", ["attention_mask", one], keepdims=0)
        lengths = node("Sub", "/attn_mask/Sub", [lengths, one])
        lengths = node("Cast", "/attn_mask/Cast", [lengths], to=TensorProto.INT32)
        shape = node("Shape", "/attn_mask/Shape", ["attention_mask"])
        total_length = node("Gather", "/attn_mask/Gather", [shape, constant("index_1", np.array(1, np.int64))], axis=0)
        total_length = node("Cast", "/attn_mask/Cast_1", [total_length], to=TensorProto.INT32)
    else:
        shape = node("Shape", "/positions/Shape", ["input_ids"])
        length = node("Gather", "/positions/Gather", [shape, constant("index_1", np.array(1, np.int64))], axis=0)
        zero, step = constant("zero", np.array(0, np.int64)), constant("step", np.array(1, np.int64))
        positions = node("Range", "/positions/Range", [zero, length, step])
        rows = node("Unsqueeze", "/positions/Unsqueeze", [positions, constant("axis_0", np.array([0], np.int64))])
        positions = node("Expand", "/positions/Expand", [rows, shape])
        valid = node("Cast", "/attn_mask/Cast", ["attention_mask"], to=TensorProto.INT32)
    x = node("Gather", "/model/embed_tokens/Gather", [constant("model.embed_tokens.weight", weights["model.embed_tokens.weight"]), "input_ids"])
    skip, update = x, None

    def norm(path, final=False):
        """The first norm stands alone; each other one takes the sum of the residual and what the block added."""
        nonlocal skip
        gamma = constant(f"{path}.weight", weights[f"{path}.weight"])
        name = f"/{path.replace('.', '/')}"
        if update is None:
            return node("SimplifiedLayerNormalization", f"{name}/LayerNorm", [skip, gamma], epsilon=config.rms_norm_eps, axis=-1, stash_type=1)
        out = [f"{name}/output_0", "", "", "" if final else f"{name}/output_3"]
        node("SkipSimplifiedLayerNormalization", f"{name}/SkipLayerNorm", [skip, update, gamma], out, "com.microsoft", epsilon=config.rms_norm_eps)
        skip = out[3]
        return out[0]

    for number in range(zoo.LAYERS):
        layer = f"model.layers.{number}"
        n = norm(f"{layer}.input_layernorm")
        q, k, v = (linear(f"{layer}.self_attn.{p}_proj", n) for p in "qkv")
        path = f"/{layer.replace('.', '/')}/attn"
        if grouped:
            old = [f"past_key_values.{number}.{which}" for which in ("key", "value")]
            new = [f"present.{number}.{which}" for which in ("key", "value")]
            for name, length in zip(old, ["past_sequence_length"] * 2):
                inputs.append(helper.make_tensor_value_info(name, FLOAT, ["batch_size", kv_heads, length, size]))
            for name in new:
                outputs.append(helper.make_tensor_value_info(name, FLOAT, ["batch_size", kv_heads, total, size]))
            attended = f"{path}/GroupQueryAttention/output_0"
            node(
                "GroupQueryAttention", f"{path}/GroupQueryAttention", [q, k, v, *old, lengths, total_length, *caches_],
                [attended, *new], "com.microsoft", num_heads=heads, kv_num_heads=kv_heads, do_rotary=1,
                rotary_interleaved=0, scale=size**-0.5,
            )  # fmt: skip
        else:
            q, k = (
                node("RotaryEmbedding", f"{path}/{w}_rotary/RotaryEmbedding", [t, positions, *caches_], 1, "com.microsoft", num_heads=h, rotary_embedding_dim=0)
                for w, t, h in (("q", q, heads), ("k", k, kv_heads))
            )  # fmt: skip
            k, v = (repeat_heads(node, constant, f"{path}/{w}_repeat", t, (kv_heads, heads // kv_heads, size)) for w, t in (("k", k), ("v", v)))
            attended = node("MultiHeadAttention", f"{path}/MultiHeadAttention", [q, k, v, "", valid], 1, "com.microsoft",
                            num_heads=heads, scale=size**-0.5, unidirectional=1)  # fmt: skip
        update = linear(f"{layer}.self_attn.o_proj", attended)
        n = norm(f"{layer}.post_attention_layernorm")
        gate, up = linear(f"{layer}.mlp.gate_proj", n), linear(f"{layer}.mlp.up_proj", n)
        path = f"/{layer.replace('.', '/')}/mlp"
        act = node("Mul", f"{path}/act_fn/Mul", [gate, node("Sigmoid", f"{path}/act_fn/Sigmoid", [gate])])
        update = linear(f"{layer}.mlp.down_proj", node("Mul", f"{path}/Mul", [act, up]))
    n = norm("model.norm", final=True)
    if grouped:
        nodes.append(helper.make_node("MatMul", [n, constant("lm_head.MatMul.weight", weights["lm_head.weight"].T)], ["logits"], name="/lm_head/MatMul"))
    else:
        nodes.append(helper.make_node("FusedMatMul", [n, constant("lm_head.weight", weights["lm_head.weight"])], ["logits"], name="/lm_head/FusedMatMul", domain="com.microsoft", transB=1, alpha=1.0))
    graph = helper.make_graph(nodes, "main_graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7, producer_name="onnxruntime-genai")


def repeat_heads(node, constant, path, x, sizes):
    """[B, S, kv · D] → [B, S, kv · groups · D], sizes = kv, groups, D: each key/value head serves its query heads."""
    kv_heads, groups, size = sizes

    def shape(name, *values):
        return constant(f"{path}.{name}", np.array(values, np.int64))

    x = node("Reshape", f"{path}/Reshape", [x, shape("split", 0, 0, kv_heads, 1, size)])
    lengths = node("Shape", f"{path}/Shape", [x])
    ones = node("Slice", f"{path}/Slice", [lengths, shape("zero", 0), shape("two", 2), shape("axis", 0)])
    repeated = shape("repeated", kv_heads, groups, size)
    target = node("Concat", f"{path}/Concat", [ones, repeated], axis=0)
    x = node("Expand", f"{path}/Expand", [x, target])
    return node("Reshape", f"{path}/Reshape_1", [x, shape("merge", 0, 0, kv_heads * groups * size)])
