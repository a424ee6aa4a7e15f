"""What is wrong with the text of a YAML file or value, where, and what to write instead."""

import json
import re
from collections.abc import Iterator

import yaml

MAX_BYTES = 10_000_000
_MAX_DEPTH, _MAX_VALUES = 50, 100_000
_PLAIN_VALUE = re.compile(r"\s*(?:- )*(?P<key>[\w.]+):\s+(?P<value>[^\s\"'\[{|>].*?)\s*$")


def problem(error: yaml.YAMLError, text: str) -> str:
    """Return what is wrong with ``text``, in which line, and how to write what is meant as text."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    lines, words = text.splitlines(), " ".join(filter(None, (error.context, error.problem)))
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark is not None]
    where = f"line {marks[0].line + 1}, column {marks[0].column + 1}: " if marks else ""
    for mark in marks:
        written = lines[mark.line] if mark.line < len(lines) else ""
        if found := _PLAIN_VALUE.match(written):
            quoted = json.dumps(found["value"], ensure_ascii=False)
            words += f"; if it is meant as text, quote it: {found['key']}: {quoted}"
            break
    return where + words


def value_problem(error: yaml.YAMLError, assignment: str) -> str:
    """Return what is wrong with ``key=value``, and how to write a text on the command line."""
    key, _, value = assignment.partition("=")
    words = getattr(error, "problem", None) or " ".join(str(error).split())
    quoted = json.dumps(value, ensure_ascii=False)
    return f"{assignment}: {words}; if it is meant as text, quote it twice: '{key}={quoted}'"


def size_problems(text: str) -> Iterator[str]:
    """Yield why ``text`` nests or repeats more than any settings do, without building it.

    An alias stands for all that its anchor holds, so a few lines may be billions of values.

    Raises:
        YAMLError: If it is no YAML.
    """
    values, begun, anchored = 0, [], {}
    for event in yaml.parse(text, yaml.SafeLoader):
        where = f"line {event.start_mark.line + 1}: "
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in begun]:
                yield f"{where}*{event.anchor} is part of what it refers to; write it out"
                return
            values += anchored.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            values += 1
            anchored[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, values))
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = begun.pop()
            anchored[anchor] = values - before
        if len(begun) > _MAX_DEPTH:
            yield f"{where}nests more than {_MAX_DEPTH} deep; no setting does"
            return
        if values > _MAX_VALUES:
            yield f"{where}more than {_MAX_VALUES:,} values, with what aliases (*NAME) stand for"
            return
