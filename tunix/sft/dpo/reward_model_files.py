"""Reads a reward model from a directory in the format of transformers.

That of ``AutoModelForSequenceClassification`` with one label: the files of a language model with
``score.weight`` in place of the output head.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from tunix.models import safetensors_loader, weight_table, weights
from tunix.models.hf import hf_config, score_head
from tunix.sft.dpo import reward_model
from tunix.utils import finite

SCORE = score_head.SCORE


class RewardModelFileError(ValueError):
    """A directory that holds no reward model that this library can use."""


@dataclasses.dataclass(frozen=True)
class _Backbone:
    """The tensors of a directory without those of its heads."""

    files: safetensors_loader.SafetensorsDirectory

    @property
    def where(self) -> str:
        """What to call the checkpoint in messages."""
        return self.files.where

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        heads = (SCORE, score_head.OUTPUT_HEAD)
        return {name: shape for name, shape in self.files.shapes.items() if name not in heads}

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        return self.files.read(name)


def load_reward_model(
    directory: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    precision: Literal["auto", "exact", "fast"] = "auto",
) -> reward_model.RewardModel:
    """Return the reward model in ``directory``.

    Args:
        directory: ``config.json`` and safetensors files of a supported family.
        mesh: Where to put the parameters; one device without it.
        dtype: Storage dtype of the parameters; float32 by default.
        precision: How matrices are multiplied, see :mod:`tunix.ops.dot`.

    Raises:
        RewardModelFileError: If there is no score, more than one, or one that is not finite.
        ConfigError: If the model cannot be represented; lists every field that cannot.
        CheckpointFileError: If a file is missing, truncated or corrupt.
        WeightsError: If tensors and architecture do not fit; lists every tensor concerned.
    """
    folder = pathlib.Path(directory)
    files = safetensors_loader.SafetensorsDirectory(folder)
    config_file = folder / hf_config.CONFIG_NAME
    raw = hf_config.read_config(config_file)
    family = hf_config.family_of(raw, where=str(config_file))
    runtime = {} if dtype is None else {"param_dtype": jnp.dtype(dtype).name}
    config = hf_config.config_from_hf(raw, where=str(config_file), precision=precision, **runtime)
    _require_score(files, config.embed_dim)
    # No parameter for an output head: nothing would read it, and files of this kind have none.
    config = dataclasses.replace(config, weight_tying=True)
    source: weight_table.TensorSource = _Backbone(files)
    decoder = weights.load_model(family.model_class, config, family.weights, source, mesh=mesh)
    model = reward_model.RewardModel(decoder, rngs=nnx.Rngs(0))
    score = files.read(SCORE)[0].astype(np.float32)
    if finite.count_non_finite(score):
        raise RewardModelFileError(f"{files.where}: {SCORE} holds NaN or infinite numbers")
    model.score[...] = jnp.asarray(score)
    return model


def _require_score(files: safetensors_loader.SafetensorsDirectory, width: int) -> None:
    found = files.shapes.get(SCORE)
    if found == (1, width):
        return
    if found is None:
        raise RewardModelFileError(
            f"{files.where} holds no {SCORE}, so it is no reward model; expected what "
            "transformers saves of AutoModelForSequenceClassification with num_labels=1"
        )
    raise RewardModelFileError(
        f"{files.where}: {SCORE} has shape {found}, expected (1, {width}): a reward is one number "
        "(num_labels=1)"
    )
