"""What is wrong with a list of chat messages and its tools, and what its messages weigh.

Nothing here knows about templates: a conversation that passes may still be one that a
template refuses.

Tables hold every key for every row, so that a key nobody wrote comes back as null, at any depth.
Keys that are null are therefore left out, whatever the rows were read from; a null that is meant
is written as JSON text, which is how tools and the arguments of a call may be given.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunix.utils import config, json_text

Message = Mapping[str, Any]

ROLES = (
    "system", "developer", "user", "assistant", "tool", "function", "ipython", "observation",
    "environment",
)  # fmt: skip
"""Who may speak. A role that a template does not know is often printed all the same."""

_OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_WEIGHT_KEYS = ("weight", "train")


def message_problems(messages: Any, where: str) -> Iterator[str]:
    """Yield one sentence per fault in a list of chat messages."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        hint = "; it is JSON: parse it first" if _is_json_list(messages) else ""
        yield f"{where}: expected a list of messages, found {type(messages).__name__}{hint}"
        return
    if not messages:
        yield f"{where}: has no messages; remove the row or write them"
    for i, message in enumerate(messages):
        at = f"{where}: message {i}"
        if not isinstance(message, Mapping):
            yield f"{at}: expected an object with role and content, found {type(message).__name__}"
            continue
        yield from _role_problems(message, i, at)
        yield from _content_problems(message, at)
        yield from _tool_call_problems(message, at)
        yield from _weight_problems(message, at)


def weights(messages: Sequence[Message]) -> tuple[float, ...] | None:
    """Return the weight of every message, or ``None`` where no message has one of its own.

    ``weight`` is a factor of the loss of a reply's tokens, ``train: false`` is weight 0.
    """
    own = [_own_weight(message) for message in messages]
    if all(weight is None for weight in own):
        return None
    return tuple(1.0 if weight is None else weight for weight in own)


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without weights and without keys that are null, but with a content."""
    return [
        {
            key: _without_nulls(value)
            for key, value in {**message, "content": message.get("content")}.items()
            if key == "content" or (value is not None and key not in _WEIGHT_KEYS)
        }
        for message in messages
    ]


def tools_of(
    values: Mapping[str, Any], where: str, problems: list[str]
) -> Sequence[Mapping[str, Any]] | None:
    """Return the tools of a row, ``None`` if it has none; add what is wrong with them."""
    given = values.get("tools")
    tools = _parsed(given) if isinstance(given, str) else _without_nulls(given)
    if given is None:
        return None
    is_list = isinstance(tools, list)
    odd = [type(tool).__name__ for tool in tools or () if not isinstance(tool, Mapping)]
    if not is_list or odd:
        found = f"a list with {odd[0]}" if is_list else type(given).__name__
        problems.append(
            f"{where}column 'tools' must be a list of JSON schemas, found {found}; write objects, "
            "or the whole list as JSON text"
        )
        return None
    return tools or None


def _without_nulls(value: Any) -> Any:
    """Return ``value`` without the keys that are null in it; what lists hold stays."""
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def speaks_first(messages: Sequence[Message]) -> int | None:
    """Return the index of the first message that is no instruction."""
    instructions = ("system", "developer")
    return next((i for i, m in enumerate(messages) if m["role"] not in instructions), None)


def _role_problems(message: Message, i: int, at: str) -> Iterator[str]:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        yield f"{at}: 'role' must be a word such as 'user', found {role!r}{_keys(message)}"
    elif role not in ROLES:
        near = _OTHER_NAMES.get(role)
        hint = f" (write {near!r})" if near else config.did_you_mean(role, ROLES)
        yield f"{at}: 'role' {role!r} is not one of {list(ROLES)}{hint}"
    elif role == "system" and i > 0:
        yield f"{at}: the system message must come first; move it there or give it another role"


def _content_problems(message: Message, at: str) -> Iterator[str]:
    content = message.get("content")
    calls_tools = bool(message.get("tool_calls"))
    if content is None and not calls_tools:
        found = "is null" if "content" in message else f"is missing{_keys(message)}"
        yield f"{at}: 'content' {found}; write the text, '' if there is none"
    elif content is not None and not isinstance(content, str | Sequence):
        yield f"{at}: 'content' must be text, found {type(content).__name__}; put it in quotes"
    elif message.get("role") == "assistant" and not calls_tools:
        said = content.strip() if isinstance(content, str) else content
        if not said:
            yield f"{at}: the assistant says nothing; remove the turn or write its reply"


def _tool_call_problems(message: Message, at: str) -> Iterator[str]:
    calls = message.get("tool_calls")
    if not calls:
        return
    if message.get("role") != "assistant":
        yield f"{at}: has 'tool_calls', but only the assistant calls tools"
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        yield f"{at}: 'tool_calls' must be a list of calls, found {type(calls).__name__}"
        return
    for k, call in enumerate(calls):
        expected = (
            f"{at}: tool call {k}: expected " + '{"function": {"name": ..., "arguments": {}}}'
        )
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            yield f"{expected}, found {call!r:.60}"
            continue
        arguments = function.get("arguments")
        arguments = {} if arguments is None else arguments  # a call without any, in a table
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        if not isinstance(arguments, Mapping):
            yield f"{expected}; its 'arguments' are no JSON object: {function['arguments']!r:.60}"


def _weight_problems(message: Message, at: str) -> Iterator[str]:
    given = [key for key in _WEIGHT_KEYS if message.get(key) is not None]
    if len(given) == 2:
        yield f"{at}: 'weight' and 'train' say the same thing twice; keep one"
    for key in given:
        value = message[key]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "weight" and not (is_number and not value < 0):
            yield f"{at}: 'weight' must be a number of at least 0, found {value!r:.60}"
        elif key == "weight" and (fault := config.number_fault(value)) is not None:
            yield f"{at}: 'weight' {fault}"
        elif key == "train" and not isinstance(value, bool):
            yield f"{at}: 'train' must be true or false, found {value!r}"
        elif message.get("role") != "assistant" and value:
            yield f"{at}: has {key!r}, but only what the assistant says is trained; remove it"


def _own_weight(message: Message) -> float | None:
    if message.get("weight") is not None:
        return float(message["weight"])
    return None if message.get("train") is None else float(message["train"])


def _keys(message: Message) -> str:
    return f", its keys are {sorted(map(str, message))}"


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and isinstance(_parsed(value), list)


def _parsed(text: str) -> Any:
    try:
        return json_text.parse(text)
    except json_text.JsonError:
        return None
