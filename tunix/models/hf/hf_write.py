"""Our config -> parts of a Hugging Face ``config.json`` that transformers 4 and 5 both read.

The inverse of :mod:`hf_fields`. Nothing here knows a family: each combines these parts in its
``write_config``.
"""

from collections.abc import Sequence
from typing import Any

from tunix.models.transformer import config as config_lib
from tunix.ops import rope


def architecture(model_type: str, class_name: str) -> dict[str, Any]:
    """Return what tells transformers which class to build, e.g. ``llama``, ``LlamaForCausalLM``."""
    return {"architectures": [class_name], "model_type": model_type}


def sizes(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the fields that all families spell alike, the dtype of the files among them."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.weight_tying,
        **dtype(config.param_dtype),
    }


def dtype(name: str) -> dict[str, Any]:
    """Return the dtype of the files, under its name in transformers 5 and the one before."""
    return {"dtype": name, "torch_dtype": name}


def rotary(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return base and scaling of rotary frequencies that are the same in all layers.

    ``rope_parameters`` is read by transformers 5, ``rope_theta`` and ``rope_scaling`` by 4; both
    stand in one file and say the same.
    """
    parameters = rope_parameters(config.rope_theta, config.rope_scaling)
    scaling = config.rope_scaling
    fields = {
        "rope_theta": config.rope_theta,
        "rope_parameters": parameters,
        "rope_scaling": None if scaling is None else parameters,
    }
    if scaling is not None and scaling.kind == "dynamic":
        # The one kind whose original length is that of the model.
        fields["max_position_embeddings"] = scaling.original_max_position
    return fields


def rope_parameters(theta: float, scaling: rope.RopeScaling | None) -> dict[str, Any]:
    """Return one ``rope_parameters`` block; ``rope_theta`` stands in it too."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    block: dict[str, Any] = {
        "rope_type": scaling.kind,
        "rope_theta": theta,
        "factor": scaling.factor,
    }
    if scaling.kind in ("llama3", "yarn"):
        block["original_max_position_embeddings"] = scaling.original_max_position
    if scaling.kind == "llama3":
        block |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if scaling.kind == "yarn":
        block |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
        if scaling.attention_factor is not None:
            block["attention_factor"] = scaling.attention_factor
    return block


def layer_types(config: config_lib.TransformerConfig) -> Sequence[str]:
    """Return transformers' word for what each layer attends to, first layer first."""
    words = {"global": "full_attention", "local": "sliding_attention"}
    pattern = config.attention_types
    return [words[pattern[i % len(pattern)]] for i in range(config.num_layers)]
