"""What a row with preferences means: two answers of which one is better, or one with a label.

A prompt and its answers are all text or all lists of messages. Without a ``prompt`` column the
prompt is what both answers begin with. Nothing here knows about tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.data import messages as messages_lib
from tunix.data import sources
from tunix.utils import config

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer."""

    prompt: str | Messages
    chosen: str | Messages
    rejected: str | Messages
    tools: Tools = None
    margin: float = 0.0
    """By how much the chosen answer is better, where the data says so."""


@dataclasses.dataclass(frozen=True)
class Rating:
    """A prompt with an answer that is good or bad."""

    prompt: str | Messages
    answer: str | Messages
    is_desirable: bool
    tools: Tools = None


def parse_pair(row: sources.Row, problems: list[str]) -> Pair | None:
    """Return the pair of ``chosen``, ``rejected`` and perhaps ``prompt``, or add to ``problems``.

    Also read: ``tools`` and ``margin``.
    """
    return _parse(row, ("chosen", "rejected"), _pair, problems)


def parse_rating(row: sources.Row, problems: list[str]) -> Rating | None:
    """Return the rating of ``prompt``, ``completion`` and ``label``, or add to ``problems``."""
    return _parse(row, ("prompt", "completion", "label"), _rating, problems)


def common_text(chosen: str, rejected: str) -> str:
    """Return what both texts begin with, up to the end of a word.

    The answers then begin with the white space before their first word, as tokens do.
    """
    count = _common_length(chosen, rejected)
    if any(text[count : count + 1].strip() for text in (chosen, rejected)):
        count = max((i for i in range(count) if chosen[i].isspace()), default=0)
    return chosen[:count].rstrip()


def common_messages(chosen: Messages, rejected: Messages) -> Messages:
    """Return the messages that both conversations begin with."""
    return chosen[: _common_length(chosen, rejected)]


def _common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _parse(row: sources.Row, needed: tuple[str, ...], parse: Any, problems: list[str]) -> Any:
    missing = [sources.missing_column(row, c, needed) for c in needed if c not in row.values]
    if missing:
        problems += missing
        return None
    own: list[str] = []
    example = parse(row, own)
    problems += [f"{row.where}: {problem}" for problem in own]
    return None if own else example


def _pair(row: sources.Row, problems: list[str]) -> Pair | None:
    chosen, rejected = row.values["chosen"], row.values["rejected"]
    is_text = isinstance(chosen, str)
    if is_text != isinstance(rejected, str):
        problems.append("'chosen' and 'rejected' must both be text or both be lists of messages")
        return None
    for column in ("chosen", "rejected"):
        _check(row.values[column], column, problems)
    if problems:
        return None
    chosen, rejected = _clean(chosen), _clean(rejected)
    prompt = row.values.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not is_text):
        given, shared = prompt, common_text if is_text else common_messages
        prompt = shared(chosen, rejected)
        problems += _implicit_problems(given, prompt)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif isinstance(prompt, str) != is_text:
        problems.append("'prompt' is a list of messages, so 'chosen' and 'rejected' must be too")
    else:
        _check(prompt, "prompt", problems)
    for column, answer in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(answer, column, problems)
    margin = _margin(row, problems)
    tools = messages_lib.tools_of(row.values, "", problems)
    return None if problems else Pair(_clean(prompt), chosen, rejected, tools, margin)


def _rating(row: sources.Row, problems: list[str]) -> Rating | None:
    prompt, answer, label = (row.values[c] for c in ("prompt", "completion", "label"))
    if isinstance(prompt, str) != isinstance(answer, str):
        problems.append("'prompt' and 'completion' must both be text or both lists of messages")
        return None
    _check(prompt, "prompt", problems)
    _check(answer, "completion", problems)
    if not problems:
        _check_answer(answer, "completion", problems)
    if label not in (0, 1):  # True and False are 1 and 0
        problems.append(f"'label' must be true (good) or false (bad), found {label!r}")
    tools = messages_lib.tools_of(row.values, "", problems)
    return None if problems else Rating(_clean(prompt), _clean(answer), bool(label), tools)


def _clean(value: Any) -> Any:
    """Return text as it is, and messages without what templates must not see."""
    return value if isinstance(value, str) else messages_lib.for_template(value)


def _check(value: Any, column: str, problems: list[str]) -> None:
    """Note what is wrong with a column that should be text or messages."""
    if not isinstance(value, str):
        problems += messages_lib.message_problems(value, f"column {column!r}")
    elif not value.strip():
        problems.append(f"column {column!r} is empty; remove the row or write it")


def _check_answer(answer: str | Messages, column: str, problems: list[str]) -> None:
    """Note what is wrong with what is left of an answer behind its prompt."""
    if not answer:
        problems.append(f"{column!r} says nothing behind the prompt that both answers share")
    elif not isinstance(answer, str) and answer[0].get("role") != "assistant":
        problems.append(
            f"the answer in {column!r} begins with role {answer[0].get('role')!r}; it must begin "
            "with the assistant's message"
        )


def _implicit_problems(given: str | None, prompt: str | Messages) -> list[str]:
    if not prompt:
        return [
            "'chosen' and 'rejected' share no beginning to be the prompt; add a column 'prompt'"
        ]
    if given is not None and given not in [m.get("content") for m in prompt]:  # pyright: ignore
        return ["the text of 'prompt' is no message that 'chosen' and 'rejected' share; remove it"]
    return []


def _margin(row: sources.Row, problems: list[str]) -> float:
    margin = row.values.get("margin")
    if margin is None:
        return 0.0
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        problems.append(f"'margin' must be a number, found {margin!r:.60}")
        return 0.0
    if (fault := config.number_fault(margin)) is not None:
        problems.append(f"'margin' {fault}")
        return 0.0
    return float(margin)
