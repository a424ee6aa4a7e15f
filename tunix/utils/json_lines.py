"""Files of JSON lines that belong to steps: appended while a run goes on, cut when it resumes."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def append(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per row and hand them to the operating system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it does not exist."""
    return [row for row, _ in _rows(path)]


def truncate_after(path: pathlib.Path, step: int) -> int:
    """Keep the rows whose ``step`` is at most ``step``, and return how many were dropped.

    Dropped rows are appended to ``<path>.dropped``: a resumed run writes them again, but they
    are the user's until then. A last line that a killed process left unfinished goes too.
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


def _rows(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.exists():
        return
    # Not splitlines: it also splits at separators that JSON allows inside a string.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return  # the process was killed while it wrote this line
            raise ValueError(f"{path}, line {number}: not a JSON line ({error})") from error
        yield row, line
