"""Configs that are valid by construction, and one error that lists every problem.

Nothing here knows what is being configured: a config is a dataclass, a problem
is a sentence.
"""

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Self


class ConfigError(ValueError):
    """A config that cannot be used, with every reason why."""

    def __init__(self, owner: str, problems: Iterable[str]):
        self.owner, self.problems = owner, tuple(problems)
        super().__init__(owner, self.problems)  # args as passed, so that the error pickles

    def __str__(self) -> str:
        """Return one line per problem."""
        return f"invalid {self.owner}:" + "".join(f"\n  - {p}" for p in self.problems)


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
        value = vars(settings)[name]
        if value not in allowed:
            hint = did_you_mean(str(value), allowed)
            yield f"{name} {value!r} is not one of {list(allowed)}{hint}"


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
        value = vars(settings)[field.name]
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An immutable bag of settings that is valid by construction.

    Subclasses override :meth:`problems`, never ``__post_init__``: the checks of
    every ancestor always run, and a user sees all mistakes in one message. Checks need not ask
    whether numbers are numbers: that is done for them.
    """

    def __post_init__(self) -> None:
        """Raise one error that lists every problem."""
        found = list(type_problems(self))
        reported = {problem.split()[0] for problem in found}
        try:
            for problem in self.problems():
                if problem.split()[0] not in reported:
                    found.append(problem)
        except Exception:
            if not reported:  # else what is no number was compared with one
                raise
        if found:
            raise ConfigError(type(self).__name__, found)

    def problems(self) -> Iterator[str]:
        """Yield one sentence per invalid field or combination of fields."""
        yield from ()

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> Self:
        """Build from parsed YAML; an unknown key is an error, not a no-op."""
        known = [f.name for f in dataclasses.fields(cls) if f.init]
        if problems := tuple(unknown_key_problems(raw, known)):
            raise ConfigError(cls.__name__, problems)
        return cls(**raw)
