"""Reads the fields of one Hugging Face ``config.json`` and remembers everything wrong with it.

A family asks for what it can represent; what it cannot, it names together with the one
value it can live with. Nothing here knows a family.
"""

import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.models.transformer import config as config_lib
from tunix.ops import rope
from tunix.utils import config

DEFAULT_ROPE_THETA = 10_000.0
"""What a file means that does not say: the base of the first Llama, and of transformers."""

_ORIGINAL_LENGTH = "original_max_position_embeddings"
LAYER_TYPES: Mapping[str, config_lib.AttentionType] = {
    "full_attention": "global",
    "sliding_attention": "local",
}
"""What a layer attends to, by transformers' word for it."""

_MOST = 2**24
"""Of any size: beyond all models there are, and what makes arrays that nothing can count."""
MOST_COUNTED = 10_000
"""Of what is gone through one by one."""
_COUNTED = (
    "num_hidden_layers",
    "num_experts",
    "num_local_experts",
    "sliding_window_pattern",
    "_sliding_window_pattern",
)
_LENGTHS = ("max_position_embeddings", "sliding_window")
"""Lengths of texts: some files say 'no limit' with the largest number there is."""

_LARGEST = sys.float_info.max
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80

_ROPE_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_ROPE_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL_LENGTH),
    "yarn": ("factor",),
}
"""Known kinds of rotary scaling and the numbers each needs."""

_ROPE_OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", _ORIGINAL_LENGTH),
}
"""Numbers that a kind of rotary scaling may have."""


class HFFields:
    """A checked view of a parsed ``config.json``; every problem is kept in ``problems``."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw, self.where = raw, where
        self.problems: list[str] = []

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; without a default it must be there."""
        value = self._get(key, default)
        most = MOST_COUNTED if key in _COUNTED else _MOST
        if type(value) is int and value > 0 and (value <= most or key in _LENGTHS):
            return value
        limit = f" of at most {most:,}" if type(value) is int and value > most else ""
        self._expected(key, value, f"a positive integer{limit}")
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

    def number_or_none(self, key: str, default: float | None) -> float | None:
        """Return a positive number, or ``None`` where the file says null; absent is ``default``."""
        if key in self.raw and self.raw[key] is None:
            return None
        return default if key not in self.raw else self.number(key)

    def attention_types(
        self, num_layers: int, pattern: Sequence[config_lib.AttentionType]
    ) -> tuple[config_lib.AttentionType, ...]:
        """Return what the layers attend to, as the shortest pattern that repeats.

        Args:
            num_layers: Number of layers.
            pattern: What a file without ``layer_types`` means, repeated to all layers.
        """
        given = self.raw.get("layer_types")
        kinds: list[config_lib.AttentionType]
        if given is None:
            kinds = [pattern[i % len(pattern)] for i in range(num_layers)]
        else:
            if not isinstance(given, Sequence) or len(given) != num_layers:
                self._expected("layer_types", given, f"a list of {num_layers} layers")
                return ("global",)
            if unknown := sorted({word for word in map(str, given) if word not in LAYER_TYPES}):
                self._expected("layer_types", unknown, f"of {list(LAYER_TYPES)}")
                return ("global",)
            kinds = [LAYER_TYPES[word] for word in given]
        periods = range(1, num_layers + 1)
        repeats = (p for p in periods if all(kinds[i] == kinds[i % p] for i in range(num_layers)))
        return tuple(kinds[: next(repeats)])

    def only(self, key: str, *allowed: Any) -> None:
        """Accept a field of which only ``allowed`` values (or absence) can be represented."""
        value = self.raw.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(repr(item) for item in allowed) or "no such field"
            found = f"{key} is {shown(value)}"
            self.problems.append(f"{found}, which is not supported (only {expected})")

    def sizes(self, *, vocab_size: int | None = None) -> dict[str, Any]:
        """Return what Llama and Qwen spell alike, and refuse what no model of theirs here has.

        Args:
            vocab_size: What its absence means; without it, it must be there.
        """
        self.only("hidden_act", "silu", "swish")
        self.only("attention_dropout", 0.0)
        self.only("quantization_config")
        rope_theta, rope_scaling = self.rotary()
        return {
            "num_layers": self.size("num_hidden_layers"),
            "vocab_size": self.size("vocab_size", vocab_size),
            "embed_dim": self.size("hidden_size"),
            "num_heads": self.size("num_attention_heads"),
            "norm_eps": self.number("rms_norm_eps", 1e-6),
            "rope_theta": rope_theta,
            "rope_scaling": rope_scaling,
            "weight_tying": self.flag("tie_word_embeddings", False),
        }

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
        """Return the scaling that ``entries``, the mapping called ``key``, describe."""
        kind = entries.get("rope_type", entries.get("type", "default"))
        if not isinstance(kind, str) or kind not in _ROPE_KEYS:
            hint = config.did_you_mean(str(kind), _ROPE_KEYS)
            self.problems.append(
                f"{key} has type {shown(kind)}, which is not supported; known are "
                f"{list(_ROPE_KEYS)}{hint}"
            )
            return None
        optional = [name for name in _ROPE_OPTIONAL.get(kind, ()) if name in entries]
        names = (*_ROPE_KEYS[kind], *optional)
        refused = self._rope_refused(key, kind, entries)
        flags = ("truncate",) if kind == "yarn" else ()
        known = (*_ROPE_COMMON, *names, *flags, *refused)
        self.problems += config.unknown_key_problems(entries, known, where=key)
        bad = [name for name in names if not _is_positive(entries.get(name))]
        for name in bad:
            self._expected(f"{key}.{name}", entries.get(name), "a positive number")
        for name in flags:
            if not isinstance(entries.get(name, True), bool):
                self._expected(f"{key}.{name}", entries[name], "true or false")
                bad.append(name)
        if bad or kind == "default":
            return None
        settings: dict[str, Any] = {name: float(entries[name]) for name in names}
        settings |= {name: entries[name] for name in flags if name in entries}
        original = settings.pop(_ORIGINAL_LENGTH, None)
        if original is not None:
            settings["original_max_position"] = int(original)
        elif kind in ("dynamic", "yarn"):
            settings["original_max_position"] = self.size("max_position_embeddings")
        return rope.RopeScaling(kind=kind, **settings)

    def _rope_refused(self, key: str, kind: str, entries: Mapping[str, Any]) -> list[str]:
        """Report and return what ``entries`` hold that no model of ours can represent."""
        refused = [] if entries.get("partial_rotary_factor", 1) == 1 else ["partial_rotary_factor"]
        if kind == "yarn":
            # DeepSeek's: two more factors of the attention, which none of our families has.
            refused += [name for name in ("mscale", "mscale_all_dim") if name in entries]
        for name in refused:
            only = "1" if name == "partial_rotary_factor" else "no such field"
            found = f"{key}.{name} is {shown(entries[name])}"
            self.problems.append(f"{found}, which is not supported (only {only})")
        return refused

    def _get(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        return default if value is None else value

    def _expected(self, key: str, value: Any, what: str) -> None:
        if value is None:
            hint = config.did_you_mean(key, self.raw)
            self.problems.append(f"{key} is missing{hint}; expected {what}")
        else:
            self.problems.append(f"{key} must be {what}, got {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as a message shows it, however long it is."""
    return _REPR.repr(value)


def _is_positive(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value <= _LARGEST
