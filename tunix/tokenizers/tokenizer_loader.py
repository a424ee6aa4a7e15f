"""Finds and reads the tokenizer files of a model.

What a model directory says is spread over several files; this module gathers it: the
tokenizer itself, the ids with a role, and the chat templates.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tunix.tokenizers import tokenizer_backends, tokenizer_settings
from tunix.utils import error_text

TokenizerError = tokenizer_backends.TokenizerError

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.gguf")
_HUB_FILES = (
    "tokenizer*",
    "*.jinja",
    "*config.json",
    "chat_template.json",
    "special_tokens_map.json",
)


@dataclasses.dataclass(frozen=True)
class TokenizerParts:
    """What was found."""

    tokenizer: Any
    special_ids: tokenizer_backends.SpecialIds
    chat_template: str | Mapping[str, str] | None
    """One, or several by name."""


def load(path_or_id: str | pathlib.Path, *, hf_access_token: str | None = None) -> TokenizerParts:
    """Read the tokenizer at a path, in a package or on the hub.

    Raises:
        TokenizerError: If nothing there is a tokenizer; says what was looked for.
        SourceError: If there is no such path, package or repository.
    """
    path = _resolve(path_or_id, hf_access_token)
    if path.is_dir():
        return _load_directory(path)
    if path.suffix == ".gguf":
        return _load_gguf(path)
    if path.suffix == ".model":
        return _load_sentencepiece(path)
    if path.name == "tokenizer.json":
        return _load_directory(path.parent)
    raise TokenizerError(
        f"{path}: not a tokenizer; expected a model directory, tokenizer.json, *.model or *.gguf"
    )


def _load_directory(directory: pathlib.Path) -> TokenizerParts:
    if (directory / "tokenizer.json").is_file():
        return _load_hf(directory)
    if (directory / "tokenizer.model").is_file():
        return _load_sentencepiece(directory / "tokenizer.model")
    ggufs = sorted(directory.glob("*.gguf"))
    if len(ggufs) == 1:
        return _load_gguf(ggufs[0])
    found = sorted(entry.name for entry in directory.iterdir())
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise TokenizerError(
        f"{directory}: no tokenizer here; looked for {', '.join(_TOKENIZER_FILES)} (exactly one), "
        f"found {shown or 'an empty directory'}"
    )


def _load_hf(directory: pathlib.Path) -> TokenizerParts:
    import tokenizers

    path = directory / "tokenizer.json"
    tokenizer = _opened(path, lambda: tokenizers.Tokenizer.from_file(str(path)))
    # Some files carry the settings of the run that saved them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer_settings.read(
        directory, tokenizer.token_to_id, tokenizer_backends.SpecialIds()
    )
    return TokenizerParts(tokenizer, found.special_ids, found.chat_template)


def _opened(path: pathlib.Path, open_file: Callable[[], Any]) -> Any:
    """Return a library's tokenizer; libraries raise anything for files they cannot read."""
    try:
        return open_file()
    except BaseException as error:
        # A panic of the Rust library is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        size = path.stat().st_size
        raise TokenizerError(
            f"{path}: not a tokenizer that can be read ({size:,} bytes): "
            f"{error_text.describe(error)}; copy the file again from where the model is published"
        ) from error


def _load_sentencepiece(path: pathlib.Path) -> TokenizerParts:
    try:
        import sentencepiece
    except ImportError as error:
        raise TokenizerError(
            f"{path}: needs the sentencepiece package; pip install 'tunix[sentencepiece]'"
        ) from error
    # The library takes an empty file for no file.
    content = path.read_bytes()
    if not content:
        raise TokenizerError(f"{path}: the file is empty; copy it again from where it is published")
    processor = _opened(path, lambda: sentencepiece.SentencePieceProcessor(model_proto=content))
    own = tokenizer_backends.SentencePieceBackend(processor).declared

    def token_to_id(token: str) -> int | None:
        token_id = processor.piece_to_id(token)
        return token_id if processor.id_to_piece(token_id) == token else None

    found = tokenizer_settings.read(path.parent, token_to_id, own)
    return TokenizerParts(processor, found.special_ids, found.chat_template)


def _load_gguf(path: pathlib.Path) -> TokenizerParts:
    from tunix.models import gguf_file
    from tunix.tokenizers import gguf_tokenizer

    metadata = gguf_file.GGUFFile(path).metadata
    return TokenizerParts(
        gguf_tokenizer.from_metadata(metadata, str(path)),
        gguf_tokenizer.special_ids(metadata),
        gguf_tokenizer.chat_templates(metadata, str(path)),
    )


def _resolve(path_or_id: str | pathlib.Path, hf_access_token: str | None) -> pathlib.Path:
    path = pathlib.Path(path_or_id).expanduser()
    if str(path_or_id) and path.exists():  # a tokenizer may lie where no model does
        return path
    from tunix.models import sources

    return sources.resolve(path_or_id, files=_HUB_FILES, token=hf_access_token)
