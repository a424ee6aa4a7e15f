"""The files around the weights of a Hugging Face directory: configs and what belongs to the text.

What decides the function comes from the model; what a model does not know, such as the ids of
its special tokens, is copied from the files it was loaded from.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from tunix.models import families, gguf_file
from tunix.models.hf import hf_config, hf_write
from tunix.models.transformer import config as config_lib
from tunix.utils import config as checks

GENERATION_NAME = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Every file of a directory from which transformers may build a tokenizer."""

_OTHER_FILES = ("*processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")
_KEPT_FIELDS = ("max_position_embeddings", "initializer_range", "use_cache")
_KEPT_ENDINGS = ("_token_id", "_token_ids", "_token_index")
_RUNNING = ("param_dtype", "precision", "remat", "scan_layers", "freeze_vision_tower")


def make_config(
    family: families.Family,
    model_config: config_lib.TransformerConfig,
    dtype: str,
    source: pathlib.Path | None,
) -> dict[str, Any]:
    """Return the ``config.json`` of an exported model.

    Args:
        family: Of the model.
        model_config: Of the model.
        dtype: Of the exported files.
        source: Directory or GGUF file that the model was loaded from.

    Raises:
        ConfigError: If the family's files cannot say what the config says; lists every field.
    """
    written = family.write_config(model_config) | hf_write.dtype(dtype)
    kept = {} if source is None else _source_config(source)
    merged = _kept(kept) | written
    for name, block in written.items():
        if isinstance(block, Mapping) and isinstance(kept.get(name), Mapping):
            merged[name] = _kept(kept[name]) | dict(block)
    _require_same(model_config, hf_config.config_from_hf(merged, where="to be written"))
    return merged


def max_positions(source: pathlib.Path) -> int | None:
    """Return how long the texts were that a model was made for, where its own files say so."""
    config = _source_config(source)
    text = config.get("text_config")
    value = (text if isinstance(text, Mapping) else config).get("max_position_embeddings")
    return value if type(value) is int and value > 0 else None


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers lays it out."""
    text = json.dumps(dict(value), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_generation_config(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write ``generation_config.json``, if the source has one or is a GGUF file."""
    if source.is_file():
        write_json(folder / GENERATION_NAME, _gguf_ids(source, every_end=True))
    elif (source / GENERATION_NAME).exists():
        shutil.copyfile(source / GENERATION_NAME, folder / GENERATION_NAME)


def read_generation_config(source: pathlib.Path) -> dict[str, Any]:
    """Return what ``generation_config.json`` says, if there is one, or a GGUF header instead."""
    if source.is_file():
        return _gguf_ids(source, every_end=True)
    path = source / GENERATION_NAME
    return hf_config.read_config(path) if path.exists() else {}


def copy_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copy the files of the tokenizer, its chat template and the model's licence, unchanged."""
    for pattern in (*TOKENIZER_FILES, *_OTHER_FILES):
        for path in sorted(source.glob(pattern)):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _source_config(source: pathlib.Path) -> dict[str, Any]:
    """Return what the model's own ``config.json`` says, or what a GGUF header says instead."""
    if source.is_file():
        return _gguf_ids(source, every_end=False)
    path = source / hf_config.CONFIG_NAME
    return hf_config.read_config(path) if path.exists() else {}


def _gguf_ids(path: pathlib.Path, *, every_end: bool) -> dict[str, Any]:
    """Return special ids of a GGUF file: all ends of a turn, or the first and the length."""
    metadata = gguf_file.GGUFFile(path).metadata
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {hf: metadata.get(f"tokenizer.ggml.{name}_token_id") for hf, name in names.items()}
    if every_end:
        ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        unique = list(dict.fromkeys(end for end in ends if end is not None))
        found["eos_token_id"] = unique[0] if len(unique) == 1 else unique or None
    else:
        architecture = metadata.get("general.architecture")
        found["max_position_embeddings"] = metadata.get(f"{architecture}.context_length")
    return {name: value for name, value in found.items() if value is not None}


def _kept(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in raw.items()
        if name in _KEPT_FIELDS or name.endswith(_KEPT_ENDINGS)
    }


def _require_same(
    ours: config_lib.TransformerConfig, read_back: config_lib.TransformerConfig
) -> None:
    """Raise unless the config that will be read is the one that was meant."""
    mine, theirs = _architecture(ours), _architecture(read_back)
    problems = [
        f"{name} is {value!r}, and a config.json of this family can only say {theirs.get(name)!r}"
        for name, value in mine.items()
        if value != theirs.get(name)
    ]
    if problems:
        raise checks.ConfigError("model for the Hugging Face format", problems)


def _architecture(config: config_lib.TransformerConfig) -> dict[str, Any]:
    """Return the fields that decide the function; one word per layer for its attention."""
    fields = {name: value for name, value in vars(config).items() if name not in _RUNNING}
    return fields | {"attention_types": tuple(hf_write.layer_types(config))}
