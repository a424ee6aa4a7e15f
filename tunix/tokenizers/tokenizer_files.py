"""Writes the tokenizer of a model into a directory, in the files that transformers reads."""

import json
import pathlib
import shutil

from tunix.models import gguf_file
from tunix.models.hf import hf_files
from tunix.tokenizers import gguf_tokenizer, tokenizer_settings


def write(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the tokenizer of the model at ``source`` into ``folder``.

    Args:
        source: A Hugging Face directory (or the tokenizer's file in one), whose files are copied,
            or a GGUF file, whose tokenizer is built and written as ``tokenizer.json`` with its
            config and chat template.
        folder: An existing directory.

    Raises:
        TokenizerError: If the GGUF file holds no tokenizer that can be read.
    """
    if source.suffix != ".gguf":
        hf_files.copy_tokenizer(source if source.is_dir() else source.parent, folder)
        return
    metadata = gguf_file.GGUFFile(source).metadata
    tokenizer = gguf_tokenizer.from_metadata(metadata, str(source))
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = gguf_tokenizer.special_ids(metadata)
    tokens = metadata["tokenizer.ggml.tokens"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for role, token_id in (("bos", ids.bos), ("eos", ids.eos), ("pad", ids.pad)):
        if token_id is not None:
            settings[f"{role}_token"] = tokens[token_id]
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    for name, template in (gguf_tokenizer.chat_templates(metadata, str(source)) or {}).items():
        path = folder / tokenizer_settings.TEMPLATE_FILE
        if name != "default":
            path = folder / tokenizer_settings.TEMPLATE_FOLDER / f"{pathlib.Path(name).name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")


def remove_chat_templates(folder: pathlib.Path) -> None:
    """Remove the chat templates from the files of a tokenizer, wherever they are."""
    for name in (tokenizer_settings.TEMPLATE_FILE, "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / tokenizer_settings.TEMPLATE_FOLDER, ignore_errors=True)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            path.write_text(
                json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
