"""One small interface over the tokenizer libraries that users bring.

Nothing here knows about chats. A backend tells apart three readings of a text: ``encode``
sees special tokens in it, ``encode_ordinary`` sees only text, and ``encode_native`` is
what the wrapped library does by itself, additions at the ends included. The libraries are
imported by whoever made the tokenizer, never here.
"""

import abc
import copy
import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


class TokenizerError(ValueError):
    """A tokenizer that cannot be used as asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Ids with a role; ``None`` where the vocabulary has no such token."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    more_eos: tuple[int, ...] = ()
    """Further ids that end a generation, e.g. from ``generation_config.json``."""


@dataclasses.dataclass(frozen=True)
class SpecialToken:
    """A token that stands for itself when a template spells it."""

    id: int
    strips_left: bool = False
    """Whether it takes in the whitespace before it."""
    strips_right: bool = False


@runtime_checkable
class DuckTokenizer(Protocol):
    """Anything else that encodes and decodes."""

    def encode(self, text: str) -> list[int]:
        """Return ids."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return text."""
        ...

    def bos_id(self) -> int:
        """Return the id that begins a text."""
        ...

    def eos_id(self) -> int:
        """Return the id that ends a text."""
        ...

    def pad_id(self) -> int:
        """Return the id that fills unused positions."""
        ...


class Backend(abc.ABC):
    """What the library needs from a tokenizer."""

    raw: Any
    declared: SpecialIds
    chat_template: str | Mapping[str, str] | None = None

    @abc.abstractmethod
    def encode_native(self, text: str, **options: Any) -> list[int]:
        """Encode as the wrapped library does by default."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encode; special tokens in ``text`` are special, nothing is added."""

    @abc.abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """Encode; special tokens in ``text`` are plain characters, nothing is added."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ``ids``."""

    def known_ids(self) -> frozenset[int] | None:
        """Ids that are some token's; ``None`` where the library does not tell."""
        return None

    @functools.cached_property
    def special_tokens(self) -> Mapping[str, SpecialToken]:
        """Control tokens by their text; a user's text must never become one."""
        return self._find_special_tokens()

    @functools.cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """What belongs before the first token of every text: BOS, or nothing."""
        return self._find_prefix()

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of ``special_tokens``."""
        return frozenset(token.id for token in self.special_tokens.values())

    @functools.cached_property
    def joins_cleanly(self) -> bool:
        """Whether a text encodes alike at the start and after other text."""
        encode = self.encode_ordinary
        return any(encode(lead) + encode("a") == encode(lead + "a") for lead in self.leads)

    @functools.cached_property
    def leads(self) -> tuple[str, ...]:
        """Texts that are tokens of their own, to put before a text that continues another."""
        # Some SentencePiece models normalise line breaks away.
        return tuple(lead for lead in ("\n", ".", "0", "a") if self.encode_ordinary(lead))

    @abc.abstractmethod
    def _find_special_tokens(self) -> Mapping[str, SpecialToken]: ...

    @abc.abstractmethod
    def _find_prefix(self) -> tuple[int, ...]: ...


class _AddedTokensBackend(Backend):
    """What the two libraries of Hugging Face have in common: a table of added tokens."""

    def _find_special_tokens(self) -> Mapping[str, SpecialToken]:
        # ``<think>`` is often added without being special: then anybody may write it.
        return {
            token.content: SpecialToken(i, token.lstrip, token.rstrip)
            for i, token in self._added_tokens().items()
            if token.special
        }

    def _find_prefix(self) -> tuple[int, ...]:
        whole, bare = self.encode_native("a"), self.encode("a")
        starts = range(len(whole) - len(bare) + 1)
        start = next((k for k in starts if whole[k : k + len(bare)] == bare), 0)
        return tuple(whole[:start])

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode once more, literally, if a special token turned up."""
        ids = self.encode(text)
        return ids if self.special_ids.isdisjoint(ids) else self._encode_literally(text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ``ids``."""
        return self.raw.decode(list(ids), skip_special_tokens=skip_special_tokens, **options)

    def known_ids(self) -> frozenset[int] | None:
        """Ids of the vocabulary, added tokens included."""
        return frozenset(self.raw.get_vocab().values())

    @abc.abstractmethod
    def _added_tokens(self) -> Mapping[int, Any]: ...

    @abc.abstractmethod
    def _encode_literally(self, text: str) -> list[int]: ...


class HfBackend(_AddedTokensBackend):
    """``tokenizers.Tokenizer``, the Rust tokenizer behind ``tokenizer.json``."""

    def __init__(self, tokenizer: Any):
        self.raw, self.declared = tokenizer, SpecialIds()

    def encode_native(self, text: str, **options: Any) -> list[int]:
        """Encode with what the post-processor adds."""
        return self.raw.encode(text, **options).ids

    def encode(self, text: str) -> list[int]:
        """Encode without what the post-processor adds."""
        return self.raw.encode(text, add_special_tokens=False).ids

    def _added_tokens(self) -> Mapping[int, Any]:
        return self.raw.get_added_tokens_decoder()

    def _encode_literally(self, text: str) -> list[int]:
        return self._literal.encode(text, add_special_tokens=False).ids

    @functools.cached_property
    def _literal(self) -> Any:
        # A copy, made when a text first spells a special token: the switch is a property of
        # the tokenizer, and flipping it on the shared one would race with other threads.
        literal = copy.deepcopy(self.raw)
        literal.encode_special_tokens = True
        return literal


class TransformersBackend(_AddedTokensBackend):
    """A tokenizer object of the ``transformers`` package."""

    def __init__(self, tokenizer: Any):
        self.raw = tokenizer
        self.declared = SpecialIds(
            bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
        )
        self.chat_template = tokenizer.chat_template

    def encode_native(self, text: str, **options: Any) -> list[int]:
        """Encode with what the tokenizer adds."""
        return list(self.raw.encode(text, **options))

    def encode(self, text: str) -> list[int]:
        """Encode without what the tokenizer adds."""
        return list(self.raw.encode(text, add_special_tokens=False))

    def _added_tokens(self) -> Mapping[int, Any]:
        return self.raw.added_tokens_decoder

    def _encode_literally(self, text: str) -> list[int]:
        return list(self.raw.encode(text, add_special_tokens=False, split_special_tokens=True))


class SentencePieceBackend(Backend):
    """``sentencepiece.SentencePieceProcessor``; never writes control symbols as text."""

    def __init__(self, processor: Any):
        self.raw = processor
        ids = (processor.bos_id(), processor.eos_id(), processor.pad_id())
        bos, eos, pad = (None if i < 0 else i for i in ids)  # -1 says that there is none
        self.declared = SpecialIds(bos=bos, eos=eos, pad=pad)

    def known_ids(self) -> frozenset[int] | None:
        """Ids of all pieces."""
        return frozenset(range(self.raw.get_piece_size()))

    def _find_special_tokens(self) -> Mapping[str, SpecialToken]:
        ids = range(self.raw.get_piece_size())
        return {self.raw.id_to_piece(i): SpecialToken(i) for i in ids if self.raw.is_control(i)}

    def _find_prefix(self) -> tuple[int, ...]:
        return () if self.declared.bos is None else (self.declared.bos,)

    def encode_native(self, text: str, **options: Any) -> list[int]:
        """Encode; the library adds nothing unless told to."""
        return self.raw.encode(text, **options)

    def encode(self, text: str) -> list[int]:
        """Encode, with control symbols where ``text`` spells them."""
        # Its own encoder never sees a control symbol in text, so split the text at them.
        names = "|".join(map(re.escape, sorted(self.special_tokens, key=len, reverse=True)))
        ids: list[int] = []
        for i, piece in enumerate(re.split(f"({names or '(?!)'})", text)):
            is_special = bool(i % 2)
            ids += [self.special_tokens[piece].id] if is_special else self.raw.encode(piece)
        return ids

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode as the library does."""
        return self.raw.encode(text)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ``ids``, always without control symbols."""
        return self.raw.decode([int(i) for i in ids], **options)


class DuckBackend(Backend):
    """An object with ``encode``, ``decode``, ``bos_id()``, ``eos_id()`` and ``pad_id()``."""

    def __init__(self, tokenizer: DuckTokenizer):
        self.raw = tokenizer
        self.declared = SpecialIds(
            bos=tokenizer.bos_id(), eos=tokenizer.eos_id(), pad=tokenizer.pad_id()
        )

    def _find_special_tokens(self) -> Mapping[str, SpecialToken]:
        return {}

    def _find_prefix(self) -> tuple[int, ...]:
        return ()

    def encode_native(self, text: str, **options: Any) -> list[int]:
        """Encode as the object does."""
        return list(self.raw.encode(text, **options))

    def encode(self, text: str) -> list[int]:
        """Encode as the object does."""
        return list(self.raw.encode(text))

    def encode_ordinary(self, text: str) -> list[int]:
        """Encode as the object does."""
        return list(self.raw.encode(text))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, **options: Any) -> str:
        """Return the text of ``ids``; special are BOS, EOS and padding."""
        roles = (self.declared.bos, self.declared.eos, self.declared.pad)
        skipped = roles if skip_special_tokens else ()
        return self.raw.decode([int(i) for i in ids if i not in skipped], **options)


def wrap(tokenizer: Any) -> Backend:
    """Return the backend for ``tokenizer``.

    Raises:
        TokenizerError: If it is of no kind we know.
    """
    if _is_a(tokenizer, "tokenizers", "Tokenizer"):
        return HfBackend(tokenizer)
    if _is_a(tokenizer, "transformers", "PreTrainedTokenizerBase"):
        return TransformersBackend(tokenizer)
    if _is_a(tokenizer, "sentencepiece", "SentencePieceProcessor"):
        return SentencePieceBackend(tokenizer)
    if isinstance(tokenizer, DuckTokenizer):
        return DuckBackend(tokenizer)
    raise TokenizerError(
        f"cannot use a {type(tokenizer).__module__}.{type(tokenizer).__qualname__} as tokenizer: "
        "expected a tokenizers.Tokenizer, a transformers tokenizer, a SentencePieceProcessor, "
        "or an object with encode, decode, bos_id, eos_id and pad_id"
    )


def _is_a(value: Any, module: str, name: str) -> bool:
    """Check a class without importing its package: a value's package is loaded already."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))
