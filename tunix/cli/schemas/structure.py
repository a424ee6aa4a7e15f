"""From parsed YAML to dataclasses, with every mistake reported at once.

Nothing here knows which settings exist: the fields and annotations of the
dataclass say what a key may hold.
"""

import ast
import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from tunix.utils import config as config_lib

T = TypeVar("T")


class _Invalid:
    """Stands for a value that was reported and cannot be used."""


_INVALID = _Invalid()


@dataclasses.dataclass(frozen=True)
class _Answers:
    """What is said of a key that a block does not have."""

    notes: Mapping[str, str]
    """Dotted key -> sentence."""
    keys: Sequence[str]
    """Every dotted key that there is."""

    def of(self, dotted: str, siblings: Mapping[str, Any]) -> str:
        """Return a sentence: a note, else where a key of that name is, else one spelled alike."""
        if dotted in self.notes:
            return f"{dotted}: {self.notes[dotted]}"
        name = dotted.rpartition(".")[2]
        same = [key for key in self.keys if key.rpartition(".")[2] == name]
        hint = f": write {' or '.join(same)}" if same else config_lib.did_you_mean(name, siblings)
        return f"unknown key {dotted!r}{hint}"


def structure(cls: type[T], raw: Mapping[str, Any], *, notes: Mapping[str, str], source: str) -> T:
    """Return ``cls`` built from ``raw``.

    Args:
        cls: A dataclass whose fields may be dataclasses themselves.
        raw: Parsed YAML.
        notes: What to say about keys that are no field but deserve more than
            "unknown key": dotted key -> sentence.
        source: What ``raw`` was read from, for the message.

    Raises:
        ConfigError: lists unknown keys, missing keys, values of a wrong type,
            and what the dataclasses themselves object to.
    """
    problems: list[str] = []
    value = _build(cls, raw, "", _Answers(notes, list(dotted_keys(cls))), problems)
    if problems:
        raise config_lib.ConfigError(source, problems)
    return value


def to_plain(value: Any) -> Any:
    """Return dataclasses as dicts and tuples as lists: what YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def texts(value: Any) -> tuple[str, ...] | None:
    """Return a raw list of texts as a field of that type gets it, ``None`` if it is none."""
    found = _sequence(str, value, tuple)
    return None if isinstance(found, _Invalid) else found


def dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield every key that ``cls`` and the dataclasses in it may have, each with its blocks."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            yield prefix + field.name
            for option in _alternatives(hints[field.name]):
                if isinstance(option, type) and dataclasses.is_dataclass(option):
                    yield from dotted_keys(option, f"{prefix}{field.name}.")


def _build(cls: type, raw: Any, where: str, answers: _Answers, problems: list[str]) -> Any:
    """Return an instance of the dataclass ``cls``, or ``_INVALID`` after reporting."""
    if not isinstance(raw, Mapping):
        problems.append(f"{where} must be a block of keys, got {raw!r}")
        return _INVALID
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    already = len(problems)
    prefix = f"{where}." if where else ""
    problems += [answers.of(f"{prefix}{key}", fields) for key in raw if key not in fields]
    values = {}
    for name, field in fields.items():
        dotted = prefix + name
        if name in raw:
            values[name] = _convert(hints[name], raw[name], dotted, answers, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{dotted} is required")
    if len(problems) > already:
        return _INVALID
    try:
        return cls(**values)
    except config_lib.ConfigError as error:
        problems += [f"{where}: {p}" if where else p for p in error.problems]
        return _INVALID


def _convert(
    annotation: Any, value: Any, where: str, answers: _Answers, problems: list[str]
) -> Any:
    """Return ``value`` as the annotation wants it, or ``_INVALID`` after reporting."""
    options = _alternatives(annotation)
    blocks = [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
    # `lora_config: {}` is how google-tunix says: no adapters. A block that needs no value is
    # there without one.
    is_absent = value == {} and not any(map(_has_all_defaults, blocks))
    if type(None) in options and (value is None or is_absent):
        return None
    if blocks and (isinstance(value, Mapping) or len(options) == len(blocks)):
        block = _of_its_kind(blocks, value, where, problems)
        return _INVALID if block is None else _build(block, value, where, answers, problems)
    for option in options:
        converted = _scalar_or_sequence(option, value)
        if not isinstance(converted, _Invalid):
            return converted
    is_lone = isinstance(value, str) and any(
        isinstance(_scalar_or_sequence(option, [value]), list | tuple) for option in options
    )
    hint = f"; write [{value}]" if is_lone else _quote_hint(options, value)
    problems.append(f"{where} must be {_describe(options)}, got {value!r:.200}{hint}")
    return _INVALID


def _of_its_kind(
    blocks: Sequence[type], value: Any, where: str, problems: list[str]
) -> type | None:
    """Return the block that has the ``kind`` of ``value``, or ``None`` after reporting.

    The first is meant where nothing is said.
    """
    if len(blocks) == 1 or not isinstance(value, Mapping) or "kind" not in value:
        return blocks[0]
    kinds = {kind: b for b in blocks for kind in typing.get_args(typing.get_type_hints(b)["kind"])}
    if (chosen := kinds.get(value["kind"])) is None:
        hint = config_lib.did_you_mean(str(value["kind"]), kinds)
        problems.append(f"{where}.kind {value['kind']!r} is not one of {list(kinds)}{hint}")
    return chosen


def _quote_hint(options: tuple[Any, ...], value: Any) -> str:
    """Return how to write a text that YAML has read as something else."""
    items = [o for option in options for o in typing.get_args(option) if o is not Ellipsis]
    if isinstance(value, list | tuple) and str in items:
        return next((_quote_hint((str,), v) for v in value if not isinstance(v, str)), "")
    is_text = str in options or any(isinstance(item, str) for item in items)
    if not is_text or isinstance(value, str):
        return ""
    if isinstance(value, bool):
        word = "yes" if value else "no"
        read = f"{'yes, on and true' if value else 'no, off and false'} as {value}"
    elif value is None:
        word, read = "null", "null, ~ and nothing at all as no value"
    elif isinstance(value, Mapping):
        read, word = "key: text as a block of keys", "key: text"
    elif isinstance(value, float):
        read, word = "it as a number", str(value)
    else:
        return ""
    quoted = f'"{word}"'
    return f"; YAML reads {read}: quote what is text, {quoted} (for the shell, '{quoted}')"


def _has_all_defaults(block: type) -> bool:
    return all(
        f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        for f in dataclasses.fields(block)
        if f.init
    )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _scalar_or_sequence(annotation: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        return value if value in arguments else _INVALID
    if origin in (tuple, list, collections.abc.Sequence):
        return _sequence(arguments[0], value, tuple if origin is not list else list)
    if origin in (dict, Mapping):
        return dict(value) if isinstance(value, Mapping) else _INVALID
    if annotation is bool:
        return value if isinstance(value, bool) else _INVALID
    if annotation is int:
        return _integer(value)
    if annotation is float:
        return _number(value)
    if annotation is str:
        # A directory called 7 is read from the command line as a number.
        is_text = isinstance(value, str) or type(value) is int
        return str(value) if is_text else _INVALID
    return _INVALID


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _INVALID
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.inf if value > 0 else -math.inf


def _integer(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():  # 1e3 is how people write a thousand
        return int(value)
    return value if type(value) is int else _INVALID


def _sequence(item_type: Any, value: Any, make: type) -> Any:
    if isinstance(value, str) and value.strip()[:1] in ("(", "["):
        try:
            value = ast.literal_eval(value)  # "(2,2)", as google-tunix writes mesh shapes
        except (ValueError, SyntaxError):
            return _INVALID
    if not isinstance(value, list | tuple):
        return _INVALID
    items = [_scalar_or_sequence(item_type, item) for item in value]
    return _INVALID if any(isinstance(item, _Invalid) for item in items) else make(items)


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def _describe(options: tuple[Any, ...]) -> str:
    """Return the annotation in words, such as ``a whole number or null``."""
    words = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words.append("one of " + ", ".join(repr(a) for a in typing.get_args(option)))
        elif typing.get_origin(option) in (tuple, list, collections.abc.Sequence):
            words.append(
                f"a list, each item {_describe(_alternatives(typing.get_args(option)[0]))}"
            )
        elif dataclasses.is_dataclass(option):
            words.append("a block of keys")
        elif option in _NAMES:
            words.append(_NAMES[option])
        elif typing.get_origin(option) in (dict, Mapping):
            words.append("a block of keys")
    return " or ".join(words)
