"""Tiny transformers of every architecture in the table, with random weights and planted outlier channels.

`build(NAME, ATTENTION)` gives a `Specimen`: a torch module with positional inputs, what its inputs are, and how many
Linears and norms torch itself counts in it. The counts come from running the modules, not from any ONNX file: they are
what the tests hold the tool against.

Outliers are planted as trained models have them: a few channels behind each norm are large and one-sided (γ · n + β
with a large β), a few channels of each feed-forward layer and of V are large, and the Linears that read large channels
have small weights there, so that the model depends on all channels alike. Plain int8 loses the ordinary channels.
"""

import inspect
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers as T
from transformers.models.whisper.modeling_whisper import WhisperEncoder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from specified import arrays  # noqa: E402  (needs the path above)

HIDDEN, HEADS, KV_HEADS, FFN, VOCABULARY, POSITIONS, LAYERS = 32, 4, 2, 64, 64, 64, 2
TOKENS = 16
HEAD = HIDDEN // HEADS

# How each architecture calls the Linear that makes the inner channels of the feed-forward layer (of a gated one: the
# half that no activation follows), and the one that makes V.
INNER = ("intermediate.dense", "lin1", "layers.0.ffn", "c_fc", "dense_h_to_4h", "fc1", "up_proj", "wi", "wi_1", "mlp.Wi")
VALUE = ("value", "v_proj", "v_lin", "Attention.v", "c_attn", "query_key_value", "Wqkv")


def ids(name="input_ids", low=3):
    return {"name": name, "dtype": "int64", "shape": ["batch", TOKENS], "kind": "ids", "low": low, "high": VOCABULARY}


def mask(name="attention_mask"):
    return {"name": name, "dtype": "int64", "shape": ["batch", TOKENS], "kind": "mask"}


def normal(name, *shape):
    return {"name": name, "dtype": "float32", "shape": ["batch", *shape], "kind": "normal"}


def hidden(name="encoder_hidden_states", tokens=TOKENS):
    """The output of an encoder: a few channels are large."""
    return {**normal(name, tokens, HIDDEN), "kind": "hidden", "outliers": {"5": 20.0, "19": -14.0}}


def past(layer, which, heads, size, length=6):
    return {**normal(f"past_key_values.{layer}.{which}", heads, length, size), "dynamic": [0, 2]}


def switch(name, value):
    """One truth value for the whole batch."""
    return {"name": name, "dtype": "bool", "shape": [1], "kind": "bool", "value": value}


def without_past(inputs):
    """What the other branch of a merged decoder is fed: nothing in the cache, but tensors of length 1 in its place."""
    changed = []
    for i in inputs:
        if i["kind"] == "bool":
            i = switch(i["name"], not i["value"])
        elif i["name"].startswith("past_key_values"):
            i = {**i, "kind": "zeros", "shape": ["batch", i["shape"][1], 1, i["shape"][3]]}
        elif i["kind"] == "mask":
            i = mask(i["name"])
        changed.append(i)
    return changed


TEXT = [ids(), mask()]
PIXELS = [normal("pixel_values", 3, 16, 16)]


def bert_like(name, num_attention_heads=HEADS, **more):
    return getattr(T, name + "Config")(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=num_attention_heads, intermediate_size=FFN,
        vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, **more,
    )  # fmt: skip


def llama_like(name, **more):
    return bert_like(name, **{"num_key_value_heads": KV_HEADS, "tie_word_embeddings": False, "pad_token_id": 0, **more})


def opt(pre):
    return T.OPTConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=FFN, vocab_size=VOCABULARY,
        word_embed_proj_dim=HIDDEN, max_position_embeddings=POSITIONS, do_layer_norm_before=pre,
    )  # fmt: skip


def t5(**more):
    return T.T5Config(
        d_model=HIDDEN, num_layers=LAYERS, num_heads=HEADS, d_kv=HEAD, d_ff=FFN, vocab_size=VOCABULARY,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, decoder_start_token_id=0, **more,
    )  # fmt: skip


def vision(name, **more):
    return getattr(T, name)(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FFN, image_size=16,
        patch_size=4, **more,
    )  # fmt: skip


def whisper():
    return T.WhisperConfig(
        d_model=HIDDEN, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS, num_mel_bins=8,
        decoder_attention_heads=HEADS, encoder_ffn_dim=FFN, decoder_ffn_dim=FFN, max_source_positions=16,
        max_target_positions=POSITIONS, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip


# architecture: model class, configuration, inputs, outputs
ZOO = {
    "bert": (T.BertModel, lambda: bert_like("Bert"), TEXT, ["last_hidden_state"]),
    "bert_pooled": (T.BertModel, lambda: bert_like("Bert"), TEXT, ["last_hidden_state", "pooler_output"]),
    "bert_classifier": (
        T.BertForSequenceClassification,
        lambda: bert_like("Bert", num_labels=8),
        TEXT,
        ["logits"],
    ),
    "roberta": (T.RobertaModel, lambda: bert_like("Roberta"), TEXT, ["last_hidden_state"]),
    "distilbert": (
        T.DistilBertModel,
        lambda: T.DistilBertConfig(
            dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=FFN, vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
        ),
        TEXT,
        ["last_hidden_state"],
    ),
    "albert": (T.AlbertModel, lambda: bert_like("Albert", embedding_size=16), TEXT, ["last_hidden_state"]),
    "electra": (T.ElectraModel, lambda: bert_like("Electra", embedding_size=16), TEXT, ["last_hidden_state"]),
    "gpt2": (
        T.GPT2LMHeadModel,
        lambda: T.GPT2Config(
            n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FFN, vocab_size=VOCABULARY, n_positions=POSITIONS,
            bos_token_id=1, eos_token_id=2,
        ),
        TEXT,
        ["logits"],
    ),
    "neox": (T.GPTNeoXForCausalLM, lambda: bert_like("GPTNeoX", rotary_pct=0.5), TEXT, ["logits"]),
    "neox_serial": (
        T.GPTNeoXForCausalLM,
        lambda: bert_like("GPTNeoX", rotary_pct=0.5, use_parallel_residual=False),
        TEXT,
        ["logits"],
    ),
    "opt_pre": (T.OPTForCausalLM, lambda: opt(True), TEXT, ["logits"]),
    "opt_post": (T.OPTForCausalLM, lambda: opt(False), TEXT, ["logits"]),
    "bloom": (
        T.BloomForCausalLM,
        lambda: T.BloomConfig(hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCABULARY),
        TEXT,
        ["logits"],
    ),
    "llama": (T.LlamaForCausalLM, lambda: llama_like("Llama"), TEXT, ["logits"]),
    "llama_wide": (  # heads of 16 channels: GroupQueryAttention turns no narrower ones
        T.LlamaForCausalLM,
        lambda: llama_like("Llama", num_attention_heads=2, num_key_value_heads=1),
        TEXT,
        ["logits"],
    ),
    "mistral": (T.MistralForCausalLM, lambda: llama_like("Mistral", sliding_window=8), TEXT, ["logits"]),
    "qwen2": (T.Qwen2ForCausalLM, lambda: llama_like("Qwen2", tie_word_embeddings=True), TEXT, ["logits"]),
    "gemma": (T.GemmaForCausalLM, lambda: llama_like("Gemma", num_key_value_heads=1, head_dim=HEAD), TEXT, ["logits"]),
    "falcon": (  # all query heads share one key and one value
        T.FalconForCausalLM,
        lambda: T.FalconConfig(
            hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, vocab_size=VOCABULARY,
            ffn_hidden_size=FFN, multi_query=True, alibi=False,
        ),
        TEXT,
        ["logits"],
    ),
    "phi": (
        T.PhiForCausalLM,
        lambda: bert_like("Phi", tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        TEXT,
        ["logits"],
    ),
    "t5_encoder": (T.T5EncoderModel, t5, TEXT, ["last_hidden_state"]),
    "t5_decoder": (
        T.T5ForConditionalGeneration,
        lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        [ids(), hidden(), mask("encoder_attention_mask")],
        ["logits"],
    ),
    "vit": (T.ViTForImageClassification, lambda: vision("ViTConfig", num_labels=12), PIXELS, ["logits"]),
    "deit": (T.DeiTModel, lambda: vision("DeiTConfig"), PIXELS, ["last_hidden_state"]),
    "clip_text": (
        T.CLIPTextModelWithProjection,
        lambda: bert_like("CLIPText", projection_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        TEXT,
        ["text_embeds", "last_hidden_state"],
    ),
    "clip_vision": (
        T.CLIPVisionModelWithProjection,
        lambda: vision("CLIPVisionConfig", projection_dim=16),
        PIXELS,
        ["image_embeds", "last_hidden_state"],
    ),
    "whisper_encoder": (WhisperEncoder, whisper, [normal("input_features", 8, 32)], ["last_hidden_state"]),
    "whisper_decoder": (
        T.WhisperForConditionalGeneration,
        whisper,
        [ids(), mask(), hidden()],
        ["logits"],
    ),
    "modernbert": (
        T.ModernBertModel,
        lambda: bert_like(
            "ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
            local_attention=8, global_attn_every_n_layers=2,
        ),
        TEXT,
        ["last_hidden_state"],
    ),
}  # fmt: skip


@dataclass
class Specimen:
    name: str
    module: torch.nn.Module  # positional inputs in the order of `inputs`, a tuple of outputs
    inputs: list
    outputs: list
    linears: dict = field(default_factory=dict)  # name of a Linear: how often it runs
    norms: int = 0
    merged_linears: int = 0  # how many fewer Linears a variant has because it joined some

    @property
    def block_linears(self):
        """Runs of Linears inside the repeated blocks."""
        return sum(n for name, n in self.linears.items() if in_block(name))

    @property
    def head_linears(self):
        """Runs of the others: embeddings' projections, poolers, language-model heads."""
        return sum(self.linears.values()) - self.block_linears


def in_block(name):
    return any(part in f".{name}." for part in (".layer.", ".layers.", ".h.", ".block.", ".albert_layers."))


class Positional(torch.nn.Module):
    """The model with positional inputs, as exporters want them."""

    def __init__(self, model, inputs, outputs, with_past):
        super().__init__()
        self.m = model
        self.names = [i["name"] for i in inputs]
        self.outputs = outputs
        self.with_past = with_past

    def forward(self, *values):
        given = dict(zip(self.names, values))
        if isinstance(self.m, T.T5ForConditionalGeneration):
            state = self.m.decoder(**given, use_cache=False).last_hidden_state
            if self.m.config.tie_word_embeddings:
                state = state * self.m.model_dim**-0.5
            return (self.m.lm_head(state),)
        if isinstance(self.m, T.WhisperForConditionalGeneration):
            return (self.m.proj_out(self.m.model.decoder(**given, use_cache=False).last_hidden_state),)
        if self.with_past:
            return self.cached(given)
        if "use_cache" in inspect.signature(self.m.forward).parameters:
            given["use_cache"] = False
        result = self.m(**given)
        return tuple(result[name] for name in self.outputs)

    def cached(self, given):
        """Past keys and values in, all keys and values out, both as flat tensors."""
        cache = T.DynamicCache(config=self.m.config)
        for layer in range(LAYERS):
            pair = [given.pop(f"past_key_values.{layer}.{which}", None) for which in ("key", "value")]
            if pair[0] is not None:
                cache.update(*pair, layer)
        result = self.m(**given, past_key_values=cache, use_cache=True)
        present = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return (result.logits, *present)


def build(name, attention, cache=None):
    """cache: None, "none" (present keys and values come out, none go in) or "past" (both)."""
    model_class, config, inputs, outputs = ZOO[name]
    config = config()
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = model_class(config).eval()
    if name in ("bert", "roberta", "albert"):
        model.pooler = None
    if name == "deit":
        model.pooler = None
    inputs, outputs = list(inputs), list(outputs)
    if cache:
        heads = getattr(config, "num_key_value_heads", None) or HEADS
        pairs = [(layer, which) for layer in range(LAYERS) for which in ("key", "value")]
        if cache == "past":
            inputs[1] = {**inputs[1], "shape": ["batch", TOKENS + 6]}
            size = HIDDEN // config.num_attention_heads
            inputs += [past(layer, which, heads, size) for layer, which in pairs]
        outputs += [f"present.{layer}.{which}" for layer, which in pairs]
    specimen = Specimen(name, Positional(model, inputs, outputs, cache is not None), inputs, outputs)
    specimen.module.eval()
    plant(specimen)
    count(specimen)
    return specimen


def tensors(inputs, rows, seed):
    return tuple(torch.from_numpy(a) for a in arrays(inputs, rows, seed).values())


def is_linear(module):
    return type(module).__name__ in ("Linear", "Conv1D") or isinstance(module, torch.nn.Linear)


def is_norm(module):
    return "Norm" in type(module).__name__ and not list(module.children())


def count(specimen):
    """Runs of Linears and norms in one forward pass."""
    hooks = []
    for name, module in specimen.module.m.named_modules():
        if is_linear(module):

            def linear(*_, name=name):
                specimen.linears[name] = specimen.linears.get(name, 0) + 1

            hooks.append(module.register_forward_hook(linear))
        elif is_norm(module):

            def norm(*_):
                specimen.norms += 1

            hooks.append(module.register_forward_hook(norm))
    with torch.no_grad():
        specimen.module(*tensors(specimen.inputs, 2, 0))
    for hook in hooks:
        hook.remove()


def rounded(values):
    """To eight significant bits: bfloat16 holds them exactly, and the committed files compress better."""
    return torch.as_tensor(values, dtype=torch.float32).to(torch.bfloat16).to(torch.float32)


def plant(specimen):
    """Sets all weights, in the order in which the modules run on sample data."""
    random = np.random.RandomState(2304)
    model = specimen.module.m
    order = []
    hooks = [
        m.register_forward_pre_hook(lambda m, _, name=name: order.append((name, m)))
        for name, m in model.named_modules()
        if is_linear(m) or is_norm(m)
    ]
    sample = tensors([{**i, "kind": "ones"} if i["kind"] == "mask" else i for i in specimen.inputs], 8, 3)
    sample = tuple(torch.ones_like(t) if i["kind"] == "mask" else t for t, i in zip(sample, specimen.inputs))
    with torch.no_grad():
        specimen.module(*sample)
    for hook in hooks:
        hook.remove()
    # Nothing but the output reads the last norm of an encoder: outliers there would only make its error look small.
    last_linear = max(i for i, (name, m) in enumerate(order) if is_linear(m) and "pooler" not in name)
    spared = {id(m) for i, (_, m) in enumerate(order) if is_norm(m) and i > last_linear}
    done = set()

    def set_norm(module, args):
        if id(module) in done:
            return
        done.add(id(module))
        number, size = len(done), module.weight.shape[0]
        one_plus = "Gemma" in type(module).__name__
        bias = getattr(module, "bias", None)
        module.weight.fill_(0.0 if one_plus else 1.0)
        if bias is not None:
            bias.zero_()
        unit = module.forward(*args).reshape(-1, size)
        ordinary = 1 / unit.std(0).median().item()
        gamma = ordinary * (1 + 0.1 * random.standard_normal(size))
        beta = 0.1 * random.standard_normal(size)
        if id(module) not in spared:
            for k in range(3 if size > 16 else 2):
                channel = (7 + 11 * k + 3 * number) % size
                if bias is None:
                    gamma[channel] = ordinary * (12 + 4 * k)
                else:
                    gamma[channel], beta[channel] = 2 * ordinary, (-1) ** k * (24 + 6 * k)
        else:
            gamma /= large(unit)
        module.weight.copy_(rounded(gamma - one_plus))
        if bias is not None:
            bias.copy_(rounded(beta))

    def large(x):
        """How many times larger than the median channel: [C], 1 for ordinary channels. x: [T, C]"""
        size = x.abs().amax(0).numpy()
        ratio = size / np.median(size)
        return np.where(ratio > 4, ratio, 1)

    def set_linear(name, module, x):
        if id(module) in done:
            return
        done.add(id(module))
        if id(module.weight) in tied:
            module.weight.copy_(rounded(module.weight / large(x.reshape(-1, module.weight.shape[1]))))
            return
        weight = module.weight  # [N, K] of Linear, [K, N] of Conv1D
        is_nk = isinstance(module, torch.nn.Linear)
        n, k = weight.shape if is_nk else reversed(weight.shape)
        w = random.standard_normal((n, k)) / k**0.5
        b = 0.1 * random.standard_normal(n)
        if name.endswith(INNER):
            hot = [5 + number * FFN // 4 for number in range(4)]
            hot = [h + (n - FFN) for h in hot]  # ModernBERT: the second half
            w[hot] *= 10
        if name.endswith(VALUE):
            for head in (0, HEADS // 2 - 1):
                if name.endswith("query_key_value"):  # interleaved: heads × (q, k, v) × D
                    w[head * 3 * HEAD + 2 * HEAD + 3] *= 6
                else:  # V alone, or q, k, v one after the other
                    start = {HIDDEN * 3: 2 * HIDDEN}.get(n, 0)
                    w[start + (head * HEAD + 3) % (n - start)] *= 6
        w /= large(x.reshape(-1, k))
        module.weight.copy_(rounded(w if is_nk else w.T.copy()))
        if module.bias is not None:
            module.bias.copy_(rounded(b))

    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                deviation = 0.7 if parameter.dim() == 2 else 0.1
                parameter.copy_(rounded(deviation * random.standard_normal(tuple(parameter.shape))))
        tied = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        hooks = []
        for name, module in model.named_modules():
            if is_norm(module):
                hooks.append(module.register_forward_pre_hook(set_norm))
            elif is_linear(module):
                hooks.append(module.register_forward_pre_hook(lambda m, a, name=name: set_linear(name, m, a[0])))
        specimen.module(*sample)
    for hook in hooks:
        hook.remove()
