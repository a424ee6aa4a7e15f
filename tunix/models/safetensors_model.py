"""Builds a model as told and fills it from a directory of safetensors files."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Generic, TypeVar

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import safetensors_loader, weight_table, weights
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder

ModelT = TypeVar("ModelT", bound=decoder.Decoder)


@dataclasses.dataclass(frozen=True)
class SafetensorsLoader(Generic[ModelT]):
    """A family's ``create_model_from_safe_tensors``: call it."""

    model_class: type[ModelT]
    weights: Sequence[weight_table.Weight]

    def __call__(
        self,
        file_dir: str | pathlib.Path,
        config: config_lib.TransformerConfig,
        mesh: Mesh | None = None,
        dtype: DTypeLike | None = None,
    ) -> ModelT:
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
        return weights.load_model(self.model_class, config, self.weights, source, mesh=mesh)
