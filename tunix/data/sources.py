"""Finds rows, wherever they are, and remembers where each came from.

Nothing here knows what the columns mean. A row keeps its file and line, so that whoever
finds fault with it later can say which one it is.
"""

import dataclasses
import glob
import os
import pathlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tunix.data import errors, files, saved_datasets
from tunix.utils import config, json_text, texts

_TOO_DEEP = f"nests more than {json_text.MAX_DEPTH} deep; flatten it, or write it as text"

Source = str | pathlib.Path | Iterable[Any]
"""What rows are read from.

A file (``.jsonl``, ``.json``, ``.parquet``), a pattern (``data/*.jsonl``), a directory of
``save_to_disk`` (``DIR`` or ``DIR@SPLIT``), ``hub:OWNER/NAME[/CONFIG][@SPLIT]``, a list of
these, or any iterable of mappings: a list, a generator, a data set of ``datasets``, Grain or
TFDS (``tfds.data_source``).
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """Values by column, and the place to look when they are wrong."""

    values: Mapping[str, Any]
    where: str


def read_rows(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    problems: list[str] | None = None,
) -> list[Row]:
    """Read a whole data set.

    Args:
        source: See :data:`Source`.
        columns: New name to name in the data, for columns to rename.
        problems: Where to note what is wrong instead of raising it, for a caller that finds more
            wrong with the other rows and says everything at once.

    Raises:
        DataError: If there is no such source, it is empty, not what it seems, or lacks a
            column to rename; lists every bad row.
    """
    rows: list[Row] = []
    noted, problems = problems, [] if problems is None else problems
    for item in stream_rows(source, columns=columns):
        if isinstance(item, Row):
            rows.append(item)
        else:
            problems.append(item)
    if not rows and not problems:
        problems.append("it is empty; expected one row or more")
    if problems and noted is None:
        raise errors.DataError(name_of(source), problems)
    return rows


def stream_rows(
    source: Source, *, columns: Mapping[str, str] | None = None, streaming: bool = False
) -> Iterator[Row | str]:
    """Yield row by row what :func:`read_rows` returns, and a sentence in place of a bad row.

    Args:
        source: See :data:`Source`.
        columns: New name to name in the data, for columns to rename.
        streaming: Whether data sets of the hub are fetched while they are read.
    """
    for item in _find(source, streaming):
        if isinstance(item, str):
            yield item
            continue
        row = _row(*item)
        if not isinstance(row, Row) or not columns:
            yield from [row] if isinstance(row, Row) else row
            continue
        problems = list(_rename_problems(row, columns))
        yield from problems or [_rename(row, columns)]


def name_of(source: Source) -> str:
    """Return what messages call ``source``."""
    if isinstance(source, str | pathlib.Path):
        return str(source)
    paths = source if isinstance(source, list | tuple) else ()
    if paths and all(isinstance(path, str | pathlib.Path) for path in paths):
        return ", ".join(map(str, paths))
    return "the data set"


def missing_column(row: Row, column: str, needed: Collection[str] = ()) -> str:
    """Return the sentence about a column that ``row`` should have.

    Those that are ``needed`` themselves are not taken for a misspelled one.
    """
    hint = config.did_you_mean(column, (name for name in row.values if name not in needed))
    return f"{row.where}: no column {column!r}{hint}; found {sorted(row.values)}"


def _find(source: Source, streaming: bool) -> Iterator[files.Found]:
    if isinstance(source, str | pathlib.Path):
        yield from _at_address(str(source), streaming)
    elif isinstance(source, list | tuple) and source and isinstance(source[0], str | pathlib.Path):
        for path in source:
            yield from _at_address(str(path), streaming)
    elif isinstance(source, Mapping):
        yield f"it is a mapping of {sorted(map(str, source))}, not rows; choose one of them"
    elif (length := _length_hint(source)) >= sys.maxsize:
        yield f"it repeats for ever (it says it has {length} rows); pass it without repeat()"
    else:
        for number, value in enumerate(source):
            yield value, f"row {number}"


def _at_address(address: str, streaming: bool) -> Iterator[files.Found]:
    address = os.path.expanduser(address)
    path = pathlib.Path(address)
    directory, _, split = address.rpartition("@")
    if address.startswith(saved_datasets.HUB):
        rows = saved_datasets.load_hub(address, streaming=streaming)
        yield from ((values, f"{address}: row {i}") for i, values in enumerate(rows))
    elif path.is_file():
        yield from files.read(path)
    elif saved_datasets.is_saved(path):
        rows = saved_datasets.load_directory(path, None)
        yield from ((values, f"{address}: row {i}") for i, values in enumerate(rows))
    elif path.is_dir():
        yield (
            f"{address}: it is a directory; name a file, a pattern such as {address}/*.jsonl, or "
            "a directory that save_to_disk of datasets wrote"
        )
    elif directory and saved_datasets.is_saved(pathlib.Path(directory)):
        rows = saved_datasets.load_directory(pathlib.Path(directory), split)
        yield from ((values, f"{address}: row {i}") for i, values in enumerate(rows))
    elif found := sorted(glob.glob(address, recursive=True)):
        for match in found:
            yield from files.read(pathlib.Path(match))
    else:
        kind = "no file fits the pattern" if glob.has_magic(address) else "there is no such file"
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(@\w+)?", address) and path.suffix == ""
        hub = f"; of the hub, write {saved_datasets.HUB}{address}" if is_hub_id else ""
        yield f"{address}: {kind}; looked in {path.absolute().parent}{hub}"


def _length_hint(source: Any) -> int:
    try:
        return len(source)
    except (TypeError, OverflowError):  # a generator has none; an endless Grain data set too many
        return 0


def _row(value: Any, where: str) -> Row | list[str]:
    """Return the values of a row, or what is wrong with each of its columns."""
    if not isinstance(value, Mapping):
        return [
            f"{where}: expected an object of columns, found {type(value).__name__}; "
            'write {"column": value, ...}'
        ]
    values, problems = {}, []
    for column, item in value.items():
        try:
            values[_plain(str(column))] = _plain(item)
        except UnicodeDecodeError as error:
            problems.append(
                f"{where}: column {column!r} is not UTF-8 at byte {error.start + 1}; decode it "
                "to text before"
            )
        except (_UnusableError, RecursionError) as error:
            problem = str(error) if isinstance(error, _UnusableError) else _TOO_DEEP
            problems.append(f"{where}: column {column!r} {problem}")
    return problems or Row(values, where)


class _UnusableError(ValueError):
    """A value that no tokenizer and no file can hold; says what is wrong with it."""


def _plain(value: Any, depth: int = 0) -> Any:
    """Return arrays as lists and bytes as text: what TFDS and Grain hold in place of those."""
    if isinstance(value, str):
        if not value.isascii() and (found := texts.LONE_SURROGATE.search(value)):
            raise _UnusableError(texts.half_character(found))
        return value
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), depth)
    if depth > json_text.MAX_DEPTH:
        raise _UnusableError(_TOO_DEEP)
    if isinstance(value, Mapping):
        return {
            _plain(key) if isinstance(key, str) else key: _plain(item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value


def _rename_problems(row: Row, columns: Mapping[str, str]) -> Iterator[str]:
    for new, old in columns.items():
        if old not in row.values:
            yield missing_column(row, old)
        elif new != old and new in row.values:
            yield f"{row.where}: has a column {new!r} already, {old!r} cannot take that name"


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    new_name = {old: new for new, old in columns.items()}
    return Row({new_name.get(k, k): v for k, v in row.values.items()}, row.where)
