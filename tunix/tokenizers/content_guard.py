"""Keeps what users write from being read as special tokens.

A rendered conversation mixes two authors: the template, whose ``<|im_end|>`` closes a turn,
and the messages, whose ``<|im_end|>`` is eight characters somebody typed. Before rendering,
the guard replaces the first character of whatever could spell a special token in a message
by a reserved one of the same width; afterwards every special token in the text is the
template's own, and position for position the guarded text lines up with the plain one.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tunix.tokenizers import chat_template as chat_template_lib
from tunix.tokenizers import template_values

_MARKS = chat_template_lib.GUARD_MARKS


@dataclasses.dataclass(frozen=True)
class GuardedChat:
    """A rendered conversation in which every special token is the template's."""

    text: str
    guarded: str
    """``text`` with reserved characters in place of what users wrote; equally long."""
    spans: tuple[tuple[int, int], ...]


class ContentGuard:
    """Marks, finds and unmarks special tokens in text."""

    def __init__(self, special_tokens: Iterable[str]):
        # Longest first, as tokenizers match: "<|end|>" must not hide "<|end|>>".
        self._tokens = sorted(set(special_tokens) - {""}, key=lambda t: (-len(t), t))
        firsts = sorted({token[0] for token in self._tokens})
        if len(firsts) > len(_MARKS):
            raise ValueError(
                f"special tokens begin with {len(firsts)} different characters, "
                f"at most {len(_MARKS)} can be guarded"
            )
        self._mark_of = dict(zip(firsts, _MARKS, strict=False))
        self._marking = str.maketrans(self._mark_of)
        self._unmarking = str.maketrans({mark: c for c, mark in self._mark_of.items()})
        self.pattern = re.compile("|".join(map(re.escape, self._tokens)) or r"(?!)")

    def mark_starts(self, text: str) -> str:
        """Return ``text`` with every character marked that could begin a special token."""
        return text.translate(self._marking)

    def mark_tokens(self, text: str) -> str:
        """Return ``text`` with whole special tokens marked, and one cut off by its end."""
        marked = self.pattern.sub(lambda m: self._mark_of[m[0][0]] + m[0][1:], text)
        body = marked.rstrip()
        longest = len(self._tokens[0]) if self._tokens else 0
        for start in range(max(0, len(body) - longest), len(body)):
            tail = body[start:]
            if any(token.startswith(tail) for token in self._tokens):
                marked = marked[:start] + self._mark_of[tail[0]] + marked[start + 1 :]
        return marked

    def unmark(self, text: str) -> str:
        """Undo :meth:`mark_starts` and :meth:`mark_tokens`."""
        return text.translate(self._unmarking)


def render_guarded(
    template: chat_template_lib.ChatTemplate,
    guard: ContentGuard,
    messages: Sequence[chat_template_lib.Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> GuardedChat:
    """Render ``messages`` so that the special tokens of the template can be told apart.

    Messages, tools and documents are data; ``options`` are the caller's own and trusted.
    Marking must not change what the template prints. Marking every possible first
    character is the strongest and tried first; a template that looks for such text in a
    message (``</think>``) would render differently, so then only whole tokens are marked.

    Raises:
        ChatTemplateError: If a message spells a special token and the template does not
            insert that text verbatim, so that its author cannot be told; or if it leaves out a
            message or the call of a tool.
    """
    chat_template_lib.check_messages(messages, template.where)
    # Before marks are put into what was JSON.
    messages = template_values.with_parsed_arguments(messages)
    data: dict[str, Any] = {"messages": messages, "tools": tools}
    if documents is not None:
        data["documents"] = documents
    if any(set(_MARKS).intersection(text) for text in chat_template_lib.strings_in(data)):
        raise chat_template_lib.ChatTemplateError(
            f"{template.where}: a message holds a Unicode noncharacter (U+FDD2 to U+FDEF), which "
            "marks special tokens here; remove it from the content"
        )
    plain = template.render(**data, **options)
    _require_all_printed(template, data, options, plain.text)
    for mark in (guard.mark_starts, guard.mark_tokens):
        marked = {name: _map_strings(value, mark) for name, value in data.items()}
        for message, original in zip(marked["messages"], messages, strict=True):
            message["role"] = original["role"]
        if marked == data:
            return GuardedChat(plain.text, plain.text, plain.spans)
        guarded = _render_or_none(template, marked, options)
        if guarded is not None and guard.unmark(guarded) == plain.text:
            return GuardedChat(plain.text, guarded, plain.spans)
    culprits = [
        f"message {i}" for i, message in enumerate(messages) if _spells(guard, message)
    ] or ["the tools or documents"]
    raise chat_template_lib.ChatTemplateError(
        f"{template.where}: {', '.join(culprits)} spells a special token of this tokenizer, and "
        "the template rewrites that text, so it cannot be kept apart from the template's own "
        "special tokens; remove it from the content"
    )


def _require_all_printed(
    template: chat_template_lib.ChatTemplate,
    data: dict[str, Any],
    options: dict[str, Any],
    text: str,
) -> None:
    """Raise if nothing of a message, or of a call of a tool, is in the rendered ``text``."""
    messages = data["messages"]
    suspects: dict[str, Sequence[chat_template_lib.Message]] = {}  # what it would be without them
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str) and content.strip() and content.strip() not in text:
            without = [*messages[:i], *messages[i + 1 :]]
            suspects[f"message {i} (of role {message['role']!r})"] = without
    calls = template_values.calls_of(messages)
    if calls:
        renamed = template_values.with_renamed_calls(messages)
        probe = _render_or_none(template, {**data, "messages": renamed}, options)
        for call in calls:
            if probe is not None and call.new_name not in probe:
                suspects[str(call)] = call.left_out_of(messages)
    problems = [
        name
        for name, others in suspects.items()
        if _render_or_none(template, {**data, "messages": others}, options) == text
    ]
    if problems:
        raise chat_template_lib.ChatTemplateError(
            f"{template.where}: leaves out {', '.join(problems)}, so that the model would not see "
            "it; write it as text into a message that the template prints, remove it, or use a "
            "tokenizer whose template prints it"
        )


def _render_or_none(
    template: chat_template_lib.ChatTemplate, data: dict[str, Any], options: dict[str, Any]
) -> str | None:
    # A template may refuse what it accepted unmarked: that is one way of looking inside.
    try:
        return template.render(**data, **options).text
    except chat_template_lib.ChatTemplateError:
        return None


def _spells(guard: ContentGuard, message: chat_template_lib.Message) -> bool:
    return any(guard.mark_tokens(s) != s for s in chat_template_lib.strings_in(message))


def _map_strings(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {function(k): _map_strings(v, function) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, function) for item in value]
    return value
