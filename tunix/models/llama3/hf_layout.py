"""How Hugging Face stores Llama models: names and layouts of tensors, fields of the config."""

from collections.abc import Sequence
from typing import Any

from tunix.models.hf import hf_fields, hf_weights, hf_write
from tunix.models.transformer import config as config_lib
from tunix.models.weight_table import Weight

WEIGHTS: Sequence[Weight] = (
    *hf_weights.MODEL,
    *hf_weights.PRE_NORMS,
    *hf_weights.ATTENTION,
    *hf_weights.MLP,
)


def read_config(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return the fields of :class:`ModelConfig`; absent ones mean what ``LlamaConfig`` says."""
    sizes = fields.sizes()
    heads, embed_dim = sizes["num_heads"], sizes["embed_dim"]
    attention_bias = fields.flag("attention_bias", False)
    fields.only("pretraining_tp", 1)
    fields.only("partial_rotary_factor", 1.0)
    fields.only("rope_interleaved", False)
    return {
        **sizes,
        "hidden_dim": fields.size("intermediate_size"),
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", max(1, embed_dim // heads)),
        "qkv_bias": attention_bias,
        "o_bias": attention_bias,
        "mlp_bias": fields.flag("mlp_bias", False),
    }


def write_config(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a model of this family."""
    return {
        **hf_write.architecture("llama", "LlamaForCausalLM"),
        **hf_write.sizes(config),
        **hf_write.rotary(config),
        "hidden_act": "silu",
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
    }
