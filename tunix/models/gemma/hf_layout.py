"""How Hugging Face stores Gemma 1 and 2: names and layouts of tensors, fields of the config."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunix.models.gemma import model as model_lib
from tunix.models.hf import hf_fields, hf_write
from tunix.models.transformer import config as config_lib
from tunix.models.weight_table import Weight

_TRANSPOSED = "o i -> i o"

WEIGHTS: Sequence[Weight] = (
    Weight("model.embed_tokens.weight", "embed_tokens.w"),
    Weight("model.norm.weight", "norm.scale"),
    Weight("lm_head.weight", "lm_head.w", copy_of="embed_tokens.w"),
    *(
        Weight(f"model.layers.{{i}}.{name}.weight", f"layers.{{i}}.{name}.scale")
        for name in (
            "input_layernorm",
            "post_attention_layernorm",
            # Gemma 2 has two more.
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        )
    ),
    *(
        Weight(f"model.layers.{{i}}.{name}.weight", f"layers.{{i}}.{name}.w", _TRANSPOSED)
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
    ),
    *(
        Weight(f"model.layers.{{i}}.self_attn.{name}.bias", f"layers.{{i}}.self_attn.{name}.b")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ),
    # Files of old transformers hold the rotary frequencies too.
    Weight("model.layers.{i}.self_attn.rotary_emb.inv_freq", None),
)

ACTIVATIONS: Mapping[str, config_lib.Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
}
"""Transformers' names of what the gate of the MLP goes through."""

_ACTIVATION_NAMES: Mapping[config_lib.Activation, str] = {
    "gelu_tanh": "gelu_pytorch_tanh",
    "gelu": "gelu_python",  # "gelu" in a file of Gemma 1 means tanh
    "silu": "silu",
}


def read_config(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return the fields of :class:`ModelConfig` of a ``gemma`` or ``gemma2`` file.

    Absent fields mean what ``GemmaConfig`` and ``Gemma2Config`` of transformers say.
    """
    settings = read_shared(fields)
    settings["rope_theta"], settings["rope_scaling"] = fields.rotary()
    if fields.raw.get("model_type") != "gemma2":
        return settings | {"activation": _first_activation(fields)}
    window_default = None if "sliding_window" in fields.raw else 4096
    types = fields.attention_types(settings["num_layers"], model_lib.PATTERN)
    return settings | {
        "activation": read_activation(fields),
        "sandwich_norms": True,
        "query_pre_attn_scalar": fields.number("query_pre_attn_scalar", 256.0),
        "attn_logit_softcap": fields.number_or_none("attn_logit_softcapping", 50.0),
        "final_logit_softcap": fields.number_or_none("final_logit_softcapping", 30.0),
        "attention_types": types,
        "sliding_window_size": (
            fields.size("sliding_window", window_default) if "local" in types else None
        ),
    }


def read_shared(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return what the configs of all Gemmas spell alike; refuse what none of our models does."""
    fields.only("attention_dropout", 0.0)
    fields.only("use_bidirectional_attention", False)
    fields.only("quantization_config")
    bias = fields.flag("attention_bias", False)
    return {
        **model_lib.MECHANISMS,
        "num_layers": fields.size("num_hidden_layers"),
        "vocab_size": fields.size("vocab_size"),
        "embed_dim": fields.size("hidden_size"),
        "hidden_dim": fields.size("intermediate_size"),
        "num_heads": fields.size("num_attention_heads"),
        "num_kv_heads": fields.size("num_key_value_heads"),
        "head_dim": fields.size("head_dim", 256),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "qkv_bias": bias,
        "o_bias": bias,
        "weight_tying": fields.flag("tie_word_embeddings", True),
    }


def read_activation(fields: hf_fields.HFFields) -> config_lib.Activation:
    """Return the activation of a Gemma 2 or 3, which do not look at ``hidden_act``."""
    fields.only("hidden_activation", *ACTIVATIONS)
    return ACTIVATIONS.get(str(fields.raw.get("hidden_activation")), "gelu_tanh")


def write_config(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the ``config.json`` of a model of this family."""
    if not config.sandwich_norms:
        return {
            **hf_write.architecture("gemma", "GemmaForCausalLM"),
            **write_shared(config),
            **hf_write.rotary(config),
        }
    return {
        **hf_write.architecture("gemma2", "Gemma2ForCausalLM"),
        **write_shared(config),
        **hf_write.rotary(config),
        **write_attention(config),
        "attn_logit_softcapping": config.attn_logit_softcap,
        "final_logit_softcapping": config.final_logit_softcap,
    }


def write_shared(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return what the configs of all Gemmas spell alike."""
    activation = _ACTIVATION_NAMES[config.activation]
    return {
        **hf_write.sizes(config),
        "hidden_act": activation,
        "hidden_activation": activation,
        "attention_bias": config.qkv_bias,
    }


def write_attention(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return what Gemma 2 and 3 say of scores and windows."""
    scalar = config.query_pre_attn_scalar
    window = config.sliding_window_size
    return {
        # An integer in transformers, where it is one.
        "query_pre_attn_scalar": config.head_dim if scalar is None else _integer(scalar),
        "layer_types": list(hf_write.layer_types(config)),
        **({} if window is None else {"sliding_window": window}),
    }


def _first_activation(fields: hf_fields.HFFields) -> config_lib.Activation:
    """Return the activation of a Gemma 1, whose files name it twice.

    The first files say ``"hidden_act": "gelu"`` and mean the tanh approximation, which
    transformers knows; where ``hidden_activation`` came with it, it must agree.
    """
    fields.only("hidden_act", *ACTIVATIONS)
    fields.only("hidden_activation", *ACTIVATIONS)
    legacy = {**ACTIVATIONS, "gelu": "gelu_tanh"}
    named = {
        "hidden_act": legacy.get(str(fields.raw.get("hidden_act"))),
        "hidden_activation": ACTIVATIONS.get(str(fields.raw.get("hidden_activation"))),
    }
    given: set[Any] = set(named.values()) - {None}
    if len(given) > 1:
        found = {key: fields.raw[key] for key in named}
        fields.problems.append(f"two activations: {found}; keep one (hidden_act 'gelu' means tanh)")
    return min(given, default="gelu_tanh")


def _integer(value: float) -> float:
    return int(value) if value == int(value) else value
