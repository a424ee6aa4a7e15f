"""Builds the tokenizer that a GGUF file carries in its metadata.

Nothing here reads files: a mapping of ``tokenizer.*`` keys goes in. Of a byte-level BPE
llama.cpp stores the vocabulary and the merges; how text is split beforehand is only named
(``tokenizer.ggml.pre``), and the published rule behind each name stands in the table below.
A vocabulary of SentencePiece is built by :mod:`gguf_sentencepiece`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tunix.tokenizers import gguf_sentencepiece, tokenizer_backends
from tunix.utils import config

_TEMPLATE = "tokenizer.chat_template"

# Kinds of tokens in ``tokenizer.ggml.token_type``.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_AFTER_NUMBERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PreTokenizer:
    """How one family splits text before byte-pair merging."""

    pattern: str | None = None
    """Regular expression of the pieces; ``None`` is GPT-2's, built into the library."""
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    """Whether a piece that is in the vocabulary skips the merges."""


# The table is the documentation, the validator and the dispatcher.
_PRE_TOKENIZERS: Mapping[str, _PreTokenizer] = {
    "gpt-2": _PreTokenizer(),
    "smollm": _PreTokenizer(single_digits=True),
    "llama-bpe": _PreTokenizer(
        pattern=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _AFTER_NUMBERS,
        whole_words=True,
    ),
    "qwen2": _PreTokenizer(
        pattern=_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _AFTER_NUMBERS, nfc=True
    ),
}


def from_metadata(metadata: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    """Return the tokenizer described by ``metadata``.

    Args:
        metadata: Keys and values of a GGUF header.
        where: The file, for messages.

    Raises:
        TokenizerError: If it is of another kind, its pre-tokenizer is unknown, or keys are
            missing.
    """
    kind = metadata.get("tokenizer.ggml.model", "gpt2")
    if kind == "llama":  # what llama.cpp calls SentencePiece, after its first model
        tokenizer = gguf_sentencepiece.from_metadata(metadata, where)
        _add_ends(tokenizer, metadata, default_bos=True)
        return tokenizer
    if kind != "gpt2":
        raise tokenizer_backends.TokenizerError(
            f"{where}: tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece) can be read, load the tokenizer from the model's Hugging Face "
            "directory"
        )
    return _byte_level(metadata, where)


def _byte_level(metadata: Mapping[str, Any], where: str) -> tokenizers.Tokenizer:
    needed = [f"tokenizer.ggml.{k}" for k in ("model", "pre", "tokens", "token_type", "merges")]
    if missing := [key for key in needed if key not in metadata]:
        raise tokenizer_backends.TokenizerError(
            f"{where}: holds no tokenizer that can be read, its metadata lacks {missing}"
        )
    _, pre, tokens, kinds, merges = (metadata[key] for key in needed)
    if pre not in _PRE_TOKENIZERS:
        raise tokenizer_backends.TokenizerError(
            f"{where}: tokenizer.ggml.pre {pre!r} is not one of {sorted(_PRE_TOKENIZERS)}"
            f"{config.did_you_mean(pre, _PRE_TOKENIZERS)}; load the tokenizer from the model's "
            "Hugging Face directory"
        )
    rule = _PRE_TOKENIZERS[pre]
    model = models.BPE(
        vocab={t: i for i, t in enumerate(tokens) if kinds[i] != _UNUSED},
        merges=[tuple(merge.split(" ", 1)) for merge in merges],
        ignore_merges=rule.whole_words,
    )
    tokenizer = tokenizers.Tokenizer(model)
    _set_splitting(tokenizer, rule)
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    _add_ends(tokenizer, metadata, default_bos=pre == "llama-bpe")
    return tokenizer


def special_ids(metadata: Mapping[str, Any]) -> tokenizer_backends.SpecialIds:
    """Return the ids with a role that a GGUF header declares."""
    get = metadata.get
    turn_ends = (get("tokenizer.ggml.eot_token_id"), get("tokenizer.ggml.eom_token_id"))
    return tokenizer_backends.SpecialIds(
        bos=get("tokenizer.ggml.bos_token_id"),
        eos=get("tokenizer.ggml.eos_token_id"),
        pad=get("tokenizer.ggml.padding_token_id"),
        more_eos=tuple(i for i in turn_ends if i is not None),
    )


def chat_templates(metadata: Mapping[str, Any], where: str) -> Mapping[str, str] | None:
    """Return the chat templates of a GGUF header by name.

    Raises:
        TokenizerError: If one is no text.
    """
    keys = {"default": _TEMPLATE}
    keys |= {key.removeprefix(f"{_TEMPLATE}."): key for key in metadata if _TEMPLATE + "." in key}
    found = {name: metadata[key] for name, key in keys.items() if key in metadata}
    if odd := [keys[name] for name, text in found.items() if not isinstance(text, str)]:
        raise tokenizer_backends.TokenizerError(
            f"{where}: {', '.join(odd)} must be jinja text; load the tokenizer from the model's "
            "Hugging Face directory"
        )
    return found or None


def _set_splitting(tokenizer: tokenizers.Tokenizer, rule: _PreTokenizer) -> None:
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if rule.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rule.pattern is not None:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()


def _add_ends(
    tokenizer: tokenizers.Tokenizer, metadata: Mapping[str, Any], *, default_bos: bool
) -> None:
    """Make ``encode`` add BOS and EOS where the header asks for it."""
    ids = special_ids(metadata)
    begins = metadata.get("tokenizer.ggml.add_bos_token", default_bos) and ids.bos is not None
    ends = metadata.get("tokenizer.ggml.add_eos_token", False) and ids.eos is not None
    if not begins and not ends:
        return
    tokens = metadata["tokenizer.ggml.tokens"]
    around = [tokens[i] for i, used in ((ids.bos, begins), (ids.eos, ends)) if used]
    template = ([tokens[ids.bos]] if begins else []) + ["$A"] + ([tokens[ids.eos]] if ends else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, tokenizer.token_to_id(t)) for t in around]
    )
