"""Reads files of rows: JSON lines, a JSON list, parquet.

Every reader yields ``(values, place)`` or, in place of a row that cannot be read, the sentence
about it. Nothing is read before it is asked for.
"""

import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tunix.utils import json_text

Found = tuple[Any, str] | str
"""A row's values and its place, or what is wrong with it."""

NEEDS_EXTRA = "pip install 'tunix[data]'"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read(path: pathlib.Path) -> Iterator[Found]:
    """Yield the rows of one file; its name says what it is."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        yield (
            f"{path}: files called {path.suffix or 'without a suffix'!r} are not read; name one "
            f"of {', '.join(READERS)}, and convert others"
        )
        return
    # Opening a pipe waits for a writer, perhaps for ever.
    if not stat.S_ISREG(path.stat().st_mode):
        yield f"{path}: it is a pipe or device; write the rows to a file, and name that"
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
            if twice := _twice(file.schema_arrow):
                yield f"{path}: has {twice} twice, of which only one can be read; rename one"
                return
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist(maps_as_pydicts="strict"):
                    yield values, f"{path}: row {number}"
                    number += 1
    # The last three are Python's, for texts, maps and dates that it cannot hold.
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        yield f"{path}: not readable as parquet after row {number}: {error}; write the file again"


def _twice(fields: Iterable[Any], inside: str = "") -> str | None:
    """Return a column, or a key inside one, that a table has twice."""
    seen = set()
    for field in fields:
        name = f"{inside}{field.name}"
        if field.name in seen:
            return f"column {name!r}"
        seen.add(field.name)
        kind = field.type
        while hasattr(kind, "value_type") and not hasattr(kind, "key_type"):
            kind = kind.value_type  # of a list
        is_struct = isinstance(kind, Iterable)
        if is_struct and (found := _twice(kind, f"{name}.")):
            return found
    return None


READERS: Mapping[str, Callable[[pathlib.Path], Iterator[Found]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _parse(content: bytes, where: str, *, unit: str) -> tuple[Any] | str:
    """Return the JSON value in a tuple, or what is wrong with it."""
    try:
        return (json_text.parse(content, unit=unit, unique="column"),)
    except json_text.JsonError as error:
        remedy = error.remedy or "write one JSON object a line, or mend this one"
        return f"{where}: {error.problem}; {remedy}"
