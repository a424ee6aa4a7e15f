"""What the columns of a row mean: finished text, a prompt and its completion, or a chat.

A format turns one row into one example, or says what is wrong with it. Nothing here knows
about tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunix.data import errors, sources
from tunix.data import messages as messages_lib
from tunix.utils import config

message_problems = messages_lib.message_problems


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
    weights: tuple[float, ...] | None = None
    """Factor of every message's loss; ``None`` is 1 for all."""


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
    format_name = resolve_format(rows[0], format_name)
    examples, problems = [], []
    for row in rows:
        examples.append(parse_row(row, format_name, problems))
    if problems:
        raise errors.DataError(f"the data set as {format_name!r}", problems)
    return examples


def parse_row(row: sources.Row, format_name: str, problems: list[str]) -> Example:
    """Return one row as an example of a format of ``FORMATS``, adding faults to ``problems``."""
    needed, parse = FORMATS[format_name]
    if missing := [column for column in needed if column not in row.values]:
        problems += [
            f"{sources.missing_column(row, column, needed)}; every row must be a {format_name!r}"
            for column in missing
        ]
        return Text("")
    found: list[str] = []
    example = parse(row, found)
    problems += found
    return example


def resolve_format(first: sources.Row, format_name: str) -> str:
    """Return the name of a format; ``auto`` goes by the columns of ``first``.

    Raises:
        DataError: If there is no such format, or none has these columns.
    """
    if format_name == "auto":
        return detect_format(first)
    if format_name not in FORMATS:
        hint = config.did_you_mean(format_name, FORMATS)
        raise errors.DataError(
            "the data set", [f"format {format_name!r} is not one of {sorted(FORMATS)}{hint}"]
        )
    return format_name


def columns_of(format_name: str) -> str:
    """Return the columns of a format in words, to say where in a row something is wrong."""
    needed, _ = FORMATS[format_name]
    noun = "column" if len(needed) == 1 else "columns"
    return f"{noun} {' and '.join(map(repr, needed))}"


def detect_format(row: sources.Row) -> str:
    """Return the first of ``FORMATS`` whose columns ``row`` has.

    Raises:
        DataError: If it has the columns of none.
    """
    for name, (needed, _) in FORMATS.items():
        if all(column in row.values for column in needed):
            return name
    wanted = {name: list(needed) for name, (needed, _) in FORMATS.items()}
    raise errors.DataError(
        "the data set",
        [f"{row.where}: columns {sorted(row.values)} fit none of {wanted}{_renaming(row)}"],
    )


def _renaming(row: sources.Row) -> str:
    """Return how the columns of a row become those of a format, as the end of a sentence."""
    known = {column for needed, _ in FORMATS.values() for column in needed}
    missing, spare = sorted(known - set(row.values)), sorted(set(row.values) - known)
    hints = "".join(config.did_you_mean(column, missing) for column in spare)
    for needed, _ in FORMATS.values():
        absent = [column for column in needed if column not in row.values]
        if len(absent) == 1 < len(needed) and spare and not hints:
            which = spare[0] if len(spare) == 1 else "NAME"
            among = "" if len(spare) == 1 else f", NAME being one of {spare}"
            setting = f"data_config.columns={{{absent[0]}: {which}}}{among}"
            return f"; {absent[0]!r} is missing: rename a column, {setting} (quoted, for the shell)"
    return f"{hints}; rename columns"


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
    tools = _tools(row, problems)
    if problems:
        return Conversation(())
    return _conversation([*prompt, *completion], tools, train_from=len(prompt))


def _parse_messages(row: sources.Row, problems: _Problems) -> Conversation:
    messages, where = row.values["messages"], f"{row.where}: column 'messages'"
    problems += message_problems(messages, where)
    tools = _tools(row, problems)
    if problems:
        return Conversation(())
    conversation = _conversation(messages, tools)
    first = messages_lib.speaks_first(messages)
    if (
        first is not None
        and messages[first]["role"] == "assistant"
        and conversation.train_from <= first
    ):
        problems.append(
            f"{where}: message {first}: the assistant speaks first, to nobody; put the user's "
            'message before it, or give it "weight": 0 if it is context'
        )
    return conversation


def _conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    train_from: int = 0,
) -> Conversation:
    weights = messages_lib.weights(messages)
    if weights is not None:
        # What is not trained need not be found: a template may rewrite earlier turns.
        trained = (i for i, m in enumerate(messages) if m["role"] == "assistant" and weights[i])
        train_from = max(train_from, next(trained, len(messages)))
    return Conversation(messages_lib.for_template(messages), tools, train_from, weights)


def _string(row: sources.Row, column: str, problems: _Problems) -> str:
    value = row.values[column]
    if not isinstance(value, str):
        problems.append(
            f"{row.where}: column {column!r} must be text, found {type(value).__name__}; put it "
            "in quotes, or remove the row"
        )
        return ""
    if not value.strip():
        problems.append(f"{row.where}: column {column!r} is empty; remove the row or write it")
    return value


def _tools(row: sources.Row, problems: _Problems) -> Sequence[Mapping[str, Any]] | None:
    return messages_lib.tools_of(row.values, f"{row.where}: ", problems)


# Columns and parser of every format, richest first: that is the order of detection.
FORMATS: Mapping[str, tuple[tuple[str, ...], Callable[[sources.Row, _Problems], Example]]] = {
    "messages": (("messages",), _parse_messages),
    "prompt_completion": (("prompt", "completion"), _parse_prompt_completion),
    "text": (("text",), _parse_text),
}
