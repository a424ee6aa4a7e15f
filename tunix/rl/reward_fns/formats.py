"""Rewards for the form of a reply: a pattern it matches, a length it keeps to."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
    """Scores a reply with 1 if the whole of it matches a pattern, else 0.

    Patterns with nested repetitions can take for ever on a text made for it: keep them simple, or
    run the reward with ``run_in="process"`` and a ``time_limit``.
    """

    pattern: str
    """A regular expression; ``.`` matches line breaks too."""

    def __call__(self, completions: Sequence[str]) -> list[float]:
        """Return the scores."""
        pattern = re.compile(self.pattern, re.DOTALL)
        return [float(pattern.fullmatch(text.strip()) is not None) for text in completions]


THINK_AND_ANSWER = Matches(pattern=r"<think>(?:(?!</?think>).)*</think>\s*\S(?:(?!</?think>).)*")
"""One block of thoughts, and an answer behind it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthWithin:
    """Scores a reply with 1 if its tokens are so many, falling to 0 outside.

    A reply that is too long or short by ``slack`` tokens is worth 0, in between linearly less.
    For the soft punishment of DAPO see ``OverlongBuffer``.
    """

    least: int = 0
    most: int
    slack: int = 1

    def __call__(self, completion_ids: Sequence[Any]) -> list[float]:
        """Return the scores."""
        lengths = [len(ids) for ids in completion_ids]
        misses = [max(self.least - n, n - self.most, 0) for n in lengths]
        return [max(0.0, 1.0 - miss / self.slack) for miss in misses]
