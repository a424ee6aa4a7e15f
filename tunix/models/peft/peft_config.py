"""``adapter_config.json`` as the peft library writes and reads it."""

import dataclasses
import pathlib
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunix.utils import config as config_lib
from tunix.utils import json_text

CONFIG_NAME = "adapter_config.json"

_READ = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "base_model_name_or_path",
}
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # The other ways to initialise an adapter change the base, too.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_MEANINGLESS = {
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
"""Fields that say nothing about what a finished adapter computes, or only with another field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What we read of an ``adapter_config.json``; module names are those of the files."""

    rank: int
    alpha: float
    dropout: float
    use_rslora: bool
    use_dora: bool
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    """The only layers that have adapters; ``None`` for all."""
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    base_model: str | None = None

    def targets(self, module: str) -> bool:
        """Return whether a module, e.g. ``model.layers.0.mlp.up_proj``, has an adapter."""
        layer = re.search(r"\.layers\.(\d+)\.", module)
        if self.layers is not None and (layer is None or int(layer[1]) not in self.layers):
            return False
        if _names(self.exclude_modules, module):
            return False
        return self.target_modules == "all-linear" or _names(self.target_modules, module)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's adapter."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def alpha_of(self, module: str) -> float:
        """Return the alpha of a module's adapter."""
        return float(_by_pattern(self.alpha_pattern, module, self.alpha))

    def to_json(self) -> dict[str, Any]:
        """Return the fields that the file holds; peft has defaults for all others."""
        return {
            "alpha_pattern": {key: _number(value) for key, value in self.alpha_pattern.items()},
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": _number(self.alpha),
            "lora_dropout": self.dropout,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(self.rank_pattern),
            "target_modules": list(self.target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        }


def read(path: pathlib.Path) -> PeftConfig:
    """Return the settings in ``path``.

    Raises:
        ConfigError: If the file is no JSON object, or listing every field that says something
            that we cannot compute.
    """
    try:
        raw = json_text.parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise config_lib.ConfigError(str(path), [f"cannot be read: {error}"]) from error
    if problems := tuple(_problems(raw)):
        raise config_lib.ConfigError(str(path), problems)
    layers = raw.get("layers_to_transform")
    return PeftConfig(
        rank=raw["r"],
        alpha=raw["lora_alpha"],
        dropout=raw.get("lora_dropout") or 0.0,
        use_rslora=bool(raw.get("use_rslora")),
        use_dora=bool(raw.get("use_dora")),
        target_modules=_modules(raw["target_modules"]),
        exclude_modules=_modules(raw.get("exclude_modules") or ()),
        layers=(layers,) if isinstance(layers, int) else tuple(layers or ()) or None,
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
        base_model=raw.get("base_model_name_or_path"),
    )


def _problems(raw: Mapping[str, Any]) -> Iterator[str]:
    for name in ("r", "lora_alpha", "target_modules"):
        if not raw.get(name):
            yield f"{name} is missing"
    for name, (fits, expected) in _KINDS.items():
        if raw.get(name) and not fits(raw[name]):
            yield f"{name} must be {expected}, got {reprlib.repr(raw[name])}"
    for name, allowed in _MUST_BE.items():
        if raw.get(name, allowed[0]) not in allowed:
            yield f"{name} is {raw[name]!r}; supported is {' or '.join(map(repr, allowed))}"
    for name in sorted(raw.keys() - _READ - _MUST_BE.keys() - _MEANINGLESS):
        if raw[name]:  # every other field of peft is off when it is null, false or empty
            yield f"{name} is {raw[name]!r}; it is not supported"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= sys.float_info.max


def _is_names(value: Any) -> bool:
    if isinstance(value, str):
        return _is_pattern(value)
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_layers(value: Any) -> bool:
    layers = value if isinstance(value, list) else [value]
    return all(type(one) is int for one in layers)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_pattern(key) and _is_number(number) for key, number in value.items()
    )


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda value: type(value) is int and value > 0, "a positive whole number"),
    "lora_alpha": (_is_number, "a positive number"),
    "lora_dropout": (lambda value: _is_number(value) and value < 1, "a number from 0 to 1"),
    "use_rslora": (lambda value: value is True, "true or false"),
    "use_dora": (lambda value: value is True, "true or false"),
    "target_modules": (_is_names, "names of modules, or a regular expression"),
    "exclude_modules": (_is_names, "names of modules, or a regular expression"),
    "layers_to_transform": (_is_layers, "numbers of layers"),
    "rank_pattern": (_is_numbers, "numbers by regular expression"),
    "alpha_pattern": (_is_numbers, "numbers by regular expression"),
    "base_model_name_or_path": (lambda value: isinstance(value, str), "text"),
}
"""What a field must be that says anything."""


def _modules(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def _names(modules: str | tuple[str, ...], module: str) -> bool:
    """Return whether a regular expression matches the whole name, or a list names its end."""
    if isinstance(modules, str):
        return re.fullmatch(modules, module) is not None
    return any(module == one or module.endswith(f".{one}") for one in modules)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    found = (v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
