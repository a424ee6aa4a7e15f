"""Hugging Face ``config.json`` -> our config, refusing what we cannot represent."""

import pathlib
from collections.abc import Mapping
from typing import Any

from tunix.models import families
from tunix.models.hf import hf_fields
from tunix.models.transformer import config as config_lib
from tunix.utils import config, json_text

CONFIG_NAME = "config.json"


def config_from_hf(
    raw: Mapping[str, Any], *, where: str = CONFIG_NAME, **runtime: Any
) -> config_lib.TransformerConfig:
    """Return the config of the model that a parsed ``config.json`` describes.

    Args:
        raw: The parsed file; written by any version of transformers.
        where: What to call the file in messages.
        **runtime: Fields of :class:`TransformerConfig` that say how the model runs, e.g.
            ``precision`` or ``scan_layers``.

    Raises:
        ConfigError: Listing every field that is missing, malformed, or has a value under
            which the model would compute something that we cannot.
    """
    family = family_of(raw, where=where)
    fields = hf_fields.HFFields(raw, where)
    try:
        architecture = family.read_config(fields)
        fields.raise_problems()
        return family.config_class(**architecture, **runtime)
    except config.ConfigError as error:
        # Whatever part of the config has noticed it: the file is what a user can look into.
        problems = dict.fromkeys([*fields.problems, *error.problems])
        raise config.ConfigError(f"Hugging Face config {where}", problems) from error


def family_of(raw: Mapping[str, Any], *, where: str = CONFIG_NAME) -> families.Family:
    """Return the family that a parsed ``config.json`` names.

    Raises:
        ConfigError: If ``model_type`` is missing or unknown; the known ones are listed.
    """
    by_type = {
        model_type: family
        for family in families.FAMILIES.values()
        for model_type in family.hf_types
    }
    found = raw.get("model_type")
    if not isinstance(found, str) or found not in by_type:
        hint = config.did_you_mean(str(found), by_type)
        shown = hf_fields.shown(found)
        problem = f"model_type is {shown}, which is not supported; known are {list(by_type)}{hint}"
        raise config.ConfigError(f"Hugging Face config {where}", [problem])
    return by_type[found]


def read_config(path: str | pathlib.Path) -> dict[str, Any]:
    """Return a parsed ``config.json``.

    Raises:
        ConfigError: If the file is not a JSON object, or has a field twice.
        OSError: If it cannot be read.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        return json_text.parse_object(data)
    except ValueError as error:
        raise config.ConfigError(f"Hugging Face config {path}", [str(error)]) from error
