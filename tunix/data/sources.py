"""Reads rows, and remembers where each came from.

Nothing here knows what the columns mean. A row keeps its file and line, so that whoever
finds fault with it later can say which one it is.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunix.data import errors
from tunix.utils import config


@dataclasses.dataclass(frozen=True)
class Row:
    """Values by column, and the place to look when they are wrong."""

    values: Mapping[str, Any]
    where: str


def read_rows(
    source: str | pathlib.Path | Iterable[Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
) -> list[Row]:
    """Read a whole data set.

    Args:
        source: A JSON lines file, or any iterable of mappings.
        columns: New name to name in the data, for columns to rename.

    Raises:
        DataError: If the file is missing, not JSON lines, empty, or lacks a column to
            rename; lists every bad line.
    """
    if isinstance(source, str | pathlib.Path):
        name, found = str(source), _read_json_lines(pathlib.Path(source))
    else:
        name, found = "the data set", _number_rows(source)
    rows, problems = [], []
    for item in found:
        (rows if isinstance(item, Row) else problems).append(item)
    if not rows and not problems:
        problems.append("it is empty; expected one row or more")
    if not problems and columns:
        problems += [p for row in rows for p in _rename_problems(row, columns)]
        rows = [_rename(row, columns) for row in rows] if not problems else rows
    if problems:
        raise errors.DataError(name, problems)
    return rows


def missing_column(row: Row, column: str) -> str:
    """Return the sentence about a column that ``row`` should have."""
    hint = config.did_you_mean(column, row.values)
    return f"{row.where}: no column {column!r}{hint}; found {sorted(row.values)}"


def _read_json_lines(path: pathlib.Path) -> Iterator[Row | str]:
    """Yield a row, or what is wrong with it, for every line that is not blank."""
    if not path.is_file():
        yield "it is a directory; name one file" if path.is_dir() else "there is no such file"
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark of some editors
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield f"{where}: not UTF-8 at byte {error.start + 1} of the line"
            except json.JSONDecodeError as error:
                yield f"{where}: not valid JSON at column {error.colno}: {error.msg}"
            else:
                yield _row(value, where)


def _number_rows(source: Iterable[Any]) -> Iterator[Row | str]:
    for number, value in enumerate(source):
        yield _row(value, f"row {number}")


def _row(value: Any, where: str) -> Row | str:
    if isinstance(value, Mapping):
        return Row(value, where)
    return f"{where}: expected an object of columns, found {type(value).__name__}"


def _rename_problems(row: Row, columns: Mapping[str, str]) -> Iterator[str]:
    for new, old in columns.items():
        if old not in row.values:
            yield missing_column(row, old)
        elif new != old and new in row.values:
            yield f"{row.where}: has a column {new!r} already, {old!r} cannot take that name"


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    new_name = {old: new for new, old in columns.items()}
    return Row({new_name.get(k, k): v for k, v in row.values.items()}, row.where)
