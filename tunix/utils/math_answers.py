"""The answer in a solution, and whether it says the same as another."""

import re

from tunix.utils import math_expressions

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_MARKS = re.compile(r"(?:####|final answer(?: is)?:?|answer is:?|answer:)\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_UNIT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
_NAMED = re.compile(r"^[A-Za-z]\w?(?:\([A-Za-z]\))?\s*=\s*(?=\S)")
_OPENING = {"(": ")", "[": "]", "\\{": "\\}"}


def boxed(solution: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` holds; ``None`` without one that is closed."""
    found = last_boxed(solution)
    if found is None:
        return None
    inside = found[_BOXED.match(found).end() :]  # pyright: ignore[reportOptionalMemberAccess]
    return inside[1:-1].strip() if inside.startswith("{") else inside.strip()


def last_boxed(solution: str) -> str | None:
    r"""Return the last ``\boxed{...}`` with its braces balanced, or ``None``."""
    starts = list(_BOXED.finditer(solution))
    if not starts:
        return None
    begin, at = starts[-1].start(), starts[-1].end()
    if solution[at : at + 1] != "{":
        word = re.match(r"[^\s$]+", solution[at:])  # "\boxed 5", as some write
        return None if word is None else solution[begin : at + word.end()]
    depth = 0
    for end in range(at, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if depth == 0:
            return solution[begin : end + 1]
    return None


def final_answer(solution: str) -> str | None:
    """Return the answer of a solution: boxed, behind ``####`` or "answer is", or the last number.

    The first of these that is there counts.
    """
    if (inside := boxed(solution)) is not None:
        return inside
    if marked := _MARKS.findall(solution):
        return marked[-1].strip().rstrip(".").strip("*").strip()
    numbers = _NUMBER.findall(solution)
    return numbers[-1] if numbers else None


def is_same(given: str, truth: str) -> bool:
    r"""Return whether two answers say the same.

    They do if they are the same text but for spacing and layout, or formulas of the same value
    (``1/2``, ``0.5`` and ``\frac12``; see :func:`tunix.utils.math_expressions.are_equal`).
    Tuples, intervals and lists are compared element by element, with their brackets, sets in any
    order. Units and ``x =`` before a value are ignored, and so is a percent sign that one of the
    two lacks. Decimals are not rounded: 0.33 is not 1/3.
    """
    if not given.strip() or not truth.strip():
        return False
    if normalized(given) == normalized(truth):
        return True
    first, second = _elements(given), _elements(truth)
    if len(first[1]) != len(second[1]) or first[0] != second[0]:
        return False
    if first[0] != "\\{":
        return all(_same_element(a, b) for a, b in zip(first[1], second[1], strict=True))
    left = list(second[1])
    for one in first[1]:
        match = next((other for other in left if _same_element(one, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def normalized(answer: str) -> str:
    """Return an answer without spaces, dollars, LaTeX layout and a full stop; in lower case."""
    text = _UNIT.sub(r"\1", answer)
    text = re.sub(r"\\(?:left|right|displaystyle|[,;:! ])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("−", "-")
    return re.sub(r"[\s$]", "", text).rstrip(".").lower()


def _elements(answer: str) -> tuple[str, list[str]]:
    """Return the brackets around a list of values, and the values; one value has no brackets."""
    text = answer.strip().strip("$").strip().replace("\\left", "").replace("\\right", "")
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("{,}", "")
    for opening in _OPENING:
        closings = (")", "]") if opening != "\\{" else ("\\}",)
        for closing in closings:
            if text.startswith(opening) and text.endswith(closing):
                parts = _split(text[len(opening) : -len(closing)])
                kind = opening if closing == _OPENING[opening] else opening + closing
                if len(parts) > 1 or opening == "\\{":
                    return kind, parts
    return "", _split(text)


def _split(text: str) -> list[str]:
    """Return the parts of a text between the commas that are in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _same_element(given: str, truth: str) -> bool:
    if normalized(given) == normalized(truth):
        return True
    first, second = _tree(given), _tree(truth)
    if first is None or second is None:
        return False
    kinds = [tree[0] == "percent" for tree in (first, second)]
    if kinds[0] != kinds[1]:
        # "50" where "50%" was asked for, and the other way round.
        bare = [tree[1] if tree[0] == "percent" else tree for tree in (first, second)]
        if _equal(*bare):
            return True
    return _equal(first, second)


def _equal(first: math_expressions.Node, second: math_expressions.Node) -> bool:
    try:
        return math_expressions.are_equal(first, second)
    except math_expressions.ExpressionError:
        return False


def _tree(answer: str) -> math_expressions.Node | None:
    """Return the formula of an answer without its unit; ``None`` if it is no formula."""
    text = _NAMED.sub("", answer.strip().strip("$").strip().rstrip("."))
    bare = _UNIT.sub("", text)
    bare = re.sub(r"(?<=[\d}])\s*(?:[a-z]{3,}|cm|mm|km|kg)(?:\s*\^\s*\{?\d\}?)?\s*$", "", bare)
    try:
        return math_expressions.parse(bare)
    except math_expressions.ExpressionError:
        return None
