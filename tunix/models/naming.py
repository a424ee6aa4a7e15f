"""How models are called: hub ids, model names and the ids of config presets.

One model has three spellings: the hub id ``meta-llama/Llama-3.1-8B-Instruct``, the
model name ``llama3.1-8b-instruct`` and the config id ``llama3p1_8b_instruct``, which
is also the name of its preset. Nothing here knows what a model is made of.
"""

import dataclasses
import re
from typing import NewType

from tunix.utils import config

HFModelId = NewType("HFModelId", str)
"""Id of a repository on the Hugging Face hub, e.g. ``meta-llama/Llama-3.1-8B``."""

ConfigId = NewType("ConfigId", str)
"""Name of a config preset, e.g. ``llama3p1_8b``."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One generation of a model family."""

    spellings: tuple[str, ...]
    """How its name is written; the first is the canonical one."""

    category: str
    """Folder of :mod:`tunix.models` that holds its architecture."""


FAMILIES = (
    Family(("llama3", "llama-3", "meta-llama-3"), "llama3"),
    Family(("llama3.1", "llama-3.1", "meta-llama-3.1"), "llama3"),
    Family(("llama3.2", "llama-3.2", "meta-llama-3.2"), "llama3"),
    Family(("llama3.3", "llama-3.3", "meta-llama-3.3"), "llama3"),
    Family(("deepseek-r1-distill-llama",), "llama3"),
    Family(("smollm2",), "llama3"),
    Family(("gemma",), "gemma"),
    Family(("gemma1.1", "gemma-1.1"), "gemma"),
    Family(("gemma2", "gemma-2"), "gemma"),
    Family(("gemma3", "gemma-3"), "gemma3"),
    Family(("qwen2",), "qwen2"),
    Family(("qwen2.5",), "qwen2"),
    Family(("deepseek-r1-distill-qwen",), "qwen2"),
    Family(("qwen3",), "qwen3"),
)

_SIZE = re.compile(r"(^|-)(a?\d+(\.\d+)?[bm])(-|$)")


class NamingError(ValueError):
    """A model name that belongs to no known family."""


def split(model_name: str) -> tuple[str, str]:
    """Return family and version of a model name, ``llama3.1-8b`` -> ``("llama3.1", "8b")``.

    Any spelling is understood, config ids too; the result is the canonical one.

    Raises:
        NamingError: If no family or no size can be recognised.
    """
    family, version = _parse(model_name)
    return family.spellings[0], version


def get_model_family_and_version(model_name: str) -> tuple[str, str]:
    """Return :func:`split` as parts of an identifier, ``("llama3p1", "8b_instruct")``."""
    family, version = split(model_name)
    return _identifier(family), _identifier(version)


def get_model_config_category(model_name: str) -> str:
    """Return the folder of the architecture: ``llama3`` for both Llama and SmolLM2."""
    return _parse(model_name)[0].category


def get_model_config_id(model_name: str) -> str:
    """Return the name of the config preset, ``llama3.1-8b`` -> ``llama3p1_8b``."""
    return "_".join(get_model_family_and_version(model_name))


def get_model_name_from_model_id(model_id: HFModelId | ConfigId | str) -> str:
    """Return the model name, ``meta-llama/Llama-3.1-8B`` or ``llama3p1_8b`` -> ``llama3.1-8b``."""
    return "-".join(split(model_id.rsplit("/", 1)[-1]))


def is_known(model_id: HFModelId | ConfigId | str) -> bool:
    """Return whether an id names a family and a size, so that every function here takes it."""
    found = _find(_normalized(model_id.rsplit("/", 1)[-1]))
    return found is not None and _SIZE.search(found[1]) is not None


@dataclasses.dataclass(frozen=True)
class ModelNaming:
    """All names of one model, from its hub id, its model name, or both.

    Where both are given the name decides (an id may be any repository or path), but an
    id that names another family is an error.
    """

    model_id: HFModelId | ConfigId | str | None = None
    model_name: str | None = None
    model_family: str = dataclasses.field(init=False)
    model_version: str = dataclasses.field(init=False)
    model_config_category: str = dataclasses.field(init=False)
    model_config_id: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Derive every other name.

        Raises:
            NamingError: If nothing is given, nothing is recognised, or id and name disagree.
        """
        if self.model_name is None and self.model_id is None:
            raise NamingError("ModelNaming needs a model_id or a model_name")
        name = self.model_name
        if name is None:
            name = get_model_name_from_model_id(self.model_id or "")
        elif self.model_id is not None:
            _check_same_family(self.model_id, name)
        family, version = get_model_family_and_version(name)
        derived = {
            "model_name": name,
            "model_family": family,
            "model_version": version,
            "model_config_category": get_model_config_category(name),
            "model_config_id": get_model_config_id(name),
        }
        for field, value in derived.items():
            object.__setattr__(self, field, value)


def _check_same_family(model_id: str, model_name: str) -> None:
    expected = _parse(model_name)[0]
    found = _find(_normalized(model_id.rsplit("/", 1)[-1]))
    if found is not None and found[0] is not expected:
        raise NamingError(
            f"model_id {model_id!r} is of family {found[0].spellings[0]!r} but model_name "
            f"{model_name!r} of family {expected.spellings[0]!r}; make them name the same model"
        )


def _parse(name: str) -> tuple[Family, str]:
    normalized = _normalized(name)
    found = _find(normalized)
    if found is None:
        known = [family.spellings[0] for family in FAMILIES]
        word = re.split(r"-(?=\d+(?:\.\d+)?[bm](?:-|$))", normalized)[0]
        raise NamingError(
            f"model name {name!r} starts with none of the families {known}"
            f"{config.did_you_mean(word, known)}"
        )
    family, version = found
    if not _SIZE.search(version):
        raise NamingError(
            f"model name {name!r} has no size after {family.spellings[0]!r}; "
            f"expected something like {family.spellings[0] + '-1b'!r}"
        )
    return family, version


def _find(normalized: str) -> tuple[Family, str] | None:
    """Return the family with the longest spelling that ``normalized`` starts with, and the rest."""
    matches = [
        (len(spelling), family, normalized[len(spelling) + 1 :])
        for family in FAMILIES
        for spelling in family.spellings
        if normalized == spelling or normalized.startswith(spelling + "-")
    ]
    return max(matches, key=lambda match: match[0])[1:] if matches else None


def _normalized(name: str) -> str:
    """Return the name in lower case, with dots and dashes: ``qwen2p5_0p5b`` -> ``qwen2.5-0.5b``."""
    return re.sub(r"(?<=\d)p(?=\d)", ".", name.strip().lower().replace("_", "-"))


def _identifier(part: str) -> str:
    return part.replace(".", "p").replace("-", "_")
