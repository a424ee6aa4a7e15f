"""Errors that list problems: all at once, one line for each."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from tunix.utils import error_text


def listed(headline: str, problems: Sequence[str], most: int | None = None) -> str:
    """Return a headline with a line for each problem; of more than ``most`` for the first."""
    shown = [error_text.shorten(p, error_text.SHOWN_CHARACTERS) for p in problems[:most]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return f"{headline}:" + "".join(f"\n  - {line}" for line in shown)


class ProblemsError(ValueError):
    """What cannot be used, with every reason why; the base of errors that list problems.

    It can be pickled, so that it arrives whole from another process.
    """

    headline: ClassVar[str]
    """What stands above the problems."""
    most_shown: ClassVar[int | None] = None
    """How many problems fit on a screen, where there can be very many."""

    def __init__(self, problems: Iterable[str]):
        self.problems = tuple(problems)
        super().__init__(self.problems)  # args as passed, so that the error pickles

    def __str__(self) -> str:
        """Return the headline, and a line for each problem."""
        return listed(self.title, self.problems, self.most_shown)

    @property
    def title(self) -> str:
        """The headline of this error."""
        return self.headline


class SubjectError(ProblemsError):
    """An error that lists the problems of one thing, and names it where its headline has ``{}``."""

    headline = "{}"

    def __init__(self, subject: str, problems: Iterable[str]):
        super().__init__(problems)
        self.subject = subject
        self.args = (subject, self.problems)

    @property
    def title(self) -> str:
        """The headline of this error, with its subject."""
        return self.headline.format(self.subject)
