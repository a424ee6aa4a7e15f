"""How Hugging Face stores Llama models: names and layouts of tensors, fields of the config."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import hf_fields, safetensors_loader, weights
from tunix.models.llama3 import model as model_lib
from tunix.models.weight_table import Weight

_TRANSPOSED = "o i -> i o"

WEIGHTS: Sequence[Weight] = (
    Weight("model.embed_tokens.weight", "embed_tokens.w"),
    Weight("model.norm.weight", "norm.scale"),
    Weight("lm_head.weight", "lm_head.w", copy_of="embed_tokens.w"),
    *(
        Weight(f"model.layers.{{i}}.{name}.weight", f"layers.{{i}}.{name}.scale")
        for name in ("input_layernorm", "post_attention_layernorm")
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
    # Files of old transformers hold the rotary frequencies too.
    Weight("model.layers.{i}.self_attn.rotary_emb.inv_freq", None),
)


def read_config(fields: hf_fields.HFFields) -> dict[str, Any]:
    """Return the fields of :class:`ModelConfig`; absent ones mean what ``LlamaConfig`` says."""
    heads, embed_dim = fields.size("num_attention_heads"), fields.size("hidden_size")
    rope_theta, rope_scaling = fields.rotary()
    fields.only("hidden_act", "silu", "swish")
    fields.only("attention_bias", False)
    fields.only("mlp_bias", False)
    fields.only("attention_dropout", 0.0)
    fields.only("pretraining_tp", 1)
    fields.only("partial_rotary_factor", 1.0)
    fields.only("rope_interleaved", False)
    fields.only("quantization_config")
    return {
        "num_layers": fields.size("num_hidden_layers"),
        "vocab_size": fields.size("vocab_size"),
        "embed_dim": embed_dim,
        "hidden_dim": fields.size("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": fields.size("num_key_value_heads", heads),
        "head_dim": fields.size("head_dim", max(1, embed_dim // heads)),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "weight_tying": fields.flag("tie_word_embeddings", False),
    }


def create_model_from_safe_tensors(
    file_dir: str | pathlib.Path,
    config: model_lib.ModelConfig,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
) -> model_lib.Llama3:
    """Return the model in ``file_dir``, a directory of safetensors files, built as ``config``.

    Args:
        file_dir: Directory of ``model.safetensors``, or of an index and its files.
        config: Architecture and running of the model; ``config.json`` is not looked at.
        mesh: Where to put the parameters; one device without it.
        dtype: Storage dtype, instead of ``config.param_dtype``.

    Raises:
        CheckpointFileError: If a file is missing, truncated or corrupt.
        WeightsError: If files and config do not fit, listing every tensor concerned.
    """
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=jnp.dtype(dtype).name)
    source = safetensors_loader.SafetensorsDirectory(file_dir)
    return weights.load_model(model_lib.Llama3, config, WEIGHTS, source, mesh=mesh)
