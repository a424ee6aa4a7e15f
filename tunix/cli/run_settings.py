"""The settings in a run's directory: those it was last trained with, and what is new about them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tunix.cli import console
from tunix.sft import run_directory

_OUT = console.OUT
_MISSING = "(not set)"


@contextlib.contextmanager
def recorded(directory: run_directory.RunDirectory, resolved_yaml: str) -> Iterator[None]:
    """Keep a run's settings in its directory, and say what differs from those it began with.

    If the body fails before it has saved anything, the earlier settings are put back: they are
    still those that the checkpoints were trained with.

    Args:
        directory: The run.
        resolved_yaml: Every setting of the run, defaults included.
    """
    before = _saved(directory)
    earlier = None
    if before and directory.config.is_file():
        earlier = directory.config.read_text(encoding="utf-8")
        for line in changes(_parsed(earlier), _parsed(resolved_yaml)):
            _OUT.print(f"changed    {line}")
    directory.write_config(resolved_yaml)
    try:
        yield
    except Exception:
        if earlier is not None and _saved(directory) == before:
            directory.write_config(earlier)
        raise


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for every setting that differs, by its dotted key."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return [
        f"{key}: {old.get(key, _MISSING)} -> {new.get(key, _MISSING)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, _MISSING) != new.get(key, _MISSING)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:  # a block that is not set has no keys to compare
            yield f"{prefix}{key}", value


def _parsed(text: str) -> Mapping[str, Any]:
    found = yaml.safe_load(text)
    return found if isinstance(found, Mapping) else {}


def _saved(directory: run_directory.RunDirectory) -> set[str]:
    """Return the names of the run's checkpoints."""
    if not directory.checkpoints.is_dir():
        return set()
    return {entry.name for entry in directory.checkpoints.iterdir() if entry.name.isdigit()}
