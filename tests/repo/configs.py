"""Every config of the package and the fields that it brings."""

import dataclasses
import importlib
import inspect

from tests.repo import source
from tunix.utils import config as config_lib


def config_classes() -> list[type[config_lib.Config]]:
    """Return every subclass of ``Config`` that the package defines."""
    for path in source.python_files("tunix"):
        importlib.import_module(source.module_name(path))
    found, waiting = [], [config_lib.Config]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith("tunix."):
                found.append(cls)
    return list(dict.fromkeys(found))  # one with two parents comes twice


def own_fields(cls: type) -> list[str]:
    """Return the fields that ``cls`` annotates itself, new ones and those with another default."""
    names = {field.name for field in dataclasses.fields(cls)}
    return [name for name in inspect.get_annotations(cls) if name in names]


def new_fields(cls: type) -> list[str]:
    """Return the fields that no ancestor of ``cls`` has."""
    inherited = {name for base in cls.__mro__[1:] for name in inspect.get_annotations(base)}
    return [name for name in own_fields(cls) if name not in inherited]


def is_block(cls: type, name: str) -> bool:
    """Return whether a field holds a config, whose fields are listed for themselves."""
    (field,) = [field for field in dataclasses.fields(cls) if field.name == name]
    made = field.default_factory() if callable(field.default_factory) else field.default
    return isinstance(made, config_lib.Config)
