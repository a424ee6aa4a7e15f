"""One error for everything that is wrong with a data set."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

from tunix.utils import problems as problems_lib

_SHOWN = 20

_PLACE = re.compile(r"(?P<file>.*?(?::|(?:^|: )(?:row|item) ))(?P<number>\d+): ", re.DOTALL)
"""Where a sentence is about, as ``sources`` and ``files`` write it: ``FILE:2``, ``FILE: row 2``."""

_Problem = tuple[str, str, str]
"""File, number of the row, and what is wrong there; the first two are empty without a place."""


class DataError(problems_lib.SubjectError):
    """Data that cannot be used, with every reason why: file, row, column."""

    headline = "cannot use {}"
    most_shown = _SHOWN

    def __str__(self) -> str:
        """Return one line per kind of problem with its rows, the first twenty kinds."""
        return problems_lib.listed(self.title, _lines(self.problems), self.most_shown)


class Faults:
    """What is wrong with several data sets, to be said in one message."""

    def __init__(self):
        self._found: list[DataError] = []

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a ``DataError`` for later; the rest of the block is left out."""
        try:
            yield
        except DataError as error:
            self.note(error)

    def note(self, error: DataError) -> None:
        """Keep an error for later."""
        self._found.append(error)

    def check(self) -> None:
        """Raise what was kept.

        Raises:
            DataError: If anything was.
        """
        problems = [problem for error in self._found for problem in error.problems]
        if problems:
            names = dict.fromkeys(error.subject for error in self._found)
            raise DataError(", ".join(names), list(dict.fromkeys(problems)))


def _lines(problems: Sequence[str]) -> list[str]:
    """Return every sentence once with the rows it is about.

    Where that leaves too many, sentences about rows that differ only in numbers are one, too.
    """
    found = []
    for problem in problems:
        place = _PLACE.match(problem)
        file, number = (place["file"], place["number"]) if place else ("", "")
        found.append((file, number, problem[place.end() :] if place else problem))
    lines = _grouped(found, lambda file, sentence: sentence)
    if len(lines) > _SHOWN:
        lines = _grouped(found, lambda file, s: re.sub(r"\d+", "0", s) if file else s)
    return lines


def _grouped(found: Sequence[_Problem], kind: Callable[[str, str], str]) -> list[str]:
    kinds: dict[tuple[bool, str], list[_Problem]] = {}
    for file, number, sentence in found:
        key = (bool(file), kind(file, sentence))
        kinds.setdefault(key, []).append((file, number, sentence))
    return [_line(alike) for alike in kinds.values()]


def _line(found: Sequence[_Problem]) -> str:
    file, number, sentence = found[0]
    first = f"{file}{number}"
    if len(found) == 1:
        return f"{first}: {sentence}" if first else sentence
    if not first:
        return f"{len(found)} times: {sentence}"
    others = []
    for name, other, _ in found[1:_SHOWN]:
        others.append(other if name == file else f"{name}{other}")
        file = name
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    rows = f"the first is {first}, then {', '.join(others)}{more}"
    if all(other == sentence for *_, other in found):
        return f"{len(found)} rows: {sentence}; {rows}"
    return f"{len(found)} rows, of the first: {sentence}; {rows}"
