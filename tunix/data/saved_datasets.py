"""Opens Hugging Face data sets: directories of ``save_to_disk`` and ids on the hub.

``datasets`` is imported when such a source is opened, and not before.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from tunix.data import errors, files

HUB = "hub:"
_MARKS = ("dataset_dict.json", "state.json")
"""Files that ``save_to_disk`` leaves, of several splits or of one."""


def is_saved(path: pathlib.Path) -> bool:
    """Return whether ``path`` is a directory that ``save_to_disk`` wrote."""
    return any((path / mark).is_file() for mark in _MARKS)


def load_directory(path: pathlib.Path, split: str | None) -> Iterable[Any]:
    """Return the rows that ``save_to_disk`` wrote to ``path``.

    Args:
        path: The directory.
        split: Which split, where there are several.

    Raises:
        DataError: If there are splits and none, or an unknown one, was named.
    """
    loaded = _library(str(path)).load_from_disk(str(path))
    if not isinstance(loaded, Mapping):
        if split is None:
            return loaded
        raise errors.DataError(str(path), [f"it has no splits, so leave out '@{split}'"])
    if split is None or split not in loaded:
        asked = "" if split is None else f", and {split!r} is none of them"
        problem = f"it has the splits {sorted(loaded)}{asked}; name one: {path}@{min(loaded)}"
        raise errors.DataError(str(path), [problem])
    return loaded[split]


def load_hub(address: str, *, streaming: bool) -> Iterable[Any]:
    """Return the rows of ``hub:OWNER/NAME[/CONFIG][@SPLIT]``; the split is ``train`` by default.

    Args:
        address: The data set on the hub.
        streaming: Whether rows are fetched as they are read, instead of all before.

    Raises:
        DataError: If the address is malformed or the hub does not give the data set.
    """
    name, _, split = address.removeprefix(HUB).partition("@")
    parts = name.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise errors.DataError(address, ["expected hub:OWNER/NAME, hub:OWNER/NAME/CONFIG@SPLIT"])
    library = _library(address)
    config = parts[2] if len(parts) == 3 else None
    try:
        return library.load_dataset(
            "/".join(parts[:2]), config, split=split or "train", streaming=streaming
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        problem = (
            f"the hub did not give it: {type(error).__name__}: {reason}; if this machine is "
            "offline, call load_dataset(...).save_to_disk(DIR) elsewhere and name DIR"
        )
        raise errors.DataError(address, [problem]) from error


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        problem = f"reading it needs the package datasets; {files.NEEDS_EXTRA}"
        raise errors.DataError(source, [problem]) from None
    return datasets
