"""How Hugging Face stores Qwen 3 models: names and layouts of tensors, fields of the config."""

from collections.abc import Sequence
from typing import Any

from tunix.models.hf import hf_fields, hf_weights, hf_write
from tunix.models.qwen2 import hf_layout as qwen2
from tunix.models.transformer import config as config_lib
from tunix.models.weight_table import Weight

WEIGHTS: Sequence[Weight] = (
    *hf_weights.MODEL,
    *hf_weights.PRE_NORMS,
    *hf_weights.ATTENTION,
    *hf_weights.QK_NORMS,
    *hf_weights.MLP,
    *hf_weights.EXPERTS,
)


def read_config(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return the fields of :class:`ModelConfig`; absent ones mean what transformers says."""
    bias = fields.flag("attention_bias", False)
    common = {**fields.sizes(vocab_size=151_936), "qkv_bias": bias, "o_bias": bias}
    has_experts = fields.raw.get("model_type") == "qwen3_moe"
    return common | (_read_experts(fields) if has_experts else _read_dense(fields))


def _read_dense(fields: hf_fields.HFFields) -> dict[str, Any]:
    return {
        "hidden_dim": fields.size("intermediate_size"),
        "num_kv_heads": fields.size("num_key_value_heads", 32),
        "head_dim": fields.size("head_dim", 128),
        **qwen2.read_windows(fields),
    }


def _read_experts(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return what differs of models with experts: some defaults, and one window for all layers."""
    fields.only("mlp_only_layers", [])
    fields.only("decoder_sparse_step", 1)
    embed_dim, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    # Transformers 5 writes the number of experts under a name of its own.
    key = "num_local_experts" if "num_local_experts" in fields.raw else "num_experts"
    found = {
        "hidden_dim": fields.size("moe_intermediate_size", 768),
        "num_kv_heads": fields.size("num_key_value_heads", 4),
        "head_dim": fields.size("head_dim", max(1, embed_dim // heads)),
        "num_experts": fields.size(key, 128),
        "num_experts_per_tok": fields.size("num_experts_per_tok", 8),
        "norm_topk_prob": fields.flag("norm_topk_prob", False),
    }
    is_windowed = fields.flag("use_sliding_window", False)
    if is_windowed and fields.raw.get("sliding_window", 4096) is not None:
        window = fields.size("sliding_window", 4096)
        found |= {"attention_types": ("local",), "sliding_window_size": window}
    return found


def write_config(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a model of this family."""
    shared = {
        **hf_write.sizes(config),
        **hf_write.rotary(config),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
    }
    if config.num_experts is None:
        return {
            **hf_write.architecture("qwen3", "Qwen3ForCausalLM"),
            **shared,
            **qwen2.write_windows(config),
        }
    return {
        **hf_write.architecture("qwen3_moe", "Qwen3MoeForCausalLM"),
        **shared,
        # Of layers without experts, which there are none of: as wide as what a token uses.
        "intermediate_size": config.hidden_dim * (config.num_experts_per_tok or 1),
        "moe_intermediate_size": config.hidden_dim,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "norm_topk_prob": config.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": config.sliding_window_size is not None,
        "sliding_window": config.sliding_window_size,
    }
