"""Recognises rows whose content has changed between two starts of a run."""

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

KEY = "content"
"""Under which a position in data holds the fingerprint of its rows."""


def of_row(values: Mapping[str, Any]) -> int:
    """Return a number that changes with what a row says, wherever and however it is stored."""
    return zlib.crc32(json.dumps(values, default=_other, separators=(",", ":")).encode())


def combined(checksums: Iterable[int], start: int = 0) -> int:
    """Return one number for a sequence of them, after what ``start`` stands for."""
    for checksum in checksums:
        start = zlib.crc32(checksum.to_bytes(4, "big"), start)
    return start


def require_same(state: Mapping[str, Any], content: int | None, what: str) -> None:
    """Raise if a saved position belongs to rows that said something else.

    Args:
        state: The position; one that holds no fingerprint was saved by an older version.
        content: What the rows are now.
        what: How the message calls them.

    Raises:
        ValueError: If they differ.
    """
    saved = state.get(KEY)
    if None not in (saved, content) and saved != content:
        raise ValueError(
            f"cannot resume {what}: the content of its rows has changed since the run was saved; "
            "restore it, or start anew in another run_dir"
        )


def _other(value: Any) -> str:
    """Return what stands for a value that JSON does not know."""
    # A text that says where something lies in memory is another at every start.
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text
