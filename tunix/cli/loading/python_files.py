"""Python files of users: executed once, before the settings that may name what they register."""

import importlib.util
import pathlib
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

from tunix.cli.schemas import structure
from tunix.utils import config as config_lib
from tunix.utils import error_text

KEYS = ("python_files", "reward_functions")
"""Settings that name files, in the order in which these are executed."""

_executed: dict[pathlib.Path, tuple[bytes, types.ModuleType]] = {}


def load_before_checks(settings: Mapping[str, Any]) -> None:
    """Execute the files that settings name, so that names which they register are known.

    Args:
        settings: As they were read, with mistakes that are reported later.

    Raises:
        ConfigError: A file is missing, or fails.
    """
    for key in KEYS:
        load(structure.texts(settings.get(key)) or (), key=key)


def load(paths: Sequence[str], *, key: str) -> list[types.ModuleType]:
    """Return the modules of files, each executed once as long as its text stays the same.

    The directory of a file comes last on ``sys.path``: it may import what lies beside it.

    Args:
        paths: The files.
        key: The setting that names them, for messages.

    Raises:
        ConfigError: Lists every file that is missing or fails, and at which of its lines.
    """
    modules: list[types.ModuleType] = []
    problems: list[str] = []
    cause: BaseException | None = None
    for path in paths:
        file = pathlib.Path(path).expanduser()
        if not file.is_file():
            problems.append(f"{path} does not exist (looked in {file.absolute()})")
            continue
        try:
            modules.append(_module_of(file.resolve()))
        except (Exception, SystemExit) as error:  # whatever the user's file does
            problems.append(_where(error, path, file.resolve()))
            cause = cause or error
    if problems:
        raise config_lib.ConfigError(key, problems) from cause
    return modules


def _module_of(file: pathlib.Path) -> types.ModuleType:
    """Execute ``file`` as a module of its own, whatever is already imported under its name."""
    text = file.read_bytes()
    if file in _executed and _executed[file][0] == text:
        return _executed[file][1]
    name = f"tunix_user_file_{file.stem}_{abs(hash(file)):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is not a Python file: its name should end in .py")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # last: nothing that is installed is shadowed
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    spec.loader.exec_module(module)
    _executed[file] = text, module
    return module


def _where(error: BaseException, path: str, file: pathlib.Path) -> str:
    """Return what went wrong, at which line of the file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    where = f"{path}, line {lines[-1]}" if lines else path
    return f"{where}: {error_text.describe(error)}"
