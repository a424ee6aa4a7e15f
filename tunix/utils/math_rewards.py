"""The reward of maths problems under the name that recipes for google-tunix import."""

from collections.abc import Sequence
from typing import Any

from tunix.utils import math_answers, reference_names

THOUGHT_DELIMITER_END = "</think>"


def math_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str | Sequence[str]],
    **kwargs: Any,
) -> list[float]:
    """Return 1 for every completion whose boxed answer is right, else 0.

    What stands before ``</think>`` does not count.

    Args:
        prompts: Not read.
        completions: Solutions.
        answer: The right answer of each, or several that are right.
        **kwargs: Other columns, not read.
    """
    del prompts, kwargs
    return [
        float(is_right(completion.rpartition(THOUGHT_DELIMITER_END)[2], truth))
        for completion, truth in zip(completions, answer, strict=True)
    ]


def is_right(solution: str, truth: str | Sequence[str]) -> bool:
    r"""Return whether the boxed answer of a solution is one of the right ones.

    Args:
        solution: Text with ``\boxed{...}``.
        truth: Answers, or solutions that end in a boxed one.
    """
    given = math_answers.boxed(solution)
    truths = [truth] if isinstance(truth, str) else truth
    return given is not None and any(
        math_answers.is_same(given, math_answers.boxed(str(one)) or str(one)) for one in truths
    )


__getattr__ = reference_names.hints(__name__)
