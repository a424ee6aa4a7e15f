"""How Hugging Face stores Qwen 2 models: names and layouts of tensors, fields of the config."""

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
    """Return the fields of :class:`ModelConfig`; absent ones mean what ``Qwen2Config`` says."""
    sizes = fields.sizes(vocab_size=151_936)
    heads, embed_dim = sizes["num_heads"], sizes["embed_dim"]
    return {
        **sizes,
        "hidden_dim": fields.size("intermediate_size"),
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", max(1, embed_dim // heads)),
        **read_windows(fields),
    }


def write_config(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a model of this family."""
    return {
        **hf_write.architecture("qwen2", "Qwen2ForCausalLM"),
        **hf_write.sizes(config),
        **hf_write.rotary(config),
        **write_windows(config),
        "hidden_act": "silu",
    }


def read_windows(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return which layers attend to a window, and its size.

    Either ``layer_types`` says so, or the layers from ``max_window_layers`` on do, and both only
    if ``use_sliding_window``.
    """
    layers = fields.size("num_hidden_layers")
    first = fields.raw.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        found = hf_fields.shown(first)
        fields.problems.append(f"max_window_layers must be 0 or a positive integer, got {found}")
        first = layers
    is_used = fields.flag("use_sliding_window", False)
    is_used = is_used and fields.raw.get("sliding_window", 4096) is not None
    default: list[config_lib.AttentionType] = [
        "global" if i < first or not is_used else "local" for i in range(layers)
    ]
    types = fields.attention_types(layers, default)
    if "local" not in types:
        return {}
    if not is_used:
        fields.problems.append(
            "layer_types has 'sliding_attention' although use_sliding_window is false or "
            "sliding_window is null; set both, or make it 'full_attention'"
        )
    window = fields.size("sliding_window", 4096)
    return {"attention_types": types, "sliding_window_size": window}


def write_windows(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the fields that :func:`read_windows` reads."""
    is_local = config.is_local
    return {
        "use_sliding_window": any(is_local),
        "sliding_window": config.sliding_window_size,
        # What transformers before layer_types goes by: how many layers precede the windows.
        "max_window_layers": is_local.index(True) if any(is_local) else config.num_layers,
        "layer_types": hf_write.layer_types(config),
    }
