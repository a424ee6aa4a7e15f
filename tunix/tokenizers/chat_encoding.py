"""Turns rendered conversations into token ids, and finds what the assistant wrote.

Text of the template may hold special tokens, text of messages may not (``content_guard``).
Each reply is encoded apart from what precedes it, because a sampler encodes the prompt
alone: a token that straddles the two would be trained and never generated. For templates
that close turns with special tokens the ids are those of the whole text.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.tokenizers import chat_template as chat_template_lib
from tunix.tokenizers import content_guard, tokenizer_backends
from tunix.utils import texts


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """Token ids of a conversation and, per trained reply, its tokens ``[start, end)``."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...]


def encode(
    backend: tokenizer_backends.Backend,
    guard: content_guard.ContentGuard,
    chat: content_guard.GuardedChat,
    spans: Sequence[tuple[int, int]] = (),
) -> EncodedChat:
    """Return the tokens of ``chat``, cut at the edges of the character ``spans``."""
    edges = sorted({0, len(chat.guarded), *itertools.chain.from_iterable(spans)})
    ids: list[int] = []
    token_at = {0: 0}
    for start, end in itertools.pairwise(edges):
        ids += _encode_guarded(backend, guard, chat.guarded[start:end], continues=start > 0)
        token_at[end] = len(ids)
    return EncodedChat(ids, tuple((token_at[start], token_at[end]) for start, end in spans))


def encode_text(
    backend: tokenizer_backends.Backend, text: str, *, ordinary: bool, continues: bool
) -> list[int]:
    """Encode text that starts a document or continues one.

    Raises:
        TokenizerError: If ``text`` holds half a character, or the tokenizer adds a space before
            every text and cannot be stopped from it, so that ``text`` cannot be continued exactly.
    """
    if not text.isascii() and (found := texts.LONE_SURROGATE.search(text)):
        raise tokenizer_backends.TokenizerError(f"the text {texts.half_character(found)}")
    encode_one = backend.encode_ordinary if ordinary else backend.encode
    if not continues or not text or backend.joins_cleanly:
        return encode_one(text)
    for lead in backend.leads:
        before, ids = backend.encode_ordinary(lead), encode_one(lead + text)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    raise tokenizer_backends.TokenizerError(
        f"this tokenizer cannot encode {text[:40]!r} as the continuation of another text: it "
        f"merges it with each of {list(backend.leads)} before it"
    )


def assistant_spans(
    template: chat_template_lib.ChatTemplate,
    guard: content_guard.ContentGuard,
    chat: content_guard.GuardedChat,
    messages: Sequence[chat_template_lib.Message],
    *,
    stop_tokens: Sequence[str],
    train_from: int = 0,
    options: Mapping[str, Any],
) -> list[tuple[int, int]]:
    """Return the characters ``[start, end)`` that each assistant message contributes.

    A reply begins where the generation prompt ends and includes the token that closes the
    turn, since the model has to learn to stop. Templates with ``{% generation %}`` blocks
    say so themselves; for others every turn is rendered as the prompt a sampler would get.

    Args:
        template: Renders prefixes of the conversation.
        guard: What told special tokens apart in ``chat``.
        chat: The whole conversation, rendered.
        messages: Its messages.
        stop_tokens: Texts of the tokens that close a turn.
        train_from: Replies before this message are context only.
        options: The other arguments ``chat`` was rendered with.

    Raises:
        ChatTemplateError: If an earlier turn changes when later ones follow, so that no
            prompt of the sampler would look like the training text.
    """
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if template.marks_assistant:
        if len(chat.spans) != len(replies):
            raise chat_template_lib.ChatTemplateError(
                f"{template.where}: has {len(chat.spans)} non-nested generation blocks for "
                f"{len(replies)} assistant messages; it must mark each of them once"
            )
        pairs = zip(replies, chat.spans, strict=True)
        return [span for i, span in pairs if i >= train_from]
    stop = re.compile(f"(?:{'|'.join(map(re.escape, stop_tokens))})(?=\\s*$)")
    spans = []
    for i in replies:
        if i < train_from:
            continue
        prompt = template.render(messages[:i], **{**options, "add_generation_prompt": True}).text
        turn = template.render(messages[: i + 1], **options).text
        for prefix in (prompt, turn):
            _check_prefix(template, prefix, chat.text, reply=i)
        # Search the guarded text, so that a stop token typed by a user closes nothing.
        match = stop.search(chat.guarded[: len(turn)], len(prompt)) if stop_tokens else None
        spans.append((len(prompt), match.end() if match else len(turn)))
    return spans


def turn_end_token(
    template: chat_template_lib.ChatTemplate, known: Mapping[str, int]
) -> str | None:
    """Return the token of ``known`` that the template prints right after a reply, if any."""
    _, _, after = _around(template, "assistant")
    fitting = [token for token in known if token and after.lstrip().startswith(token)]
    return max(fitting, key=len, default=None)


def turn_opening(template: chat_template_lib.ChatTemplate) -> str | None:
    """Return the end of what the template prints before a user's message, or after it."""
    before, _, after = _around(template, "user")
    bos = template.special_tokens.get("bos_token", "")
    for text in (before.removeprefix(bos).strip()[-_OPENING:], after.strip()[:_OPENING]):
        if text:
            return text
    return None


_OPENING = 16


def _around(template: chat_template_lib.ChatTemplate, role: str) -> tuple[str, str, str]:
    """Return what a template prints before and after the message of ``role`` in a short talk."""
    probe = "the message of the probe"
    talk = {"user": "hello", "assistant": "hello"} | {role: probe}
    messages = [{"role": name, "content": content} for name, content in talk.items()]
    try:
        text = template.render(messages).text
    except chat_template_lib.ChatTemplateError:
        return "", "", ""  # a template may refuse any conversation but its own kind
    return text.rpartition(probe) if probe in text else ("", "", "")


def _encode_guarded(
    backend: tokenizer_backends.Backend,
    guard: content_guard.ContentGuard,
    guarded: str,
    *,
    continues: bool,
) -> list[int]:
    specials = backend.special_tokens
    ids = encode_text(backend, guard.unmark(guarded), ordinary=False, continues=continues)
    own = [specials[token].id for token in guard.pattern.findall(guarded)]
    if [i for i in ids if i in backend.special_ids] == own:
        return ids
    # Somebody typed a special token: encode what stands between the template's as text.
    ids = []
    pieces = re.split(f"({guard.pattern.pattern})", guarded)
    for k, piece in enumerate(pieces):
        if k % 2:
            ids.append(specials[piece].id)
            continue
        text = guard.unmark(piece)
        if k > 0 and specials[pieces[k - 1]].strips_right:
            text = text.lstrip()
        if k + 1 < len(pieces) and specials[pieces[k + 1]].strips_left:
            text = text.rstrip()
        ids += encode_text(backend, text, ordinary=True, continues=continues or k > 0)
    return ids


def _check_prefix(
    template: chat_template_lib.ChatTemplate, prefix: str, whole: str, *, reply: int
) -> None:
    if whole.startswith(prefix):
        return
    at = next(
        (k for k, (a, b) in enumerate(zip(prefix, whole, strict=False)) if a != b), len(whole)
    )
    raise chat_template_lib.ChatTemplateError(
        f"{template.where}: the reply in message {reply} cannot be located: as the prompt of a "
        f"sampler the conversation up to it reads {prefix[at : at + 40]!r} where the whole "
        f"conversation reads {whole[at : at + 40]!r} (character {at}), so the template rewrites "
        "earlier turns; use a template with {% generation %} marks, or one conversation per reply"
    )
