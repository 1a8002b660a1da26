"""Small transformers of architectures that no test of this project has, with random weights and planted outliers.

MODELS: name -> (configuration, model, its arguments, inputs). `module(name, attention)` builds one.
"""

import inspect

import torch
import transformers

WIDTH, LAYERS, HEADS, INNER, VOCABULARY, TOKENS = 128, 2, 4, 256, 300, 24
OUTLIERS = 40  # one channel in so many of each norm is large

SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
ENCODER = SIZES | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = ENCODER | {"num_key_value_heads": 2, "head_dim": WIDTH // HEADS, "bos_token_id": 1, "eos_token_id": 2}
BART = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
IMAGE = SIZES | {"image_size": 32, "patch_size": 8}
SOUND = SIZES | {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY, "n_positions": 64}
T5 = {"d_model": WIDTH, "d_kv": 32, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS, "vocab_size": VOCABULARY}
XLM = {
    "emb_dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_words": VOCABULARY,
    "max_position_embeddings": 64,
}
FALCON = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY}
PYRAMID = {"depths": [1, 1], "hidden_sizes": [32, 64], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 32,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}


def text(rows):
    return {
        "input_ids": torch.randint(3, VOCABULARY, (rows, TOKENS)),
        "attention_mask": torch.ones(rows, TOKENS, dtype=torch.long),
    }


def ids(rows):
    return {"input_ids": text(rows)["input_ids"]}


def pairs(rows):
    return text(rows) | {"decoder_input_ids": torch.randint(3, VOCABULARY, (rows, 16))}


def pixels(rows):
    return {"pixel_values": torch.randn(rows, 3, 32, 32)}


def large_pixels(rows):
    return {"pixel_values": torch.randn(rows, 3, 64, 64)}


def samples(rows):
    return {"input_values": torch.randn(rows, 3200)}


def spectrum(rows):
    return {"input_values": torch.randn(rows, 64, 32)}


MODELS = {
    "falcon_grouped": (
        "FalconConfig",
        "FalconModel",
        FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True},
        text,
    ),
    "mpt": (
        "MptConfig",
        "MptModel",
        {
            "d_model": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "vocab_size": VOCABULARY,
            "max_seq_len": 64,
            "expansion_ratio": 2,
        },
        text,
    ),
    "stablelm": ("StableLmConfig", "StableLmModel", DECODER | {"use_qkv_bias": True}, text),
    "stablelm_parallel": (
        "StableLmConfig",
        "StableLmModel",
        DECODER | {"use_parallel_residual": True, "qk_layernorm": True},
        text,
    ),
    "starcoder2": ("Starcoder2Config", "Starcoder2Model", DECODER, text),
    "gpt_bigcode": ("GPTBigCodeConfig", "GPTBigCodeModel", GPT | {"n_inner": INNER}, text),
    "gptj": ("GPTJConfig", "GPTJModel", GPT | {"rotary_dim": 16}, text),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoModel",
        {
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "intermediate_size": INNER,
        },
        text,
    ),
    "codegen": ("CodeGenConfig", "CodeGenModel", GPT | {"rotary_dim": 16}, text),
    "qwen3": ("Qwen3Config", "Qwen3Model", DECODER, text),
    "olmo": ("OlmoConfig", "OlmoModel", DECODER, text),
    "olmo2": ("Olmo2Config", "Olmo2Model", DECODER, text),
    "cohere": ("CohereConfig", "CohereModel", DECODER, text),
    "granite": (
        "GraniteConfig",
        "GraniteModel",
        DECODER | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
        text,
    ),
    "gemma2": ("Gemma2Config", "Gemma2Model", DECODER | {"sliding_window": 16}, text),
    "gemma3": ("Gemma3TextConfig", "Gemma3TextModel", DECODER | {"sliding_window": 16}, text),
    "phi3": ("Phi3Config", "Phi3Model", DECODER, text),
    "smollm3": ("SmolLM3Config", "SmolLM3Model", DECODER, text),
    "nemotron": ("NemotronConfig", "NemotronModel", DECODER, text),
    "persimmon": ("PersimmonConfig", "PersimmonModel", DECODER, text),
    "xglm": (
        "XGLMConfig",
        "XGLMModel",
        {
            "d_model": WIDTH,
            "ffn_dim": INNER,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
        },
        text,
    ),
    "biogpt": ("BioGptConfig", "BioGptModel", ENCODER, text),
    "opt_projected": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "hidden_size": WIDTH,
            "ffn_dim": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
        },
        text,
    ),
    "llama_biases": ("LlamaConfig", "LlamaForCausalLM", DECODER | {"attention_bias": True, "mlp_bias": True}, text),
    "mamba": (
        "MambaConfig",
        "MambaModel",
        {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY, "state_size": 8},
        ids,
    ),
    "ernie": ("ErnieConfig", "ErnieModel", ENCODER, text),
    "camembert": ("CamembertConfig", "CamembertModel", ENCODER, text),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaForSequenceClassification", ENCODER, text),
    "mpnet": ("MPNetConfig", "MPNetModel", ENCODER, text),
    "deberta": ("DebertaConfig", "DebertaModel", ENCODER | RELATIVE | {"max_relative_positions": 32}, text),
    "deberta_v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        ENCODER | RELATIVE | {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
        text,
    ),
    "funnel": (
        "FunnelConfig",
        "FunnelBaseModel",
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 1],
            "d_model": WIDTH,
            "n_head": HEADS,
            "d_head": 32,
            "d_inner": INNER,
        },
        text,
    ),
    "convbert": ("ConvBertConfig", "ConvBertModel", ENCODER | {"embedding_size": WIDTH}, text),
    "layoutlm": ("LayoutLMConfig", "LayoutLMModel", ENCODER, text),
    "rembert": ("RemBertConfig", "RemBertModel", ENCODER | {"input_embedding_size": 64}, text),
    "splinter": ("SplinterConfig", "SplinterModel", ENCODER, text),
    "xlnet": (
        "XLNetConfig",
        "XLNetModel",
        {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": INNER},
        text,
    ),
    "flaubert": ("FlaubertConfig", "FlaubertModel", XLM, text),
    "xlm": ("XLMConfig", "XLMModel", XLM, text),
    "esm": ("EsmConfig", "EsmModel", ENCODER | {"mask_token_id": 3, "position_embedding_type": "rotary"}, text),
    "nomic": ("NomicBertConfig", "NomicBertModel", ENCODER, text),
    "dpr": ("DPRConfig", "DPRQuestionEncoder", ENCODER | {"projection_dim": 32}, text),
    "blip_text": ("BlipTextConfig", "BlipTextModel", ENCODER, text),
    "clipseg_text": ("CLIPSegTextConfig", "CLIPSegTextModel", ENCODER, text),
    "umt5": ("UMT5Config", "UMT5EncoderModel", T5, text),
    "longt5": ("LongT5Config", "LongT5EncoderModel", T5 | {"local_radius": 8}, text),
    "bart": ("BartConfig", "BartModel", BART, pairs),
    "mbart": ("MBartConfig", "MBartModel", BART, pairs),
    "marian": ("MarianConfig", "MarianModel", BART, pairs),
    "pegasus": ("PegasusConfig", "PegasusModel", BART, pairs),
    "m2m100": ("M2M100Config", "M2M100Model", BART, pairs),
    "beit": ("BeitConfig", "BeitModel", IMAGE, pixels),
    "dinov2": ("Dinov2Config", "Dinov2Model", IMAGE, pixels),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", IMAGE, pixels),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", IMAGE, pixels),
    "ijepa": ("IJepaConfig", "IJepaModel", IMAGE, pixels),
    "yolos": (
        "YolosConfig",
        "YolosForObjectDetection",
        IMAGE | {"image_size": [32, 32], "num_detection_tokens": 4},
        pixels,
    ),
    "data2vec": ("Data2VecVisionConfig", "Data2VecVisionModel", IMAGE, pixels),
    "swin": ("SwinConfig", "SwinModel", WINDOWS, pixels),
    "swin_v2": ("Swinv2Config", "Swinv2Model", WINDOWS, pixels),
    "segformer": (
        "SegformerConfig",
        "SegformerModel",
        PYRAMID | {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [3, 3], "strides": [2, 2]},
        pixels,
    ),
    "pvt": (
        "PvtConfig",
        "PvtModel",
        PYRAMID
        | {
            "image_size": 64,
            "num_encoder_blocks": 2,
            "sequence_reduction_ratios": [2, 1],
            "patch_sizes": [4, 2],
            "strides": [4, 2],
        },
        large_pixels,
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextModel",
        {"num_stages": 2, "hidden_sizes": [32, 64], "depths": [1, 1]},
        pixels,
    ),
    "levit": ("LevitConfig", "LevitModel", {"image_size": 64}, large_pixels),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2Model", SOUND, samples),
    "hubert": ("HubertConfig", "HubertModel", SOUND, samples),
    "wavlm": ("WavLMConfig", "WavLMModel", SOUND, samples),
    "ast": ("ASTConfig", "ASTModel", IMAGE | {"max_length": 64, "num_mel_bins": 32}, spectrum),
    # Of transformers 5.24, most of them.
    "apertus": ("ApertusConfig", "ApertusForCausalLM", DECODER, text),
    "arcee": ("ArceeConfig", "ArceeForCausalLM", DECODER, text),
    "bitnet": ("BitNetConfig", "BitNetForCausalLM", DECODER, text),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", DECODER | {"sliding_window": 8}, text),
    "diffllama": ("DiffLlamaConfig", "DiffLlamaForCausalLM", DECODER, text),
    "doge": ("DogeConfig", "DogeForCausalLM", DECODER, text),
    "ernie45": ("Ernie4_5Config", "Ernie4_5ForCausalLM", DECODER, text),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM", DECODER | {"sliding_window": 8}, text),
    "glm": ("GlmConfig", "GlmForCausalLM", DECODER, text),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", DECODER, text),
    "helium": ("HeliumConfig", "HeliumForCausalLM", DECODER, text),
    "hunyuan": ("HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM", DECODER, text),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", DECODER, text),
    "ministral": ("MinistralConfig", "MinistralForCausalLM", DECODER | {"sliding_window": 8}, text),
    "nanochat": ("NanoChatConfig", "NanoChatForCausalLM", DECODER, text),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", DECODER | {"sliding_window": 8}, text),
    "seedoss": ("SeedOssConfig", "SeedOssForCausalLM", DECODER, text),
    "vaultgemma": ("VaultGemmaConfig", "VaultGemmaForCausalLM", DECODER | {"sliding_window": 8}, text),
    "modernbert_decoder": ("ModernBertDecoderConfig", "ModernBertDecoderForCausalLM", ENCODER, text),
    "minicpm3": (
        "MiniCPM3Config",
        "MiniCPM3ForCausalLM",
        DECODER | {"num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32},
        text,
    ),
    "roformer": ("RoFormerConfig", "RoFormerModel", ENCODER, text),
    "roberta_prelayernorm": ("RobertaPreLayerNormConfig", "RobertaPreLayerNormModel", ENCODER, text),
    "mobilebert": (
        "MobileBertConfig",
        "MobileBertModel",
        ENCODER | {"embedding_size": 64, "intra_bottleneck_size": 64, "true_hidden_size": 64},
        text,
    ),
    "eurobert": ("EuroBertConfig", "EuroBertModel", DECODER, text),
    "megatron_bert": ("MegatronBertConfig", "MegatronBertModel", ENCODER, text),
    "ibert": ("IBertConfig", "IBertModel", ENCODER, text),
    "big_bird": ("BigBirdConfig", "BigBirdModel", ENCODER | {"attention_type": "original_full"}, text),
    "vit_mae": ("ViTMAEConfig", "ViTMAEModel", IMAGE, pixels),
    "vit_msn": ("ViTMSNConfig", "ViTMSNModel", IMAGE, pixels),
    "dinov2_reg": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", IMAGE, pixels),
    "poolformer": (
        "PoolFormerConfig",
        "PoolFormerModel",
        {"depths": [1, 1], "hidden_sizes": [32, 64], "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1], "num_encoder_blocks": 2},
        pixels,
    ),
    "mobilevit": (
        "MobileViTConfig",
        "MobileViTModel",
        {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96], "num_attention_heads": 2},
        large_pixels,
    ),
    "data2vec_audio": (
        "Data2VecAudioConfig",
        "Data2VecAudioModel",
        SIZES | {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 2},
        samples,
    ),
    "unispeech": ("UniSpeechConfig", "UniSpeechModel", SOUND, samples),
}


class Positional(torch.nn.Module):
    """A model whose inputs have an order and whose first output is the only one."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names
        self.options = {"return_dict": True}
        if "use_cache" in inspect.signature(model.forward).parameters:
            self.options["use_cache"] = False

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs)), **self.options)[0]


def plant_outliers(model):
    """A few channels of every norm are large, with γ or one-sided with β, as in trained models."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        values = parameter.data
        norm = values.dim() == 1 and ("norm" in name.lower() or ".ln" in name.lower())
        if norm:
            count = max(1, values.numel() // OUTLIERS)
            channels = torch.randperm(values.numel(), generator=generator)[:count]
            if name.endswith("weight"):
                values[channels] = values[channels].abs() * 8 + 4
            else:
                values[channels] = (torch.rand(count, generator=generator) - 0.3) * 12
        elif values.dim() == 2 and "embed" not in name.lower() and values.std() <= 0.05:
            values.mul_(3)


def module(name, attention):
    """(torch module, its inputs as a function of the number of rows)."""
    configuration, model, arguments, inputs = MODELS[name]
    torch.manual_seed(0)
    configuration, model = getattr(transformers, configuration)(**arguments), getattr(transformers, model)
    model = model._from_config(configuration, attn_implementation=attention).eval().requires_grad_(False)
    plant_outliers(model)
    return Positional(model, list(inputs(1))), inputs
