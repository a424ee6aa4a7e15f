"""The model families there are: for each its classes, its weight table and its config reader."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from tunix.models import weight_table
from tunix.models.gemma import hf_layout as gemma_layout
from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import hf_layout as gemma3_layout
from tunix.models.gemma3 import model as gemma3
from tunix.models.hf import hf_fields
from tunix.models.llama3 import hf_layout as llama3_layout
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import hf_layout as qwen2_layout
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import hf_layout as qwen3_layout
from tunix.models.qwen3 import model as qwen3
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.utils import problems as problems_lib


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
    write_config: Callable[[config_lib.TransformerConfig], dict[str, Any]]
    """Returns a ``config.json`` from which ``read_config`` reads the same architecture."""
    export_weights: (
        Callable[[config_lib.TransformerConfig], Sequence[weight_table.Weight]] | None
    ) = None
    """Returns the table to write files with, where their names depend on the config."""

    def weights_of_files(
        self, config: config_lib.TransformerConfig
    ) -> Sequence[weight_table.Weight]:
        """Return the table to write the files of a model with."""
        return self.weights if self.export_weights is None else self.export_weights(config)


FAMILIES: dict[str, Family] = {
    "gemma": Family(
        hf_types=("gemma", "gemma2"),
        model_class=gemma.Gemma,
        config_class=gemma.ModelConfig,
        weights=gemma_layout.WEIGHTS,
        read_config=gemma_layout.read_config,
        write_config=gemma_layout.write_config,
    ),
    "gemma3": Family(
        hf_types=("gemma3_text", "gemma3"),
        model_class=gemma3.Gemma3,
        config_class=gemma3.ModelConfig,
        weights=gemma3_layout.WEIGHTS,
        read_config=gemma3_layout.read_config,
        write_config=gemma3_layout.write_config,
        export_weights=gemma3_layout.export_weights,
    ),
    "llama3": Family(
        hf_types=("llama",),
        model_class=llama3.Llama3,
        config_class=llama3.ModelConfig,
        weights=llama3_layout.WEIGHTS,
        read_config=llama3_layout.read_config,
        write_config=llama3_layout.write_config,
    ),
    "qwen2": Family(
        hf_types=("qwen2",),
        model_class=qwen2.Qwen2,
        config_class=qwen2.ModelConfig,
        weights=qwen2_layout.WEIGHTS,
        read_config=qwen2_layout.read_config,
        write_config=qwen2_layout.write_config,
    ),
    "qwen3": Family(
        hf_types=("qwen3", "qwen3_moe"),
        model_class=qwen3.Qwen3,
        config_class=qwen3.ModelConfig,
        weights=qwen3_layout.WEIGHTS,
        read_config=qwen3_layout.read_config,
        write_config=qwen3_layout.write_config,
    ),
}
"""Families by the name of their folder, which is also their category in :mod:`naming`.

:func:`register` adds others.
"""


def register(name: str, family: Family) -> None:
    """Add a family, for this process, so that its models load and save like the others.

    Args:
        name: What to call it; not that of a family there is.
        family: Its classes, weight table and config reader.

    Raises:
        ValueError: If its name, its class or one of its ``hf_types`` belongs to another family.
    """
    problems = [f"there is a family {name!r} already"] if name in FAMILIES else []
    if not family.hf_types:
        problems.append("hf_types is empty, so no config.json could name it")
    for other_name, other in FAMILIES.items():
        if shared := sorted(set(family.hf_types) & set(other.hf_types)):
            problems.append(f"hf_types {shared} belong to family {other_name!r}; use others")
        if family.model_class is other.model_class:
            problems.append(
                f"{family.model_class.__name__} belongs to family {other_name!r}; subclass it"
            )
    if problems:
        raise ValueError(problems_lib.listed(f"family {name!r} cannot be registered", problems))
    FAMILIES[name] = family


def family_of_model(model: decoder.Decoder) -> Family:
    """Return the family whose class ``model`` is.

    Raises:
        TypeError: If it is of no family's class.
    """
    by_class = {family.model_class: family for family in FAMILIES.values()}
    for ancestor in type(model).__mro__:  # the nearest: a family's class may extend another's
        if ancestor in by_class:
            return by_class[ancestor]
    known = [family.model_class.__name__ for family in FAMILIES.values()]
    raise TypeError(f"{type(model).__name__} is of no family; known classes are {known}")
