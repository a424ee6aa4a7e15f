"""A run's start in its directory: which settings it has, and what it leaves if nothing is trained.

The settings there are those that the run was last trained with.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from tunix.cli import command, console
from tunix.cli.loading import build
from tunix.cli.running import run_text
from tunix.sft import run_directory, run_lock
from tunix.sft.loop import interrupt

_OUT = console.OUT
_MISSING = "(not set)"


class AlreadyFinished(Exception):
    """Nothing is left to train in a run that was started again."""


@contextlib.contextmanager
def opened(request: command.Request[Any], name: str) -> Iterator[run_directory.RunDirectory]:
    """Own the run's directory while the body trains, with the settings in it.

    A start of a finished run ends the body and nothing else. A directory that this start has made
    goes again if nothing is in it.

    Args:
        request: What the user asked for.
        name: What a directory that the user did not choose is called after.
    """
    chosen = request.run.run_dir
    is_new = chosen is None or not pathlib.Path(chosen).expanduser().exists()
    directory = build.make_run_directory(chosen, name)
    try:
        with directory.owned(), recorded(directory, request.resolved_yaml):
            yield directory
    except AlreadyFinished as finished:
        _OUT.print(str(finished))
    except interrupt.TrainingInterrupted as stopped:
        if chosen is not None:
            raise
        again = f"run the same command again with run_dir={os.path.relpath(directory.path)}"
        raise interrupt.TrainingInterrupted(
            stopped.step, stopped.directory, stopped.signum, again=again
        ) from None
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # something is in it
                directory.path.rmdir()


def require_unfinished(
    directory: run_directory.RunDirectory, steps: int, planned: int, notes: Iterable[str]
) -> None:
    """Raise if the run's summary is about its last step: it would be written anew for nothing.

    Args:
        directory: The run, which has nothing left to train.
        steps: Steps it has taken.
        planned: Steps the settings ask for.
        notes: Why these are more, if they are.

    Raises:
        AlreadyFinished: If so; if not, the run ended after its last step, before its summary.
    """
    try:
        summary = json.loads(directory.summary.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    if steps and isinstance(summary, Mapping) and summary.get("steps") == steps:
        for note in notes:
            _OUT.print(f"note       {note}")
        raise AlreadyFinished(f"already finished ({steps} of {planned} steps); nothing was trained")


@contextlib.contextmanager
def recorded(directory: run_directory.RunDirectory, resolved_yaml: str) -> Iterator[None]:
    """Keep a run's settings in its directory, and say what differs from those it began with.

    If the body ends before it has saved anything, the earlier settings are put back: they are
    still those that the checkpoints were trained with. So is what
    :mod:`~tunix.cli.running.run_text` keeps. Where there was nothing before, nothing stays, unless
    the body has left something to look at.

    Args:
        directory: The run.
        resolved_yaml: Every setting of the run, defaults included.
    """
    before = _saved(directory)
    files = [directory.config, directory.path / run_text.FILE]
    earlier = {file: file.read_bytes() if file.is_file() else None for file in files}
    config = earlier[directory.config]
    if before and config is not None:
        for line in changes(_parsed(config), _parsed(resolved_yaml)):
            _OUT.print(f"changed    {line}")
    directory.write_config(resolved_yaml)
    try:
        yield
    except BaseException:
        own = {*files, directory.path / run_lock.FILE}
        if _saved(directory) == before and (before or own.issuperset(directory.path.iterdir())):
            for file, content in earlier.items():
                _put_back(file, content)
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


def _put_back(file: pathlib.Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif file.read_bytes() != content:
        file.write_bytes(content)


def _parsed(text: str | bytes) -> Mapping[str, Any]:
    found = yaml.safe_load(text)
    return found if isinstance(found, Mapping) else {}


def _saved(directory: run_directory.RunDirectory) -> set[str]:
    """Return the names of the run's checkpoints."""
    if not directory.checkpoints.is_dir():
        return set()
    return {entry.name for entry in directory.checkpoints.iterdir() if entry.name.isdigit()}
