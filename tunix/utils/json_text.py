"""Reads JSON that others wrote: one sentence for whatever is wrong with it."""

import functools
import json
import sys
from typing import Any

MAX_DEPTH = 100
"""How deep lists and objects may nest. Whatever walks through a value calls itself so often."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class JsonError(ValueError):
    """JSON that cannot be read, or should not be."""

    def __init__(self, problem: str, remedy: str | None = None):
        self.problem, self.remedy = problem, remedy
        super().__init__(problem if remedy is None else f"{problem}; {remedy}")


def parse(content: bytes | str, *, unit: str = "", unique: str | None = None) -> Any:
    """Return the value of a JSON text.

    Args:
        content: The text; bytes are UTF-8.
        unit: What bytes are counted in, such as ``of the line``, for messages.
        unique: What a key is called, if an object that has one twice is refused; readers keep one
            silently.

    Raises:
        JsonError: If it is no JSON, or nests deeper or has longer numbers than can be handled.
    """
    hook = None if unique is None else functools.partial(_unique, unique)
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=hook)
    except UnicodeDecodeError as error:
        is_utf16 = isinstance(content, bytes) and content.startswith(_UTF16_MARKS)
        place = f"byte {error.start + 1}{unit and ' ' + unit}"
        hint = "it looks like UTF-16; " if is_utf16 else ""
        raise JsonError(f"not UTF-8 at {place}", f"{hint}save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise JsonError(f"not valid JSON at {place}: {error.msg}") from error
    except RecursionError:
        raise _too_deep() from None
    except JsonError:
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        digits = sys.get_int_max_str_digits()
        problem = f"has a whole number of more than {digits:,} digits"
        raise JsonError(problem, "write it as text, in quotes") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and depth_exceeds(value, MAX_DEPTH):
        raise _too_deep()
    return value


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Return the value of a JSON text that is one object and has no key twice.

    Raises:
        JsonError: As :func:`parse`, or if it is no object.
    """
    value = parse(content, unique="key")
    if not isinstance(value, dict):
        raise JsonError(f"expected a JSON object, found {type(value).__name__}")
    return value


def depth_exceeds(value: Any, limit: int) -> bool:
    """Return whether lists and mappings in ``value`` nest deeper than ``limit``."""
    level = _holders([value])
    for _ in range(limit):
        level = [inner for holder in level for inner in _holders(holder)]
        if not level:
            return False
    return bool(level)


def _holders(value: Any) -> list[Any]:
    """Return the lists and mappings that a list or mapping holds."""
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, dict | list)]


def _too_deep() -> JsonError:
    return JsonError(f"nests more than {MAX_DEPTH} deep", "flatten it, or write it as text")


def _unique(called: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(k for k in values if keys.count(k) > 1)
        raise JsonError(f"has {called} {twice!r} twice", "remove one")
    return values
