"""How Hugging Face stores Llama models: names and layouts of tensors, fields of the config."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import (
    hf_fields,
    hf_weights,
    hf_write,
    safetensors_loader,
    safetensors_saver,
    weights,
)
from tunix.models.llama3 import model as model_lib
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
    heads, embed_dim = fields.size("num_attention_heads"), fields.size("hidden_size")
    rope_theta, rope_scaling = fields.rotary()
    fields.only("hidden_act", "silu", "swish")
    attention_bias = fields.flag("attention_bias", False)
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


save_lora_merged_model_as_safetensors = safetensors_saver.save_lora_merged_model_as_safetensors
