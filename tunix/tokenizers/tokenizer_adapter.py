"""One tokenizer interface for samplers, data and trainers.

Text is a wrapper around tokens: everything that reaches a model is a list of ids, and the
set of ids that end a generation is known here, in one place.
"""

import datetime
import enum
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tunix.tokenizers import (
    chat_encoding,
    chat_templates,
    content_guard,
    tokenizer_backends,
    tokenizer_loader,
)
from tunix.tokenizers import chat_template as chat_template_lib
from tunix.utils import config

SpecialIds = tokenizer_backends.SpecialIds
TokenizerError = tokenizer_backends.TokenizerError
EncodedChat = chat_encoding.EncodedChat


class TokenizerType(enum.Enum):
    """Which library does the work."""

    SP = "sp"
    HF = "hf"
    NONE = "none"


class TokenizerAdapter:
    """A tokenizer of any library, with its special ids and chat template."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        special_ids: SpecialIds | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        where: str = "chat template",
        date: datetime.date | None = None,
    ):
        """Wrap ``tokenizer``.

        Args:
            tokenizer: A ``tokenizers.Tokenizer``, a ``transformers`` tokenizer, a
                ``SentencePieceProcessor``, another adapter, or any object with ``encode``,
                ``decode``, ``bos_id``, ``eos_id`` and ``pad_id``.
            special_ids: Overrides what the tokenizer declares about itself; a bare
                ``tokenizers.Tokenizer`` declares nothing.
            chat_template: Overrides the tokenizer's own jinja template. Of several by name,
                ``tool_use`` is for conversations with tools and ``default`` for all others.
            where: Where the template came from, for messages.
            date: What a template is told that asks for today's; see ``ChatTemplate``.

        Raises:
            TokenizerError: If the object is of no known kind.
            ChatTemplateError: If the template is not valid jinja.
        """
        if isinstance(tokenizer, TokenizerAdapter):
            self._backend = tokenizer._backend
            declared, templates = tokenizer._special_ids, tokenizer._templates
        else:
            self._backend = tokenizer_backends.wrap(tokenizer)
            declared, templates = self._backend.declared, chat_templates.ChatTemplates()
            chat_template = chat_template or self._backend.chat_template
        self._special_ids = special_ids or declared
        if chat_template is not None:
            named = {"bos_token": self._special_ids.bos, "eos_token": self._special_ids.eos}
            named["pad_token"] = self._special_ids.pad
            texts = {name: self._text_of(i) for name, i in named.items() if i is not None}
            templates = chat_templates.ChatTemplates(
                chat_template, special_tokens=texts, where=where, date=date
            )
        self._templates = templates
        self._guard = content_guard.ContentGuard(self._backend.special_tokens)

    @property
    def tokenizer(self) -> Any:
        """The wrapped object."""
        return self._backend.raw

    @property
    def tokenizer_type(self) -> TokenizerType:
        """Which library does the work."""
        if isinstance(self._backend, tokenizer_backends.SentencePieceBackend):
            return TokenizerType.SP
        if isinstance(self._backend, tokenizer_backends.DuckBackend):
            return TokenizerType.NONE
        return TokenizerType.HF

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return bool(self._templates)

    @property
    def reads_date(self) -> bool:
        """Whether a chat template writes today's date into conversations."""
        return self._templates.reads_date

    def lacks_chat_template(self, text: str) -> bool:
        """Return whether ``text`` stands outside the form that the chat template gives to turns.

        False where there is no template, and for text to which somebody has applied it already.
        """
        opening = self._templates.turn_opening
        return self.has_chat_template and (opening is None or opening not in text)

    @property
    def special_ids(self) -> SpecialIds:
        """Ids with a role, as they are declared."""
        return self._special_ids

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of control tokens by their text."""
        return {text: token.id for text, token in self._backend.special_tokens.items()}

    def known_ids(self) -> frozenset[int] | None:
        """Ids that are some token's; ``None`` where the library does not tell."""
        return self._backend.known_ids()

    def bos_id(self) -> int | None:
        """Id that begins a text, ``None`` if the vocabulary has none (Qwen)."""
        return self._special_ids.bos

    def eos_id(self) -> int:
        """Id that ends a text.

        Raises:
            TokenizerError: If the tokenizer declares none.
        """
        if self._special_ids.eos is None:
            raise TokenizerError(
                "this tokenizer does not say which token ends a text; give one whose files do: "
                "tokenizer_config.tokenizer_path of a run, load_tokenizer(DIRECTORY) or "
                "special_ids=SpecialIds(eos=...) in Python"
            )
        return self._special_ids.eos

    def pad_id(self) -> int:
        """Id that fills unused positions: the declared one, else EOS. Masks never look at it."""
        return self.eos_id() if self._special_ids.pad is None else self._special_ids.pad

    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a generation, ``eos_id()`` first.

        Besides the tokenizer's own: those of ``generation_config.json``, and the token
        with which the chat template closes a reply.
        """
        return self._eos_ids

    def prefix_ids(self) -> list[int]:
        """Ids the tokenizer wants before the first token of every text: BOS, or nothing."""
        return list(self._backend.prefix_ids)

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        """Encode as the wrapped library does by default; ``kwargs`` are the library's."""
        return self._backend.encode_native(text, **kwargs)

    def encode_text(self, text: str, *, continues: bool = False) -> list[int]:
        """Encode without additions; special tokens spelt in ``text`` are special.

        Args:
            text: Text whose author may use special tokens.
            continues: Whether other text precedes it, for tokenizers that begin every
                text with a space.
        """
        return chat_encoding.encode_text(self._backend, text, ordinary=False, continues=continues)

    def encode_ordinary(self, text: str, *, continues: bool = False) -> list[int]:
        """Encode without additions; special tokens spelt in ``text`` are just characters."""
        return chat_encoding.encode_text(self._backend, text, ordinary=True, continues=continues)

    def encode_prompt(
        self, prompt: str | Sequence[chat_template_lib.Message], **kwargs: Any
    ) -> list[int]:
        """Return what a sampler should continue.

        Args:
            prompt: Text, taken as it stands, or messages for the chat template.
            **kwargs: For messages: ``tools`` and whatever else the template reads.
        """
        if isinstance(prompt, str):
            return self.dedup_bos_ids(self.prefix_ids() + self.encode_text(prompt))
        return self._encode_messages(prompt, {**kwargs, "add_generation_prompt": True})

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, **kwargs: Any
    ) -> str:
        """Return the text of ``ids``; ``kwargs`` are the wrapped library's.

        SentencePiece never writes control symbols, whatever ``skip_special_tokens`` says.
        """
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def dedup_bos_ids(self, ids: list[int]) -> list[int]:
        """Return ``ids`` with at most one BOS in front.

        Templates print BOS and tokenizers add it, so a rendered chat that is encoded as
        text begins with two.
        """
        bos = self.bos_id()
        start = 0
        while bos is not None and list(ids[start : start + 2]) == [bos, bos]:
            start += 1
        return list(ids[start:])

    def apply_chat_template(
        self,
        messages: Sequence[chat_template_lib.Message],
        add_generation_prompt: bool = True,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str | list[int]:
        """Render a conversation as text, or as ids.

        Prefer ids: in text, a special token that a user typed looks like the template's.

        Args:
            messages: Mappings with ``role`` and ``content``.
            add_generation_prompt: Ends the text where the assistant's next reply begins.
            tokenize: Return ids; nothing in ``messages`` becomes a special token.
            **kwargs: ``tools``, ``documents`` and whatever else the template reads.

        Raises:
            ChatTemplateError: If there is no template, or it refuses the conversation.
        """
        options = {**kwargs, "add_generation_prompt": add_generation_prompt}
        if tokenize:
            return self._encode_messages(messages, options)
        return self._template_for(options).render(messages, **options).text

    def encode_chat(
        self,
        messages: Sequence[chat_template_lib.Message],
        *,
        train_from: int = 0,
        **kwargs: Any,
    ) -> EncodedChat:
        """Return the ids of a finished conversation and where the assistant wrote them.

        Args:
            messages: Mappings with ``role`` and ``content``.
            train_from: Replies before this message are context, not spans.
            **kwargs: ``tools``, ``documents`` and whatever else the template reads.

        Raises:
            ChatTemplateError: If there is no template, it refuses the conversation, or it
                rewrites earlier turns so that replies cannot be located.
        """
        template = self._template_for(kwargs)
        chat = content_guard.render_guarded(template, self._guard, messages, **kwargs)
        stops = set(self.eos_ids())
        spans = chat_encoding.assistant_spans(
            template,
            self._guard,
            chat,
            messages,
            stop_tokens=[t for t, s in self._backend.special_tokens.items() if s.id in stops],
            train_from=train_from,
            options=kwargs,
        )
        return chat_encoding.encode(self._backend, self._guard, chat, spans)

    @functools.cached_property
    def _eos_ids(self) -> tuple[int, ...]:
        ids = [self.eos_id(), *self._special_ids.more_eos]
        known = {text: token.id for text, token in self._backend.special_tokens.items()}
        ids += self._templates.turn_ends(known)
        return tuple(dict.fromkeys(ids))

    def _encode_messages(
        self, messages: Sequence[chat_template_lib.Message], options: dict[str, Any]
    ) -> list[int]:
        template = self._template_for(options)
        chat = content_guard.render_guarded(template, self._guard, messages, **options)
        return chat_encoding.encode(self._backend, self._guard, chat).ids

    def _template_for(self, options: Mapping[str, Any]) -> chat_template_lib.ChatTemplate:
        """Return the template of a conversation that is rendered with ``options``."""
        return self._templates.choose(with_tools=options.get("tools") is not None)

    def _text_of(self, token_id: int) -> str:
        for text, token in self._backend.special_tokens.items():
            if token.id == token_id:
                return text
        return self._backend.decode([token_id], skip_special_tokens=False)


def load_tokenizer(
    path_or_id: str | pathlib.Path,
    *,
    hf_access_token: str | None = None,
    date: datetime.date | None = None,
) -> TokenizerAdapter:
    """Load the tokenizer of a model.

    Args:
        path_or_id: A Hugging Face directory, a ``tokenizer.json``, a SentencePiece
            ``.model`` file, a ``.gguf`` file, ``package:NAME`` for the model inside an
            installed Python package, or the id of a model on the hub.
        hf_access_token: For gated models on the hub.
        date: What a chat template is told that asks for today's; the real one by default.

    Raises:
        TokenizerError: If nothing there is a tokenizer; says what was looked for.
        SourceError: If there is no such path, package or repository.
    """
    parts = tokenizer_loader.load(path_or_id, hf_access_token=hf_access_token)
    return TokenizerAdapter(
        parts.tokenizer,
        special_ids=parts.special_ids,
        chat_template=parts.chat_template,
        where=f"chat template of {path_or_id}",
        date=date,
    )


_TOKENIZER_TYPES = {"sentencepiece": TokenizerType.SP, "huggingface": TokenizerType.HF}


class Tokenizer(TokenizerAdapter):
    """A tokenizer by type and path, with :meth:`tokenize` for one example."""

    def __init__(
        self,
        tokenizer_type: str = "sentencepiece",
        tokenizer_path: str | pathlib.Path = "",
        add_bos: bool | None = True,
        add_eos: bool | None = True,
        hf_access_token: str | None = None,
    ):
        """Load ``tokenizer_path``.

        Args:
            tokenizer_type: ``sentencepiece`` for a ``.model`` file, ``huggingface`` for
                whatever :func:`load_tokenizer` reads.
            tokenizer_path: A file, directory, ``package:NAME`` or hub id.
            add_bos: Whether :meth:`tokenize` begins with BOS.
            add_eos: Whether :meth:`tokenize` may end with EOS.
            hf_access_token: For gated models on the hub.

        Raises:
            TokenizerError: If the type is unknown or no such tokenizer is there.
        """
        if tokenizer_type not in _TOKENIZER_TYPES:
            raise TokenizerError(
                f"tokenizer_type {tokenizer_type!r} is not one of {sorted(_TOKENIZER_TYPES)}"
                f"{config.did_you_mean(tokenizer_type, _TOKENIZER_TYPES)}"
            )
        loaded = load_tokenizer(tokenizer_path, hf_access_token=hf_access_token)
        super().__init__(loaded)
        expected = _TOKENIZER_TYPES[tokenizer_type]
        if self.tokenizer_type is not expected:
            raise TokenizerError(
                f"{tokenizer_path} holds a {self.tokenizer_type.value} tokenizer, but "
                f"tokenizer_type {tokenizer_type!r} expects {expected.value}"
            )
        self.add_bos, self.add_eos = bool(add_bos), bool(add_eos)

    def tokenize(
        self, example: str, prefix: str = "", suffix: str = "", add_eos: bool = True
    ) -> Int[np.ndarray, " T"]:
        """Return the ids of ``prefix + example + suffix``, int32.

        Args:
            example: The text.
            prefix: Text before it, such as an instruction.
            suffix: Text after it.
            add_eos: Whether this example ends here; with the tokenizer's own ``add_eos``.
        """
        ids = self.encode_text(prefix + example + suffix)
        bos = self.bos_id()
        if self.add_bos and bos is not None:
            ids = self.dedup_bos_ids([bos, *ids])
        if self.add_eos and add_eos:
            ids.append(self.eos_id())
        return np.asarray(ids, np.int32)
