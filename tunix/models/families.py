"""The model families there are: for each its classes, its weight table and its config reader."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix.models import hf_fields, weight_table
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Everything that loading, saving and naming need to know about one architecture."""

    hf_types: tuple[str, ...]
    """Values of ``model_type`` in a Hugging Face ``config.json``."""

    model_class: type[decoder.Decoder]
    config_class: type[config_lib.TransformerConfig]
    weights: Sequence[weight_table.Weight]
    read_config: Callable[[hf_fields.HFFields], dict[str, Any]]
    """Reads the architecture's fields of a ``config.json``."""


FAMILIES: Mapping[str, Family] = {
    "llama3": Family(
        hf_types=("llama",),
        model_class=llama3.Llama3,
        config_class=llama3.ModelConfig,
        weights=llama3_params.WEIGHTS,
        read_config=llama3_params.read_config,
    ),
}
"""Families by the name of their folder, which is also their category in :mod:`naming`."""
