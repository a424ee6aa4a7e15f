"""Numbers in replies."""

import re

from tunix.rl.tasks import task

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def is_just(reply: str, wanted: int) -> bool:
    """Return whether a reply is a number and nothing else, but for a full stop or space around."""
    return reply.strip().removesuffix(".") == str(wanted)


def last(reply: str) -> float | None:
    """Return the last number of a reply, ``None`` where there is none."""
    found = _NUMBER.findall(reply)
    return float(found[-1]) if found else None


def nearness(completions: list[str], answer: list[int], finish_reasons: list[str]) -> list[float]:
    """Return the mean, over the words of a reply, of how near each is to the answer.

    A number is as near as it is right: 1 less its relative error, at least 0, which is what other
    words are, too. Nothing but the answer is 1.
    """
    return task.mean_over_words(completions, answer, finish_reasons, _nearness)


def _nearness(word: str, wanted: int) -> float:
    found = _NUMBER.search(word)
    return 0.0 if found is None else max(0.0, 1.0 - abs(float(found[0]) - wanted) / wanted)
