"""Files of JSON lines that belong to steps: appended while a run goes on, cut when it resumes."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tunix.utils import problems as problems_lib

_SHOWN_PROBLEMS = 5
_KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "text"}


def append(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per row and hand them to the operating system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: pathlib.Path, types: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it does not exist.

    Args:
        path: The file.
        types: What every row must have besides its ``step``, and of which type.

    Raises:
        ValueError: Naming every line that is no such row.
    """
    return [row for row, _ in _rows(path, types or {})]


def truncate_after(path: pathlib.Path, step: int) -> int:
    """Keep the rows whose ``step`` is at most ``step``, and return how many were dropped.

    Dropped rows are appended to ``<path>.dropped``: a resumed run writes them again, but they
    are the user's until then. A last line that a killed process left unfinished goes too.

    Raises:
        ValueError: Naming every line that is no such row.
    """
    if not path.exists():
        return 0
    kept, dropped = [], []
    for row, line in _rows(path):
        (kept if row["step"] <= step else dropped).append(line)
    if dropped:
        with path.with_name(path.name + ".dropped").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in dropped)
    # Replaced in one move: a second kill must not leave half a log.
    rewritten = path.with_name(path.name + ".tmp")
    rewritten.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(rewritten, path)
    return len(dropped)


def _rows(
    path: pathlib.Path, types: Mapping[str, type] | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.exists():
        return
    rows, problems = [], []
    # Not splitlines: it also splits at separators that JSON allows inside a string.
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number < len(lines):  # else the process was killed while it wrote this line
                problems.append(f"line {number}: not a JSON line ({error})")
            continue
        if problem := _row_problem(row, {"step": int, **(types or {})}):
            problems.append(f"line {number}: {problem}")
        rows.append((row, text))
    if problems:
        raise ValueError(
            problems_lib.listed(f"{path}: not rows of a run", problems, _SHOWN_PROBLEMS)
            + "\nDelete these lines, or move the file away"
        )
    yield from rows


def _row_problem(row: object, types: Mapping[str, type]) -> str | None:
    if not isinstance(row, dict):
        return f"expected an object with a step, found {type(row).__name__}"
    for name, kind in types.items():
        value = row.get(name)
        if not isinstance(value, (int, float) if kind is float else kind):
            found = "there is none" if name not in row else f"found {value!r:.40}"
            return f"{name!r} must be {_KINDS[kind]}, {found}"
    return None
