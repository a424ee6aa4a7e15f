"""What templates get in place of values that they would print as something nobody wrote.

A published template prints what it finds: null content as ``None``, arguments of a call as a
Python dict, or encoded twice where they were given as JSON text. As in transformers, keys that
are null are not there for a template; arguments are an object that prints as JSON.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2

from tunix.utils import json_text

Message = Mapping[str, Any]

# Names that a message's reasoning goes by; templates read the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def with_parsed_arguments(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which arguments given as JSON text are the object that the text means."""
    return [_map_arguments(message, _parsed) for message in messages]


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Return messages as a template should see them."""
    return [_stand_in(_map_arguments(m, _as_arguments)) for m in messages]


@dataclasses.dataclass(frozen=True)
class Call:
    """The place of a tool's call in a conversation."""

    message: int
    index: int
    name: str

    def __str__(self) -> str:
        return f"call {self.index} of message {self.message} ({self.name!r})"

    @property
    def new_name(self) -> str:
        """A name that nothing else has."""
        return f"{self.name}_call_{self.index}_of_message_{self.message}_"

    def left_out_of(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages without this call, and without the key if there is no other."""
        message = dict(messages[self.message])
        calls = message.pop("tool_calls")
        if len(calls) > 1:
            message["tool_calls"] = [*calls[: self.index], *calls[self.index + 1 :]]
        return [*messages[: self.message], message, *messages[self.message + 1 :]]


def calls_of(messages: Sequence[Message]) -> list[Call]:
    """Return all calls of tools."""
    return [
        Call(i, k, str(_function(call).get("name")))
        for i, message in enumerate(messages)
        for k, call in enumerate(_calls(message))
    ]


def with_renamed_calls(messages: Sequence[Message]) -> list[Message]:
    """Return messages in which every called function has its new name."""
    renamed = []
    for i, message in enumerate(messages):
        calls = []
        for k, call in enumerate(_calls(message)):
            function = _function(call)
            changed = {**function, "name": Call(i, k, str(function.get("name"))).new_name}
            calls.append(changed if function is call else {**call, "function": changed})
        renamed.append({**message, "tool_calls": calls} if calls else message)
    return renamed


def _calls(message: Message) -> Sequence[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple) and all(isinstance(call, Mapping) for call in calls):
        return calls
    return ()


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what of a call holds the name: a key of its own, or the call itself."""
    function = call.get("function")
    return function if isinstance(function, Mapping) else call


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON; jinja's own filter escapes <, > and & for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class Arguments(dict[str, Any]):
    """Arguments of a call: an object to a template that asks, JSON where they are printed."""

    def __str__(self) -> str:
        return to_json(self)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


class MissingText(jinja2.Undefined):
    """Whatever a template asks for in vain; the content of a message is then an empty text.

    Beside the call of a tool there need not be any, and templates add it to text all the same.
    """

    def __add__(self, other: Any) -> Any:
        return other if self._is_content else self._fail_with_undefined_error()

    __radd__ = __add__

    def __getattr__(self, name: str) -> Any:
        return getattr("", name) if self._is_content else super().__getattr__(name)

    def __getitem__(self, key: Any) -> Any:
        return ""[key] if self._is_content else self._fail_with_undefined_error()

    @property
    def _is_content(self) -> bool:
        return self._undefined_name == "content"


class _Parts(list[Any]):
    """Content in parts, such as images and text, which only some templates go through."""

    def __str__(self) -> NoReturn:
        self.__radd__("")

    def __radd__(self, text: str) -> NoReturn:
        raise jinja2.TemplateError(
            "the content of a message is a list of parts, which this template would print as a "
            "Python list; write the content as one text"
        )


def _stand_in(message: Message) -> Message:
    found = {key: value for key, value in message.items() if value is not None}
    if isinstance(found.get("content"), list | tuple):
        found["content"] = _Parts(found["content"])
    reasoning = next((found[key] for key in _REASONING if key in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    return found


def _map_arguments(message: Message, change: Any) -> Message:
    """Return a message with its arguments of calls changed, wherever they stand."""
    calls, lone = message.get("tool_calls"), message.get("function_call")
    changed: dict[str, Any] = {}
    if isinstance(calls, list | tuple):
        changed["tool_calls"] = [_map_call(call, change) for call in calls]
    if isinstance(lone, Mapping):
        changed["function_call"] = _map_call(lone, change)
    return {**message, **changed} if changed else message


def _map_call(call: Any, change: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _map_call(call["function"], change)}
    return {**call, "arguments": change(call["arguments"])} if "arguments" in call else call


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json_text.parse(arguments)
    except json_text.JsonError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_arguments(arguments: Any) -> Any:
    value = _parsed(arguments)
    return Arguments(value) if isinstance(value, Mapping) else value
