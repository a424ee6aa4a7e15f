"""What the columns of a row mean: finished text, a prompt and its completion, or a chat.

A format turns one row into one example, or says what is wrong with it. Nothing here knows
about tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tunix.data import errors, sources
from tunix.utils import config


@dataclasses.dataclass(frozen=True)
class Text:
    """A finished document, trained from its second token to its end."""

    text: str


@dataclasses.dataclass(frozen=True)
class PromptCompletion:
    """Finished text in two parts, of which only the second is trained."""

    prompt: str
    completion: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages for a chat template; what the assistant says is trained."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    train_from: int = 0
    """Messages before this one are context."""


Example = Text | PromptCompletion | Conversation
_Problems = list[str]


def parse_rows(rows: Sequence[sources.Row], format_name: str = "auto") -> list[Example]:
    """Return one example per row.

    Args:
        rows: At least one.
        format_name: A name in ``FORMATS``, or ``auto`` to go by the first row's columns.

    Raises:
        DataError: Lists every row that does not have the format, with what it lacks.
    """
    if format_name == "auto":
        format_name = detect_format(rows[0])
    elif format_name not in FORMATS:
        hint = config.did_you_mean(format_name, FORMATS)
        raise errors.DataError(
            "the data set", [f"format {format_name!r} is not one of {sorted(FORMATS)}{hint}"]
        )
    needed, parse = FORMATS[format_name]
    examples, problems = [], []
    for row in rows:
        found = [sources.missing_column(row, c) for c in needed if c not in row.values]
        example = None if found else parse(row, found)
        problems += found
        examples.append(example)
    if problems:
        raise errors.DataError(f"the data set as {format_name!r}", problems)
    return examples


def detect_format(row: sources.Row) -> str:
    """Return the first of ``FORMATS`` whose columns ``row`` has.

    Raises:
        DataError: If it has the columns of none.
    """
    for name, (needed, _) in FORMATS.items():
        if all(column in row.values for column in needed):
            return name
    wanted = {name: list(needed) for name, (needed, _) in FORMATS.items()}
    known = [column for needed in wanted.values() for column in needed]
    hints = "".join(config.did_you_mean(c, known) for c in row.values)
    raise errors.DataError(
        "the data set",
        [f"{row.where}: columns {sorted(row.values)} fit none of {wanted}{hints}; rename columns"],
    )


def message_problems(messages: Any, where: str) -> Iterator[str]:
    """Yield one sentence per fault in a list of chat messages."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        yield f"{where}: expected a list of messages, found {type(messages).__name__}"
        return
    if not messages:
        yield f"{where}: has no messages"
    for i, message in enumerate(messages):
        at = f"{where}: message {i}"
        if not isinstance(message, Mapping):
            yield f"{at}: expected an object with role and content, found {type(message).__name__}"
            continue
        role = message.get("role")
        if not isinstance(role, str) or not role:
            yield f"{at}: 'role' must be a word such as 'user', found {role!r}{_keys(message)}"
        content = message.get("content")
        calls_tools = bool(message.get("tool_calls"))
        if content is None and not calls_tools:
            yield f"{at}: has no 'content'{_keys(message)}"
        elif content is not None and not isinstance(content, str | Sequence):
            yield f"{at}: 'content' must be text, found {type(content).__name__}"
        elif role == "assistant" and not content and not calls_tools:
            yield f"{at}: the assistant says nothing; remove the turn or write its reply"


def _keys(message: Mapping[str, Any]) -> str:
    return f", its keys are {sorted(map(str, message))}"


def _parse_text(row: sources.Row, problems: _Problems) -> Text:
    return Text(_string(row, "text", problems))


def _parse_prompt_completion(row: sources.Row, problems: _Problems) -> Example:
    prompt, completion = row.values["prompt"], row.values["completion"]
    if isinstance(prompt, str) or isinstance(completion, str):
        return PromptCompletion(
            _string(row, "prompt", problems), _string(row, "completion", problems)
        )
    for column in ("prompt", "completion"):
        problems += message_problems(row.values[column], f"{row.where}: column {column!r}")
    if problems:
        return Conversation(())
    return Conversation([*prompt, *completion], _tools(row, problems), train_from=len(prompt))


def _parse_messages(row: sources.Row, problems: _Problems) -> Conversation:
    messages = row.values["messages"]
    problems += message_problems(messages, f"{row.where}: column 'messages'")
    return Conversation(messages, _tools(row, problems))


def _string(row: sources.Row, column: str, problems: _Problems) -> str:
    value = row.values[column]
    if not isinstance(value, str):
        problems.append(
            f"{row.where}: column {column!r} must be text, found {type(value).__name__}"
        )
        return ""
    if not value:
        problems.append(f"{row.where}: column {column!r} is empty")
    return value


def _tools(row: sources.Row, problems: _Problems) -> Sequence[Mapping[str, Any]] | None:
    tools = row.values.get("tools")
    if tools is not None and (isinstance(tools, str) or not isinstance(tools, Sequence)):
        problems.append(
            f"{row.where}: column 'tools' must be a list of JSON schemas, "
            f"found {type(tools).__name__}"
        )
    return tools or None


# Columns and parser of every format, richest first: that is the order of detection.
FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[sources.Row, _Problems], Example]]] = {
    "messages": (("messages",), _parse_messages),
    "prompt_completion": (("prompt", "completion"), _parse_prompt_completion),
    "text": (("text",), _parse_text),
}
