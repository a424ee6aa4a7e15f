"""Builds the SentencePiece tokenizer that a GGUF file of Gemma carries in its metadata.

llama.cpp stores pieces, their scores and their kinds, as SentencePiece does, and no merges.
SentencePiece joins the two neighbours whose union has the highest score (arXiv:1808.06226);
a list of merges in the order of the scores does the same in the ``tokenizers`` library.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from tunix.tokenizers import tokenizer_backends

_SPACE = "\u2581"
"""What stands for a space in pieces."""


class _Kind(enum.IntEnum):
    """What a piece is, by the numbers that the format gives kinds."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def from_metadata(metadata: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Return the tokenizer described by ``metadata``, without what belongs at the ends.

    Args:
        metadata: Keys and values of a GGUF header.
        where: The file, for messages.

    Raises:
        TokenizerError: If keys are missing, or if text would be changed before it is split.
    """
    needed = [f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type")]
    if missing := [key for key in needed if key not in metadata]:
        raise tokenizer_backends.TokenizerError(
            f"{where}: holds no tokenizer that can be read, its metadata lacks {missing}"
        )
    _refuse_changes(metadata, where)
    stored, scores, numbers = (metadata[key] for key in needed)
    kinds = [_Kind(number) for number in numbers]
    # Pieces that the user of SentencePiece defined are stored with the space itself.
    pieces = [piece.replace(" ", _SPACE) for piece in stored]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=list(_merges(pieces, scores, kinds)),
            unk_token=None if unknown is None else pieces[unknown],
            fuse_unk=True,
            byte_fallback=_Kind.BYTE in kinds,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_tokens(_whole_pieces(pieces, kinds))
    return tokenizer


def _refuse_changes(metadata: Mapping[str, Any], where: str) -> None:
    """Raise if the vocabulary asks for what Gemma's does without."""
    # What llama.cpp takes an absent entry to mean.
    defaults = {"add_space_prefix": True, "remove_extra_whitespaces": False}
    found = {key: metadata.get(f"tokenizer.ggml.{key}", value) for key, value in defaults.items()}
    if asked := [key for key, value in found.items() if value]:
        raise tokenizer_backends.TokenizerError(
            f"{where}: tokenizer.ggml.{' and '.join(asked)} is true (the default of "
            "add_space_prefix), which is not supported; load the tokenizer from the model's "
            "Hugging Face directory"
        )


def _merges(
    pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[_Kind]
) -> Iterator[tuple[str, str]]:
    """Yield the pairs that may be joined, best first."""
    # Other kinds are found whole or byte by byte, and never joined to anything.
    normal = _Kind.NORMAL
    ids = {piece: i for i, piece in enumerate(pieces) if kinds[i] == normal}
    found: list[tuple[float, int, int]] = []
    for piece, i in ids.items():
        for k in range(1, len(piece)):
            left, right = ids.get(piece[:k]), ids.get(piece[k:])
            if left is not None and right is not None:
                found.append((-scores[i], left, right))
    for _, left, right in sorted(found):
        yield pieces[left], pieces[right]


def _whole_pieces(pieces: Sequence[str], kinds: Sequence[_Kind]) -> list[tokenizers.AddedToken]:
    """Return the pieces that are cut out of a text before anything is joined."""
    special = (_Kind.CONTROL, _Kind.UNKNOWN)
    whole = (*special, _Kind.USER_DEFINED)
    return [
        # Runs of spaces are found once spaces are replaced, and all others with them, since
        # the longest piece at a place wins.
        tokenizers.AddedToken(piece, special=kind in special, normalized=kind not in special)
        for piece, kind in zip(pieces, kinds, strict=True)
        if kind in whole
    ]
