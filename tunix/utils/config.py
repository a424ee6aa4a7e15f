"""Configs that are valid by construction, and one error that lists every problem.

Nothing here knows what is being configured: a config is a dataclass, a problem
is a sentence.
"""

import abc
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from tunix.utils import problems as problems_lib

ANY_SIZE: Mapping[str, bool] = {"any_size": True}
"""Metadata of a whole-number field that no device sees, such as bytes on a disk."""

_FLOAT32, _INT32 = np.finfo(np.float32), np.iinfo(np.int32)


class ConfigError(problems_lib.SubjectError):
    """A config that cannot be used, with every reason why."""

    headline = "invalid {}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_key_problems(
    raw: Mapping[str, Any], known: Iterable[str], where: str = ""
) -> Iterator[str]:
    """Yield one sentence per key of ``raw`` that nothing reads."""
    known = list(known)
    prefix = f"{where}." if where else ""
    for key in raw:
        if key not in known:
            yield f"unknown key {prefix + str(key)!r}{did_you_mean(str(key), known)}"


def choice_problems(settings: "Config", choices: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield one sentence per field of ``settings`` that is none of its ``choices``."""
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in allowed:
            hint = did_you_mean(str(value), allowed)
            yield f"{name} {value!r} is not one of {list(allowed)}{hint}"


def below_one(settings: "Config", *names: str) -> Iterator[str]:
    """Yield one sentence per field that is set and less than 1."""
    for name in names:
        if (value := getattr(settings, name)) is not None and value < 1:
            yield f"{name} must be at least 1, got {value}"


_LARGEST_BATCH = 2**28


def batch_problems(rows: Mapping[str, int], tokens: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence if a batch has more tokens than any machine takes, before it is made.

    Args:
        rows: Settings whose product is the number of rows.
        tokens: Settings whose sum is the length of a row.
    """
    size = math.prod(rows.values()) * sum(tokens.values())
    if size > _LARGEST_BATCH and min(*rows.values(), *tokens.values()) > 0:
        factors = [f"{name} {value}" for name, value in rows.items()]
        length = " + ".join(f"{name} {value}" for name, value in tokens.items())
        yield (
            f"{' x '.join([*factors, f'({length})' if len(tokens) > 1 else length])}: a batch of "
            f"{size:,} tokens, and at most {_LARGEST_BATCH:,} are possible; lower one of them"
        )


_PLAIN_TYPES: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "None",
}


def type_problems(settings: "Config") -> Iterator[str]:
    """Yield one sentence per plain field that holds something of another kind.

    Plain are fields of numbers, texts and truth values; whatever counts as a number, such as a
    scalar of NumPy, is one.
    """
    for field in dataclasses.fields(settings):
        is_union = typing.get_origin(field.type) in (typing.Union, types.UnionType)
        options = typing.get_args(field.type) if is_union else (field.type,)
        value = getattr(settings, field.name)
        if not all(option in _PLAIN_TYPES for option in options):
            continue
        if not any(_fits(value, option) for option in options):
            words = " or ".join(_PLAIN_TYPES[option] for option in options)
            yield f"{field.name} must be {words}, got {value!r}"


def _fits(value: object, kind: object) -> bool:
    if kind is types.NoneType:
        return value is None
    if kind is str:
        return isinstance(value, (str, os.PathLike))
    if value is None or isinstance(value, (str, bytes, list, tuple, set, Mapping, Callable)):
        return False
    return not (kind is int and isinstance(value, float)) or value.is_integer()


def number_problems(settings: "Config") -> Iterator[str]:
    """Yield one sentence per field with a number that devices cannot hold, in lists and tables too.

    They compute in float32 and int32, where 1e39 is infinite and 1e-50 is 0.
    """
    for field in dataclasses.fields(settings):
        for number in _numbers(getattr(settings, field.name)):
            fault = number_fault(number, any_size="any_size" in field.metadata)
            if fault is not None:
                yield f"{field.name} {fault}"
                break


def number_fault(number: float, *, any_size: bool = False) -> str | None:
    """Return why devices cannot hold ``number``, as the end of a sentence, or ``None``.

    Args:
        number: A Python or NumPy number; whole ones count by their type.
        any_size: Whether a whole number may be larger than int32 holds.
    """
    if isinstance(number, int | np.integer):
        if any_size or _INT32.min <= number <= _INT32.max:
            return None
        bound = f"at least {_INT32.min}" if number < 0 else f"at most {_INT32.max}"
        return f"must be {bound}, got {_short(number)}"
    size = abs(float(number))
    if not math.isfinite(size):
        return f"must be a finite number, got {float(number)}"
    if size > float(_FLOAT32.max):
        return f"must be a finite number in float32 (at most 3.4e38), got {float(number)}"
    if 0.0 < size < float(_FLOAT32.tiny):
        return f"must be 0 or a number that float32 holds (at least 1.2e-38), got {float(number)}"
    return None


def _numbers(value: object) -> Iterator[Any]:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _short(number: int | np.integer) -> str:
    """Return a whole number in words that fit a line; Python refuses to write very long ones."""
    digits = int(number).bit_length() * math.log10(2)
    return str(number) if digits < 30 else f"a number of about {round(digits)} digits"


class _Frozen(abc.ABCMeta):  # which those that are abstract have anyway
    """Says what to write where a config is extended by a dataclass that is not frozen."""

    def __setattr__(cls, name: str, value: Any) -> None:
        # What the decorator notes first; its own message comes later and names no class.
        if name == "__dataclass_params__" and not value.frozen:
            raise TypeError(
                f"{cls.__name__} extends settings, which are frozen: write "
                "@dataclasses.dataclass(frozen=True, kw_only=True), and dataclasses.replace where "
                "one is changed"
            )
        super().__setattr__(name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(metaclass=_Frozen):
    """An immutable bag of settings that is valid by construction.

    Subclasses override :meth:`problems`, never ``__post_init__``: the checks of
    every ancestor always run, and a user sees all mistakes in one message. Checks need not ask
    whether numbers are numbers, finite and within int32: that is done for them.
    """

    def __post_init__(self) -> None:
        """Raise one error that lists every problem."""
        # A sentence begins with its field; one that is reported is not compared with others too.
        by_field = {p.split()[0]: p for p in [*number_problems(self), *type_problems(self)]}
        found, reported = list(by_field.values()), set(by_field)
        try:
            for problem in self.problems():
                if problem.split()[0] not in reported:
                    found.append(problem)
        except Exception:
            if not reported:  # else what is no number was compared with one
                raise
        if found:
            raise ConfigError(type(self).__name__, dict.fromkeys(found))

    def problems(self) -> Iterator[str]:
        """Yield one sentence per invalid field or combination of fields."""
        yield from ()

    @classmethod
    def composed(cls, *parts: "Config", **others: Any) -> Self:
        """Build from settings that have ancestors in common with this class.

        Args:
            *parts: Settings; the fields of a common ancestor are taken, and nothing else.
            **others: The remaining fields.
        """
        values = {
            field.name: getattr(part, field.name)
            for part in parts
            for base in type(part).__mro__
            if issubclass(cls, base) and dataclasses.is_dataclass(base)
            for field in dataclasses.fields(base)
        }
        return cls(**values | others)

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from parsed YAML; an unknown key is an error, not a no-op."""
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        if problems := tuple(unknown_key_problems(raw, known)):
            raise ConfigError(cls.__name__, problems)
        return cls(**raw)
