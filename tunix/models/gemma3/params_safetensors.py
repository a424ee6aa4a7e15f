"""Loads a Gemma 3 from a directory of safetensors files, built as told."""

import dataclasses
import pathlib

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import safetensors_loader, weights
from tunix.models.gemma3 import model as model_lib
from tunix.models.gemma3 import params


def create_model_from_safe_tensors(
    file_dir: str | pathlib.Path,
    config: model_lib.ModelConfig,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
) -> model_lib.Gemma3:
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
    return weights.load_model(model_lib.Gemma3, config, params.WEIGHTS, source, mesh=mesh)
