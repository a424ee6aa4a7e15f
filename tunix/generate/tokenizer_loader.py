"""Finds and reads the tokenizer files of a model.

What a model directory says is spread over five files; this module gathers it: the
tokenizer itself, the ids with a role, and the chat template.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tunix.generate import tokenizer_backends

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
    chat_template: str | None


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

    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    # Some files carry the settings of the run that saved them.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TokenizerParts(
        tokenizer,
        _declared_ids(directory, tokenizer.token_to_id, tokenizer_backends.SpecialIds()),
        _chat_template(directory),
    )


def _load_sentencepiece(path: pathlib.Path) -> TokenizerParts:
    try:
        import sentencepiece
    except ImportError as error:
        raise TokenizerError(
            f"{path}: needs the sentencepiece package; pip install 'tunix[sentencepiece]'"
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    own = tokenizer_backends.SentencePieceBackend(processor).declared

    def token_to_id(token: str) -> int | None:
        token_id = processor.piece_to_id(token)
        return token_id if processor.id_to_piece(token_id) == token else None

    directory = path.parent
    return TokenizerParts(
        processor, _declared_ids(directory, token_to_id, own), _chat_template(directory)
    )


def _load_gguf(path: pathlib.Path) -> TokenizerParts:
    from tunix.generate import gguf_tokenizer
    from tunix.models import gguf_file

    metadata = gguf_file.GGUFFile(path).metadata
    return TokenizerParts(
        gguf_tokenizer.from_metadata(metadata, str(path)),
        gguf_tokenizer.special_ids(metadata),
        metadata.get("tokenizer.chat_template"),
    )


def _declared_ids(
    directory: pathlib.Path, token_to_id: Any, own: tokenizer_backends.SpecialIds
) -> tokenizer_backends.SpecialIds:
    """Gather roles: tokens named by the tokenizer's config, then ids of the model's configs."""
    named = _read_json(directory / "special_tokens_map.json")
    named |= {k: v for k, v in _read_json(directory / "tokenizer_config.json").items() if v}
    generation = _read_json(directory / "generation_config.json")
    model = _read_json(directory / "config.json")

    def named_id(role: str) -> int | None:
        token = named.get(f"{role}_token")
        text = token["content"] if isinstance(token, Mapping) else token
        if text is None:
            return None
        token_id = token_to_id(text)
        if token_id is None:
            raise TokenizerError(
                f"{directory / 'tokenizer_config.json'}: {role}_token {text!r} is not in the "
                "tokenizer's vocabulary"
            )
        return token_id

    def ids_of(source: Mapping[str, Any], role: str) -> list[int]:
        value = source.get(f"{role}_token_id")
        return [] if value is None else list(value) if isinstance(value, list) else [value]

    def first(role: str, fallback: int | None, *sources: Mapping[str, Any]) -> int | None:
        candidates = [named_id(role), fallback, *(i for s in sources for i in ids_of(s, role))]
        return next((i for i in candidates if i is not None), None)

    # Qwen's model config names a BOS that its tokenizer does not have: the tokenizer is right.
    bos_sources = () if named else (generation, model)

    return tokenizer_backends.SpecialIds(
        bos=first("bos", own.bos, *bos_sources),
        eos=first("eos", own.eos, generation, model),
        pad=first("pad", own.pad, generation, model),
        more_eos=tuple(ids_of(generation, "eos") or ids_of(model, "eos")),
    )


def _chat_template(directory: pathlib.Path) -> str | None:
    """Return the template of the newest of the three places it has lived in."""
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(directory / name).get("chat_template")
        if isinstance(template, list):  # several, by name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template is not None:
            return template
    return None


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Return the object in ``path``, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error


def _resolve(path_or_id: str | pathlib.Path, hf_access_token: str | None) -> pathlib.Path:
    path = pathlib.Path(path_or_id).expanduser()
    if str(path_or_id) and path.exists():  # a tokenizer may lie where no model does
        return path
    from tunix.models import sources

    return sources.resolve(path_or_id, files=_HUB_FILES, token=hf_access_token)
