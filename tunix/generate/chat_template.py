"""Renders conversations with the jinja templates that Hugging Face models carry.

Nothing here knows about tokens: messages go in, text comes out, with the character spans
that the template itself marks as written by the assistant (``{% generation %}``).
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from tunix.utils import config

Message = Mapping[str, Any]

# Unicode keeps U+FDD0..U+FDEF for a program's own use: no text has a reason to hold them.
_SPAN_START, _SPAN_END = "\ufdd0", "\ufdd1"
GUARD_MARKS = tuple(chr(point) for point in range(0xFDD2, 0xFDF0))
"""Left to ``content_guard``."""

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
    ):
        """Compile ``source``.

        Args:
            source: Jinja text, as in ``tokenizer_config.json`` or ``chat_template.jinja``.
            special_tokens: Variables such as ``bos_token`` and ``eos_token``.
            where: Where the template came from, for messages.

        Raises:
            ChatTemplateError: If it is not valid jinja; names the line.
        """
        self.source, self.where = source, where
        self.special_tokens = dict(special_tokens or {})
        self.marks_assistant = bool(_GENERATION_TAG.search(source))
        try:
            syntax = _environment().parse(source)
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"{where}: line {error.lineno} is not valid jinja: {error.message}"
            ) from error
        self._reads = jinja2.meta.find_undeclared_variables(syntax)

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
            marked = self._compiled.render(
                **self.special_tokens,
                **variables,
                messages=[_with_parts(message) for message in messages],
                tools=tools,
                add_generation_prompt=add_generation_prompt,
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
        raise ChatTemplateError(f"{where}: bad messages:" + "".join(f"\n  - {p}" for p in problems))


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


class _Parts(list[Any]):
    """Content in parts, such as images and text, which only some templates go through."""

    def __str__(self) -> NoReturn:
        self.__radd__("")

    def __radd__(self, text: str) -> NoReturn:
        raise jinja2.TemplateError(
            "the content of a message is a list of parts, which this template would print as a "
            "Python list; write the content as one text"
        )


def _with_parts(message: Message) -> Message:
    content = message.get("content")
    is_in_parts = isinstance(content, list | tuple)
    return {**message, "content": _Parts(content)} if is_in_parts else message


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


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: prints its body between two marks."""

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Turn the block into a call of :meth:`_mark` with its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @staticmethod
    def _mark(caller: Any) -> str:
        return _SPAN_START + caller() + _SPAN_END


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the sandbox that published templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
