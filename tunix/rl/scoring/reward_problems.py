"""What messages say of reward functions that fail, or return what is no reward."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunix.rl.scoring import reward_child, reward_process, reward_runner
from tunix.utils import error_text, score_functions

SHOWN_CHARACTERS = 200
SHOWN_PROBLEMS = 5

_OURS = (reward_runner.__file__, reward_child.__file__)
"""Files through which a function is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """The completions, as messages tell of them."""

    prompts: list[str]
    completions: list[str]

    def describe(self, i: int) -> str:
        """Return number and texts of a completion."""
        prompt, completion = _shorten(self.prompts[i]), _shorten(self.completions[i])
        return f"sample {i}: prompt {prompt!r}, completion {completion!r}"


def of_failures(
    name: str, outcome: reward_runner.Outcome, failures: Mapping[int, Exception], samples: Samples
) -> list[str]:
    """Return why a function failed, at which samples.

    Args:
        name: The function's.
        outcome: What became of it.
        failures: Those to tell of, all of the outcome or some.
        samples: What it was called with.
    """
    first = next(iter(failures))
    if outcome.whole is not None:
        error = outcome.whole
        where = f" (first at {samples.describe(first)})"
        if failures[first] is error:
            where = " (on the whole batch; on no sample alone)"
        if isinstance(error, (reward_process.OutOfTimeError, *reward_runner.MISTAKES)):
            where = f" (all {len(samples.completions)} completions in one call)"
        elif isinstance(failures[first], reward_runner.MISTAKES):
            error = failures[first]
        return [f"{_raised(name, error)}{where}"]
    # What no sample is to blame for is the same exception for all.
    distinct = {id(error): i for i, error in reversed(list(failures.items()))}.values()
    shown = sorted(distinct)[:SHOWN_PROBLEMS]
    problems = [f"{_raised(name, failures[i])} (at {samples.describe(i)})" for i in shown]
    return problems + _and_more(name, len(failures) - len(shown))


def of_values(name: str, values: Any, samples: Samples) -> list[str]:
    """Return what is wrong with the value of a reward function."""
    if not isinstance(values, list):
        found = type(values).__name__
        return [f"{name} must return a list of numbers, got {found}{_not_awaited(values)}"]
    count = len(samples.completions)
    if len(values) != count:
        found = f"more than {count}" if len(values) > count else len(values)
        return [f"{name} returned {found} rewards for {count} completions"]
    faults = [i for i, v in enumerate(values) if v is not None and not score_functions.is_score(v)]
    problems = [
        f"{name} returned {_shorten(error_text.shown(values[i]))} where a finite number is "
        f"expected, at {samples.describe(i)}{_hint(values[i])}"
        for i in faults[:SHOWN_PROBLEMS]
    ]
    return problems + _and_more(name, len(faults) - SHOWN_PROBLEMS)


def _raised(name: str, error: Exception) -> str:
    """Return what was raised and, if it is known, the line of the user's file."""
    if isinstance(error, reward_process.RaisedError):
        return f"{name} raised {error}{_not_messages(str(error))}"
    if isinstance(error, reward_process.OutOfTimeError):
        return f"{name} {error}"
    if isinstance(error, (reward_process.ProcessError, reward_runner.WrongValueError)):
        return f"{name}: {error}"
    told = error_text.describe(error)
    return f"{name} raised {told}{error_text.location(error, _OURS)}{_not_messages(told)}"


def _not_messages(told: str) -> str:
    """Return a hint if an error is what ``completions[0][0]["content"]`` ends in, as for TRL."""
    is_theirs = told.startswith("TypeError: string indices must be integers")
    return "; prompts and completions are texts here, not lists of messages" if is_theirs else ""


def _hint(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return f"; a truth value is no score: return float({value})"
    return _not_awaited(value)


def _not_awaited(value: object) -> str:
    if inspect.iscoroutine(value):
        value.close()  # nobody will await it
        return "; it was not awaited: write the function as async def"
    return ""


def _and_more(name: str, count: int) -> list[str]:
    return [f"{name}: {count} more samples like these"] if count > 0 else []


def _shorten(text: str) -> str:
    return error_text.shorten(text, SHOWN_CHARACTERS)
