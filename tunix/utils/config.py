"""Configs that are valid by construction, and one error that lists every problem.

Nothing here knows what is being configured: a config is a dataclass, a problem
is a sentence.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An immutable bag of settings that is valid by construction.

    Subclasses override :meth:`problems`, never ``__post_init__``: the checks of
    every ancestor always run, and a user sees all mistakes in one message.
    """

    def __post_init__(self) -> None:
        """Raise one error that lists every problem."""
        if found := tuple(self.problems()):
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
