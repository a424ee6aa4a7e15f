"""What is said of an exception or a value of a user's code, whatever that does when it is asked.

Only the standard library: processes that run users' functions import this file.
"""

import pathlib
import traceback
from collections.abc import Callable, Collection

SHOWN_CHARACTERS = 1_000


def describe(error: BaseException) -> str:
    """Return type and text of an exception, also of one whose text cannot be made."""
    return f"{_name_of(error)}: {_text(str, error)}"


def shown(value: object) -> str:
    """Return ``repr(value)``, also of a value whose ``repr`` cannot be made."""
    return _text(repr, value)


def location(error: BaseException, ours: Collection[str] = ()) -> str:
    """Return the line that raised, as " (file.py, line 3)": the last one in the user's first file.

    Args:
        error: An exception that was raised.
        ours: Files whose frames come before the user's; nothing is returned if there is no other.
    """
    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename in ours:
        del frames[0]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f" ({pathlib.PurePath(frames[0].filename).name}, line {lines[-1]})" if lines else ""


def shorten(text: str, limit: int) -> str:
    """Return ``text``; of more than ``limit`` characters both ends, and how many are left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters] {text[-half:]}"


def _text(make: Callable[[object], str], value: object) -> str:
    try:
        return shorten(make(value), SHOWN_CHARACTERS)
    except BaseException as error:  # whatever the user's class does: it may even call sys.exit
        return f"(its text cannot be made: {_name_of(error)})"


def _name_of(error: BaseException) -> str:
    # ``__name__`` of its class may be a property of that class's own class.
    return type.__dict__["__name__"].__get__(type(error))
