"""Reads files of rows: JSON lines, a JSON list, parquet.

Every reader yields ``(values, place)`` or, in place of a row that cannot be read, the sentence
about it. Nothing is read before it is asked for.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Found = tuple[Any, str] | str
"""A row's values and its place, or what is wrong with it."""

NEEDS_EXTRA = "pip install 'tunix[data]'"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read(path: pathlib.Path) -> Iterator[Found]:
    """Yield the rows of one file; its name says what it is."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        yield (
            f"{path}: files called {path.suffix or 'without a suffix'!r} are not read; name one "
            f"of {', '.join(READERS)}, and convert others"
        )
        return
    yield from reader(path)


def _read_json_lines(path: pathlib.Path) -> Iterator[Found]:
    """Yield one row for every line that is not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if not line.strip():
                continue
            value = _parse(line, where, unit="of the line")
            yield value if isinstance(value, str) else (value[0], where)


def _read_json(path: pathlib.Path) -> Iterator[Found]:
    """Yield the items of a JSON list; a file that is no list is taken as JSON lines."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not head.startswith(b"["):
        yield from _read_json_lines(path)
        return
    value = _parse(path.read_bytes().removeprefix(_BYTE_ORDER_MARK), str(path), unit="of the file")
    if isinstance(value, str):
        yield value
        return
    for number, item in enumerate(value[0]):
        yield item, f"{path}: item {number}"


def _read_parquet(path: pathlib.Path) -> Iterator[Found]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        yield f"{path}: reading parquet needs pyarrow; {NEEDS_EXTRA}"
        return
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    yield values, f"{path}: row {number}"
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        yield f"{path}: not readable as parquet after row {number}: {error}; write the file again"


READERS: Mapping[str, Callable[[pathlib.Path], Iterator[Found]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


class _TwiceError(ValueError):
    """A key that an object has twice, of which JSON readers keep one silently."""


def _parse(content: bytes, where: str, *, unit: str) -> tuple[Any] | str:
    """Return the JSON value in a tuple, or what is wrong with it."""
    try:
        return (json.loads(content.decode("utf-8"), object_pairs_hook=_unique),)
    except UnicodeDecodeError as error:
        remedy = "save the file as UTF-8"
        if content.startswith(_UTF16_MARKS):
            remedy = "it looks like UTF-16; " + remedy
        return f"{where}: not UTF-8 at byte {error.start + 1} {unit}; {remedy}"
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        return (
            f"{where}: not valid JSON at {place}: {error.msg}; write one JSON object a line, "
            "or mend this one"
        )
    except _TwiceError as error:
        return f"{where}: has {error} twice; remove one"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"column {next(k for k in values if keys.count(k) > 1)!r}")
    return values
