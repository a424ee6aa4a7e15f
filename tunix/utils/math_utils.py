"""Answers of maths problems under the names that recipes for google-tunix import.

All of it is read and compared by :mod:`tunix.utils.math_answers`; nothing is executed.
"""

from tunix.utils import math_answers, reference_names


def extract_answer(passage: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` of a passage holds, or ``None``."""
    return math_answers.boxed(passage)


def extract_boxed_answer(solution: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` of a solution holds, or ``None``."""
    return math_answers.boxed(solution)


def last_boxed_only_string(string: str) -> str | None:
    r"""Return the last ``\boxed{...}`` itself, or ``None``."""
    return math_answers.last_boxed(string)


def remove_boxed(s: str) -> str | None:
    r"""Return what ``\boxed{...}`` holds, or ``None`` if ``s`` is none."""
    return math_answers.boxed(s)


def mathd_normalize_answer(answer: str | None) -> str | None:
    """Return an answer without spaces and layout, or ``None``."""
    return None if answer is None else math_answers.normalized(answer)


def grade_answer_mathd(given_answer: str, ground_truth: str) -> bool:
    """Return whether two answers are the same text but for spaces and layout."""
    given = math_answers.normalized(given_answer)
    return bool(given) and given == math_answers.normalized(ground_truth)


def grade_answer_sympy(given_answer: str, ground_truth: str) -> bool:
    """Return whether two answers have the same value.

    The name is that of google-tunix, which asks SymPy; SymPy executes what it parses, so here
    formulas are read by a grammar and compared by their values.
    """
    return math_answers.is_same(given_answer, ground_truth)


__getattr__ = reference_names.hints(__name__)
