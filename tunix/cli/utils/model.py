"""Models from dictionaries of settings, as scripts written for google-tunix make them."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from tunix.cli.loading import build
from tunix.cli.schemas import reference_keys, schema, structure
from tunix.models import lora
from tunix.tokenizers import tokenizer_adapter

_NOTES = {
    key.removeprefix("model_config."): note
    for key, note in reference_keys.NOTES.items()
    if key.startswith("model_config.")
}


def create_model(
    model_config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    mesh: jax.sharding.Mesh | None,
) -> tuple[nnx.Module, str]:
    """Return the model that ``model_config`` of a YAML file describes, and the tokenizer's path.

    Raises:
        ConfigError: With all keys that are unknown or wrong.
    """
    options = structure.structure(
        schema.ModelOptions, model_config, notes=_NOTES, source="model_config"
    )
    model, path = build.make_model(options, mesh)
    return model, tokenizer_config.get("tokenizer_path") or path


def apply_lora_to_model(
    base_model: nnx.Module, mesh: jax.sharding.Mesh | None, lora_config: Mapping[str, Any]
) -> nnx.Module:
    """Return the model with adapters, which lie where the model does: the mesh is not read."""
    del mesh
    return lora.apply_lora(base_model, lora.LoraConfig.from_mapping(lora_config), rngs=nnx.Rngs(0))


def create_tokenizer(
    tokenizer_config: Mapping[str, Any], tokenizer_path: str | None
) -> tokenizer_adapter.TokenizerAdapter:
    """Return the tokenizer of a model's directory."""
    path = tokenizer_path or tokenizer_config["tokenizer_path"]
    return tokenizer_adapter.load_tokenizer(path)
