"""Reads the fields of one Hugging Face ``config.json`` and remembers everything wrong with it.

A family asks for what it can represent; what it cannot, it names together with the one
value it can live with. Nothing here knows a family.
"""

import math
from collections.abc import Mapping
from typing import Any

from tunix.ops import rope
from tunix.utils import config

DEFAULT_ROPE_THETA = 10_000.0
"""What a file means that does not say: the base of the first Llama, and of transformers."""

_ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""Known kinds of rotary scaling and the numbers each needs."""


class HFFields:
    """A checked view of a parsed ``config.json``; every problem is kept in ``problems``."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where = raw, where
        self.problems: list[str] = []

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; without a default it must be there."""
        value = self._get(key, default)
        if type(value) is int and value > 0:
            return value
        self._expected(key, value, "a positive integer")
        return 1

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number; without a default it must be there."""
        value = self._get(key, default)
        if _is_positive(value):
            return float(value)
        self._expected(key, value, "a positive number")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._expected(key, value, "true or false")
        return bool(value)

    def only(self, key: str, *allowed: Any) -> None:
        """Accept a field of which only ``allowed`` values (or absence) can be represented."""
        value = self.raw.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(repr(item) for item in allowed) or "no such field"
            self.problems.append(f"{key} is {value!r}, which is not supported (only {expected})")

    def rotary(self) -> tuple[float, rope.RopeScaling | None]:
        """Return base and scaling of the rotary frequencies.

        Understands ``rope_parameters`` of transformers 5 as well as ``rope_theta`` with
        ``rope_scaling`` of earlier versions.
        """
        given = [key for key in ("rope_parameters", "rope_scaling") if self.raw.get(key)]
        if len(given) == 2 and self.raw["rope_parameters"] != self.raw["rope_scaling"]:
            self.problems.append("rope_parameters and rope_scaling disagree; keep one of them")
        key = given[0] if given else "rope_scaling"
        entries = self.raw.get(key) or {}
        if not isinstance(entries, Mapping):
            self._expected(key, entries, "a mapping")
            return DEFAULT_ROPE_THETA, None
        entries = {name: value for name, value in entries.items() if value is not None}
        return self._rope_theta(key, entries), self._rope_scaling(key, entries)

    def raise_problems(self) -> None:
        """Raise one :class:`ConfigError` with everything found so far, if anything was."""
        if self.problems:
            raise config.ConfigError(f"Hugging Face config {self.where}", self.problems)

    def _rope_theta(self, key: str, entries: Mapping[str, Any]) -> float:
        named = {"rope_theta": self.raw.get("rope_theta")}
        named[f"{key}.rope_theta"] = entries.get("rope_theta")
        values = {name: value for name, value in named.items() if value is not None}
        for name, value in values.items():
            if not _is_positive(value):
                self._expected(name, value, "a positive number")
                return DEFAULT_ROPE_THETA
        if len(set(values.values())) > 1:
            self.problems.append(f"two bases of the rotary frequencies: {values}; keep one")
        return float(next(iter(values.values()), DEFAULT_ROPE_THETA))

    def _rope_scaling(self, key: str, entries: Mapping[str, Any]) -> rope.RopeScaling | None:
        kind = entries.get("rope_type", entries.get("type", "default"))
        if kind not in _ROPE_KEYS:
            hint = config.did_you_mean(str(kind), _ROPE_KEYS)
            self.problems.append(
                f"{key} has type {kind!r}, which is not supported; known are "
                f"{list(_ROPE_KEYS)}{hint}"
            )
            return None
        known = (*_ROPE_COMMON, *_ROPE_KEYS[kind])
        self.problems += config.unknown_key_problems(entries, known, where=key)
        bad = [name for name in _ROPE_KEYS[kind] if not _is_positive(entries.get(name))]
        for name in bad:
            self._expected(f"{key}.{name}", entries.get(name), "a positive number")
        if entries.get("partial_rotary_factor", 1) != 1:
            self.problems.append(
                f"{key}.partial_rotary_factor is {entries['partial_rotary_factor']!r}, which is "
                "not supported (only 1)"
            )
        if bad or kind == "default":
            return None
        if kind == "linear":
            return rope.RopeScaling(kind="linear", factor=float(entries["factor"]))
        return rope.RopeScaling(
            kind="llama3",
            factor=float(entries["factor"]),
            low_freq_factor=float(entries["low_freq_factor"]),
            high_freq_factor=float(entries["high_freq_factor"]),
            original_max_position=int(entries["original_max_position_embeddings"]),
        )

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def _expected(self, key: str, value: Any, what: str) -> None:
        if value is None:
            hint = config.did_you_mean(key, self.raw)
            self.problems.append(f"{key} is missing{hint}; expected {what}")
        else:
            self.problems.append(f"{key} must be {what}, got {value!r}")


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and value > 0 and math.isfinite(value)
