"""Numbers and formulas in LaTeX or plain text: read with a grammar of our own, never executed.

What a model writes is input like any other. It is read into a tree, whose numbers are exact
fractions for as long as that is possible, within limits on length, depth and size.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_CHARACTERS = 400
MAX_DEPTH = 40
MAX_BITS = 4096
"""Of the numerator and of the denominator of an exact number."""
MAX_EXPONENT = 256
MAX_FACTORIAL = 200

Number = Fraction | float
Node = tuple[Any, ...]
"""``(kind, *operands)``."""

_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "arcsin": math.asin,
    "arccos": math.acos,
    "arctan": math.atan,
    "ln": math.log,
    "log": math.log10,
    "exp": math.exp,
}
_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}

_REWRITES = (
    (r"\\(?:left|right|displaystyle|limits|,|;|:|!| )", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\(?:cdot|times|ast)|[·×∗]", "*"),
    (r"\\div|÷", "/"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|°)|°|\\degree", ""),
    (r"\\%", "%"),
    (r"\\?\$", ""),
    (r"[−–]", "-"),
    (r"√", r"\\sqrt"),
    (r"π", r"\\pi "),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"\{,\}", ""),
    (r"\*\*", "^"),
    # A mixed number is a sum, though everything else that stands side by side is a product.
    (r"(?<![\d.)}\w])(\d+)\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"(\1+\2/\3)"),
    (r"(?<![\d.)}\w])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"(\1+\2/\3)"),
)
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|\\([A-Za-z]+)|([A-Za-z]+)|(.))", re.DOTALL)


class ExpressionError(ValueError):
    """Text that is no formula, or one that cannot be computed within the limits."""


def parse(text: str) -> Node:
    r"""Return the tree of a formula.

    Args:
        text: ``3/4``, ``1{,}000``, ``50\%``, ``\frac{\sqrt{3}}{2}``, ``2x(x+1)^2``, ...
            Letters are variables, ``e`` and ``\pi`` the constants.

    Raises:
        ExpressionError: If it is none, is too long or nested too deeply.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"longer than {MAX_CHARACTERS} characters")
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    parser = _Parser(_tokens(text))
    tree = parser.sum(0)
    if not parser.at_end:
        raise ExpressionError(f"{parser.next!r} is not expected here")
    return tree


def evaluate(tree: Node, variables: Mapping[str, Number]) -> Number:
    """Return the value of a formula, exact if it is rational.

    Raises:
        ExpressionError: If it has none: a division by 0, a root of a negative number, a variable
            without a value, a number that is too large.
    """
    try:
        value = _value(tree, variables)
    except (ZeroDivisionError, OverflowError, ValueError) as error:
        raise ExpressionError(str(error)) from error
    return value


def variables_of(tree: Node) -> frozenset[str]:
    """Return the names of the variables of a formula."""
    if tree[0] == "variable":
        return frozenset(tree[1:])
    parts = [variables_of(part) for part in tree[1:] if isinstance(part, tuple)]
    return frozenset().union(*parts)


def are_equal(first: Node, second: Node, *, tolerance: float = 1e-9) -> bool:
    """Return whether two formulas have the same value, for positive values of their variables.

    Rational numbers are compared exactly. Formulas with variables are compared at three points,
    at which two different ones of moderate size agree only by a great accident.

    Args:
        first: A tree.
        second: Another one.
        tolerance: Relative difference that numbers may have which are not rational.

    Raises:
        ExpressionError: If one has no value.
    """
    names = variables_of(first) | variables_of(second)
    for point in range(3 if names else 1):
        values = {name: _sample(name, point) for name in names}
        a, b = evaluate(first, values), evaluate(second, values)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            if a != b:
                return False
        elif not math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12):
            return False
    return True


def _sample(name: str, point: int) -> Fraction:
    """Return a positive fraction that has no relation to the name's neighbours."""
    return Fraction(zlib.crc32(f"{name}{point}".encode()) % 9973 + 1, 4999)


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    for match in _TOKEN.finditer(text.strip()):
        number, command, letters, sign = match.groups()
        if number is not None:
            found.append(("number", number))
        elif command is not None:
            found.append(("name", command))
        elif letters is None:
            found.append(("sign", sign))
        elif letters in _FUNCTIONS or letters in ("pi", "sqrt"):
            found.append(("name", letters))
        elif len(letters) > 2:
            raise ExpressionError(f"{letters!r} is a word")
        else:
            found += [("letter", letter) for letter in letters]
    return found


class _Parser:
    """Reads tokens from left to right; every method takes the depth it is called at."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self._tokens, self._at = tokens, 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    @property
    def next(self) -> str:
        return "" if self.at_end else self._tokens[self._at][1]

    @property
    def _kind(self) -> str:
        return "end" if self.at_end else self._tokens[self._at][0]

    def _take(self) -> tuple[str, str]:
        if self.at_end:
            raise ExpressionError("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, sign: str) -> None:
        if self._take() != ("sign", sign):
            raise ExpressionError(f"{sign!r} is missing")

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ExpressionError("nested too deeply")
        tree = self._product(depth + 1)
        while self.next in ("+", "-"):
            kind = "add" if self._take()[1] == "+" else "subtract"
            tree = (kind, tree, self._product(depth + 1))
        return tree

    def _product(self, depth: int) -> Node:
        tree = self._signed(depth)
        while not self.at_end:
            if self.next in ("*", "/"):
                kind = "multiply" if self._take()[1] == "*" else "divide"
                tree = (kind, tree, self._signed(depth))
            elif self._kind in ("letter", "name") or self.next in ("(", "{"):
                tree = ("multiply", tree, self._power(depth))
            else:
                break
        return tree

    def _signed(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ExpressionError("nested too deeply")
        if self.next in ("+", "-"):
            sign = self._take()[1]
            tree = self._signed(depth + 1)
            return tree if sign == "+" else ("negate", tree)
        return self._power(depth)

    def _power(self, depth: int) -> Node:
        tree = self._atom(depth)
        while self.next in ("%", "!"):
            tree = ("percent" if self._take()[1] == "%" else "factorial", tree)
        if self.next == "^":
            self._take()
            tree = ("power", tree, self._signed(depth + 1))
        return tree

    def _atom(self, depth: int) -> Node:
        kind, text = self._take()
        if kind == "number":
            return ("number", Fraction(text.removesuffix(".")))
        if kind == "letter":
            return ("constant", text) if text in _CONSTANTS else ("variable", text)
        if kind == "name":
            return self._named(text, depth)
        closing = {"(": ")", "{": "}", "[": "]"}.get(text)
        if closing is None:
            raise ExpressionError(f"{text!r} is not expected here")
        tree = self.sum(depth + 1)
        self._expect(closing)
        return tree

    def _named(self, name: str, depth: int) -> Node:
        if name in _CONSTANTS:
            return ("constant", name)
        if name == "frac":
            return ("divide", self._argument(depth), self._argument(depth))
        if name == "sqrt":
            degree: Node = ("number", Fraction(2))
            if self.next == "[":
                self._take()
                degree = self.sum(depth + 1)
                self._expect("]")
            return ("root", self._argument(depth), degree)
        if name in _FUNCTIONS:
            return ("call", name, self._power(depth + 1))
        raise ExpressionError(f"\\{name} is not known")

    def _argument(self, depth: int) -> Node:
        """Return an argument of a LaTeX command: in braces, or a single digit or letter."""
        kind, text = "", self.next
        if not self.at_end:
            kind = self._tokens[self._at][0]
        if kind == "number" and len(text) > 1:
            self._tokens[self._at] = ("number", text[1:])
            return ("number", Fraction(text[0]))
        return self._atom(depth + 1)


def _value(tree: Node, variables: Mapping[str, Number]) -> Number:
    kind = tree[0]
    if kind == "number":
        return _bounded(tree[1])
    if kind == "constant":
        return _CONSTANTS[tree[1]]
    if kind == "variable":
        if tree[1] not in variables:
            raise ExpressionError(f"{tree[1]} has no value")
        return variables[tree[1]]
    if kind == "call":
        return _FUNCTIONS[tree[1]](float(_value(tree[2], variables)))
    return _bounded(_OPERATIONS[kind](*(_value(part, variables) for part in tree[1:])))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) > MAX_EXPONENT or bits * abs(exponent) > MAX_BITS:
            raise ExpressionError("the power is too large")
        return base ** int(exponent)
    return _root_or_power(base, exponent)


def _root(base: Number, degree: Number) -> Number:
    if isinstance(base, Fraction) and degree == 2 and base >= 0:
        roots = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
        if roots * roots == base:
            return roots
    if base < 0 and isinstance(degree, Fraction) and degree.denominator == 1 and degree % 2:
        return -_root_or_power(-base, 1 / degree)
    return _root_or_power(base, 1 / degree)


def _root_or_power(base: Number, exponent: Number) -> float:
    if base < 0:
        raise ExpressionError("a power of a negative number that is not real")
    return float(base) ** float(exponent)


def _factorial(value: Number) -> Number:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise ExpressionError("not the factorial of a small number")
    return Fraction(math.factorial(int(value)))


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise ExpressionError("the number is too large")
    elif not math.isfinite(value):
        raise ExpressionError("the value is not finite")
    return value


_OPERATIONS: Mapping[str, Callable[..., Number]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "negate": lambda a: -a,
    "percent": lambda a: a / 100,
    "factorial": _factorial,
    "power": _power,
    "root": _root,
}
