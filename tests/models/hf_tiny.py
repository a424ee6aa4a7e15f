"""Tiny models of transformers, one or more of every family, random in every weight."""

import torch
import transformers

COMMON = {
    "vocab_size": 67,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 640,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "pad_token_id": 5,
}
WINDOW = {"sliding_window": 8, "query_pre_attn_scalar": 12}

CONFIGS = {
    "llama3": lambda: transformers.LlamaConfig(**COMMON),
    "llama3 tied and stretched": lambda: transformers.LlamaConfig(
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 160,
        },
        **COMMON,
    ),
    "qwen2": lambda: transformers.Qwen2Config(max_window_layers=3, **COMMON),
    "qwen3": lambda: transformers.Qwen3Config(max_window_layers=3, **COMMON),
    "qwen3 with experts": lambda: transformers.Qwen3MoeConfig(
        moe_intermediate_size=28,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        **COMMON,
    ),
    "gemma": lambda: transformers.GemmaConfig(**COMMON),
    "gemma 2": lambda: transformers.Gemma2Config(**COMMON, **WINDOW),
    "gemma3": lambda: transformers.Gemma3TextConfig(**COMMON, **WINDOW),
}
"""By the family's name and what is special."""


def cases(families):
    """Return the names of those configs whose family is one of ``families``."""
    return [name for name in CONFIGS if name.split()[0] in families]


def make(case):
    """Return a float32 model in evaluation mode."""
    config = CONFIGS[case]()
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and "gemma" not in case else 0.0
            parameter.normal_(centre, 0.1)
    return model
