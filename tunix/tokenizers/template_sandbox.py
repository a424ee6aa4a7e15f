"""The jinja that published chat templates are written for, in bounded time and memory.

A template comes with a model, so it may compute for ever or fill the memory, by mistake or by
intent. Whatever repeats or multiplies is therefore counted before it is done; a rendering that
takes too much ends in a :class:`TemplateLimitError`.
"""

import contextvars
import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

from tunix.tokenizers import template_values

MAX_SECONDS = 2.0
"""Processor time of one rendering; a conversation of a thousand messages takes a tenth of that."""
MAX_SIZE = 10_000_000
"""Characters of a text or of all that a list holds."""
MAX_TOTAL = 20 * MAX_SIZE
"""Characters of all texts that one rendering makes."""

SPAN_START, SPAN_END = "\ufdd0", "\ufdd1"
"""Around what ``{% generation %}`` blocks print; Unicode keeps these for a program's own use."""

_ITEM = 10  # what an item of a list takes, in characters
_MAX_BITS, _MAX_WIDTH = 100_000, 100_000
_WIDTH_METHODS = {"ljust", "rjust", "center", "zfill", "expandtabs"}
_WIDTH_FILTERS = {"batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"}
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-#0 +]*(\*|\d{6}|\d*\.(\*|\d{6}))")
_WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\d{6}|\{)")
# Filters that a template cannot name: there are spaces in them.
_COUNT, _JOIN, _SIZED = "count rounds", "join with a limit", "count what was made"


class TemplateLimitError(jinja2.TemplateError):
    """A rendering that takes too much time or memory."""


class _Budget:
    """What one rendering may still take."""

    def __init__(self):
        self._end = time.thread_time() + MAX_SECONDS
        self._left = MAX_TOTAL

    def spend(self, made: Any = None) -> None:
        """Take off what was made, and look at the clock."""
        self._left -= len(made) if isinstance(made, str | bytes | list | tuple) else 0
        _require(self._left >= 0)
        if time.thread_time() > self._end:
            raise TemplateLimitError(
                f"it has computed for more than {MAX_SECONDS:g} s and may never end; mend its "
                "loops, or use a tokenizer with another template"
            )


_budget: contextvars.ContextVar[_Budget | None] = contextvars.ContextVar("budget", default=None)


@functools.cache
def environment() -> jinja2.Environment:
    """Return the sandbox."""
    made = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # or it would compute with constants while it compiles
        undefined=template_values.MissingText,
        finalize=_measured,
        extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
    )
    filters = made.filters | {"tojson": template_values.to_json}
    made.filters = {name: _limited_filter(name, f) for name, f in filters.items()}
    made.filters |= {_COUNT: _counted, _JOIN: _concatenate, _SIZED: _spend}
    made.globals["raise_exception"] = _raise_exception
    del made.globals["lipsum"]  # any amount of text in one call
    return made


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return what a template of :func:`environment` prints.

    Raises:
        TemplateLimitError: If that takes too much time or memory.
    """
    token = _budget.set(_Budget())
    try:
        return template.render(variables)
    except RecursionError as error:
        raise TemplateLimitError(
            "it calls itself without an end; mend its macros, or use a tokenizer with another "
            "template"
        ) from error
    except MemoryError as error:
        raise TemplateLimitError("it takes more memory than there is") from error
    finally:
        _budget.reset(token)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what a template, macro or block prints."""
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _require(size <= MAX_SIZE)
            kept.append(piece)
        return _spend("".join(kept))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        return _Counting().visit(super()._parse(source, name, filename))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        """Compute, if the result has a reasonable size."""
        _check_operands(operator, left, right)
        return _spend(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a macro or a method."""
        _spend(None)
        _check_method(getattr(__obj, "__wrapped__", __obj), args, kwargs)
        return _spend(super().call(__context, __obj, *args, **kwargs))


class _Counting(jinja2.visitor.NodeTransformer):
    """Puts a filter that counts around loops, joined texts and slices."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, _COUNT)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Filter:
        self.generic_visit(node)
        return _filter(jinja2.nodes.List(node.nodes, lineno=node.lineno), _JOIN)

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Expr:
        self.generic_visit(node)
        return _filter(node, _SIZED) if isinstance(node.arg, jinja2.nodes.Slice) else node


def _filter(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    made = jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.set_environment(environment())
    return made


def _spend(made: Any) -> Any:
    budget = _budget.get()
    if budget is not None:  # there is none while a template is compiled
        budget.spend(made)
    return made


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield what a loop goes through, as long as there is time."""
    for item in items:
        _spend(None)
        yield item


def _concatenate(values: list[Any]) -> str:
    return _spend("".join(map(str, _measured(values))))


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of jinja that refuses what would make its result too large."""

    @functools.wraps(function)  # with the marks of what jinja passes to it
    def limited(*args: Any, **kwargs: Any) -> Any:
        first = 1 if args and isinstance(args[0], _OF_JINJA) else 0
        given = list(args[first:])
        if name == "join" and given and not isinstance(given[0], str | list | tuple | Mapping):
            given[0] = list(given[0])
        size = _size(given)
        if name in _WIDTH_FILTERS:
            factor = size if name in ("indent", "tojson") else 1
            _check_widths([*given[1:], *kwargs.values()], factor)
        elif name == "join" and given:
            count = len(given[0])
            _require(count * len(str([*given[1:], *kwargs.values(), ""][0])) <= MAX_SIZE)
        elif given and isinstance(given[0], str):
            if name == "format":
                _check_operands("%", given[0], None)
            elif name == "replace":
                _check_method(given[0].replace, tuple(given[1:]), kwargs)
        return _spend(function(*args[:first], *given, **kwargs))

    return limited


_OF_JINJA = (jinja2.Environment, jinja2.runtime.Context, jinja2.nodes.EvalContext)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "+":
        is_sized = all(isinstance(x, str | list | tuple) for x in (left, right))
        _require(not is_sized or len(left) + len(right) <= MAX_SIZE)
    elif operator == "%":
        _require(not (isinstance(left, str | bytes) and _WIDE_PERCENT.search(str(left))))
    elif isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        grown = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
        _require(grown <= _MAX_BITS)
    elif operator == "*":
        for sized, count in ((left, right), (right, left)):
            if isinstance(sized, str | bytes | list | tuple) and isinstance(count, int):
                _require(len(sized) * count <= MAX_SIZE)


def _check_method(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check the methods of a text whose result may be far larger than the text."""
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str | bytes):
        return
    given = [*args, *kwargs.values()]
    if name in _WIDTH_METHODS:
        _check_widths(given, len(text) if name == "expandtabs" else 1)
    elif name in ("format", "format_map"):
        _require(not _WIDE_BRACES.search(str(text)))
    elif name == "replace" and len(args) >= 2:
        _require((str(text).count(str(args[0])) + 1) * len(str(args[1])) <= MAX_SIZE)
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _require(_size(args[0]) + len(text) * len(args[0]) <= MAX_SIZE)
    elif name == "translate":
        tables = [arg.values() for arg in given if isinstance(arg, Mapping)]
        longest = max((len(str(v)) for values in tables for v in values), default=1)
        _require(len(text) * longest <= MAX_SIZE)


def _check_widths(values: Iterable[Any], factor: int) -> None:
    widths = [value for value in values if isinstance(value, int)]
    _require(all(width <= _MAX_WIDTH and width * factor <= 4 * MAX_SIZE for width in widths))


def _measured(value: Any) -> Any:
    _size(value)
    return value


def _size(value: Any) -> int:
    """Return the characters and items that ``value`` holds, counted as often as they are in it."""
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item)
            continue
        size += _ITEM
        if isinstance(item, Mapping):
            pending.extend([*item.keys(), *item.values()])
        elif isinstance(item, list | tuple):
            pending.extend(item)
        _require(size + len(pending) <= MAX_SIZE)
    _require(size <= MAX_SIZE)
    return size


def _require(fits: bool) -> None:
    if not fits:
        raise TemplateLimitError(
            f"it makes more than {MAX_SIZE:,} characters, items or digits; mend it, or use a "
            "tokenizer with another template"
        )


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: prints its body between two marks."""

    def __init__(self, environment: jinja2.Environment):
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Turn the block into a call of :meth:`_mark` with its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    @staticmethod
    def _mark(caller: Any) -> str:
        return SPAN_START + caller() + SPAN_END


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
