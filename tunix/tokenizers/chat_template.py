"""Renders conversations with the jinja templates that Hugging Face models carry.

Nothing here knows about tokens: messages go in, text comes out, with the character spans
that the template itself marks as written by the assistant (``{% generation %}``).
"""

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta

from tunix.tokenizers import template_sandbox, template_values
from tunix.utils import config
from tunix.utils import problems as problems_lib

Message = template_values.Message

# Unicode keeps U+FDD0..U+FDEF for a program's own use: no text has a reason to hold them.
_SPAN_START, _SPAN_END = template_sandbox.SPAN_START, template_sandbox.SPAN_END
GUARD_MARKS = tuple(chr(point) for point in range(0xFDD2, 0xFDF0))
"""Left to ``content_guard``."""

_CLOCK = "strftime_now"
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\b")
_ROLE = re.compile(r"[\w-]+")
_RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


class ChatTemplateError(ValueError):
    """A conversation that a chat template cannot render, or a template that is broken."""


@dataclasses.dataclass(frozen=True)
class RenderedChat:
    """One conversation as text."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    """Characters ``[start, end)`` inside the template's ``{% generation %}`` blocks."""


class ChatTemplate:
    """A compiled template together with the special tokens it may print."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str] | None = None,
        where: str = "chat template",
        date: datetime.date | None = None,
    ):
        """Compile ``source``.

        Args:
            source: Jinja text, as in ``tokenizer_config.json`` or ``chat_template.jinja``.
            special_tokens: Variables such as ``bos_token`` and ``eos_token``.
            where: Where the template came from, for messages.
            date: What a template that asks for the time (``strftime_now``) is told; by default
                the moment of this call, so that all texts of one process agree.

        Raises:
            ChatTemplateError: If it is not valid jinja; names the line.
        """
        self.source, self.where = source, where
        self.special_tokens = dict(special_tokens or {})
        self.marks_assistant = bool(_GENERATION_TAG.search(source))
        self._time = datetime.datetime.now()
        if date is not None:
            self._time = datetime.datetime.combine(date, datetime.time())
        try:
            syntax = template_sandbox.environment().parse(source)
            self._compiled = template_sandbox.environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"{where}: line {error.lineno} is not valid jinja: {error.message}"
            ) from error
        except (RecursionError, MemoryError, SyntaxError) as error:
            raise ChatTemplateError(
                f"{where}: nests too deep to be compiled ({type(error).__name__}); mend it, or use "
                "a tokenizer with another template"
            ) from error
        self._reads = jinja2.meta.find_undeclared_variables(syntax)
        self.reads_date = _CLOCK in self._reads

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> RenderedChat:
        """Return ``messages`` as text.

        Args:
            messages: At least a ``role`` each; what else a message holds is the template's affair.
            tools: JSON schemas of the functions the model may call.
            add_generation_prompt: Ends the text where the assistant's next reply begins.
            **variables: Anything else the template reads, e.g. ``enable_thinking``.

        Raises:
            ChatTemplateError: If messages are malformed, the template refuses them, or it
                never reads one of the variables, so that giving it would change nothing.
        """
        check_messages(messages, self.where)
        given = [*variables, *(["tools"] if tools else [])]
        if unread := [name for name in given if name not in self._reads]:
            hints = "".join(config.did_you_mean(name, self._reads) for name in unread)
            raise ChatTemplateError(
                f"{self.where}: never reads {', '.join(map(repr, unread))}{hints}; "
                f"it reads {sorted(self._reads)}"
            )
        try:
            marked = template_sandbox.render(
                self._compiled,
                {
                    _CLOCK: self._time.strftime,
                    **self.special_tokens,
                    **variables,
                    "messages": template_values.for_template(messages),
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except _RENDER_ERRORS as error:
            roles = [message["role"] for message in messages]
            raise ChatTemplateError(
                f"{self.where}: cannot render messages with roles {roles}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return _take_spans(marked)


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Raise one :class:`ChatTemplateError` that lists everything malformed in ``messages``.

    Roles must be plain words: templates build special tokens from them (``<|user|>``), so
    that free text there could close a turn.
    """
    if problems := list(_message_problems(messages)):
        raise ChatTemplateError(problems_lib.listed(f"{where}: bad messages", problems))


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string inside nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def _message_problems(messages: Sequence[Message]) -> Iterator[str]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        yield f"expected a list of messages, found {type(messages).__name__}"
        return
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            yield f"message {i}: expected a mapping, found {type(message).__name__}"
            continue
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            yield f"message {i}: 'role' must be a word such as 'user', found {role!r}"
        for text in strings_in(message):
            if _SPAN_START in text or _SPAN_END in text:
                yield f"message {i}: holds a Unicode noncharacter (U+FDD0, U+FDD1); remove it"
                break


def _take_spans(marked: str) -> RenderedChat:
    """Return the text without span marks, and where they stood."""
    if _SPAN_START not in marked:
        return RenderedChat(marked)
    pieces, edges, length = [], [], 0
    for piece in re.split(f"[{_SPAN_START}{_SPAN_END}]", marked):
        pieces.append(piece)
        length += len(piece)
        edges.append(length)
    edges.pop()  # the end of the text is no mark
    return RenderedChat("".join(pieces), tuple(zip(edges[::2], edges[1::2], strict=True)))
