"""Parses JSON that others wrote: one object, or an error that says what stands there instead."""

import json
from collections.abc import Sequence
from typing import Any

_DEEPEST = 64
"""No config is nested further, and Python cannot print or compare what is nested without end."""


def parse(data: bytes | str) -> dict[str, Any]:
    """Return the object that ``data`` holds.

    Raises:
        ValueError: If it is not JSON, no object, nested too deeply or has a key twice.
    """
    try:
        found = json.loads(data, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"nested more than {_DEEPEST} deep") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    if _is_deeper(found, _DEEPEST):
        raise ValueError(f"nested more than {_DEEPEST} deep")
    return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for one in level
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True
