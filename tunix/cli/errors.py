"""What a user sees when a command fails: one message, no stack of our functions."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from tunix.sft.loop import interrupt as interrupt_lib

TRACEBACK_VARIABLE = "TUNIX_TRACEBACK"
"""Set to 1 to see where an error came from."""

USAGE_ERROR = 2

_HIDDEN: dict[str, str] = {}
"""Texts that no message says, and what it says instead."""
SIGNALLED = 128
"""Plus the signal's number, as shells report it: 130 after Ctrl-C, 143 after SIGTERM."""


def hide(texts: Mapping[str, str]) -> None:
    """Keep texts, such as secrets of the environment, out of the message of a failing command.

    Args:
        texts: Each with what stands for it.
    """
    _HIDDEN.update(texts)


def without_hidden(message: str) -> str:
    """Return a message in which hidden texts are replaced by what stands for them."""
    for text in sorted(_HIDDEN, key=len, reverse=True):
        for spelling in (text, repr(text)[1:-1]):
            message = message.replace(spelling, _HIDDEN[text])
    return message


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Return the exit code of ``command(argv)``; bad input becomes a message on stderr.

    Bad input is what our code raises ``ValueError`` for (``ConfigError`` and its
    relatives) and what the system raises ``OSError`` or ``ImportError`` for: a
    missing file, a full disk, a package that is not installed. Anything else is
    a mistake of ours and keeps its traceback.
    """
    _HIDDEN.clear()
    # Before a library does so: alarms are for the user, who has no use for a module's name.
    logging.basicConfig(format="%(levelname)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_for_users)
    try:
        with _without_orphans():
            return command(argv)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        print(f"error: {without_hidden(_message(error))}", file=sys.stderr)
        print(f"(set {TRACEBACK_VARIABLE}=1 to see where it comes from)", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        # The trainer finishes its step, saves, and says in the message how to go on.
        print(str(interrupt) or "interrupted", file=sys.stderr)
        is_ours = isinstance(interrupt, interrupt_lib.TrainingInterrupted)
        return SIGNALLED + (interrupt.signum if is_ours else signal.SIGINT)


@contextlib.contextmanager
def _without_orphans() -> Iterator[None]:
    """Keep the store of checkpoints from printing tracebacks of writes that nobody waits for.

    When one write fails, on a full disk for example, its error is raised and the event loop is
    closed; each of the others prints that it found it so.
    """
    show = sys.unraisablehook

    def show_ours(found: "sys.UnraisableHookArgs") -> None:
        if str(found.exc_value) != "Event loop is closed":
            show(found)

    sys.unraisablehook = show_ours
    try:
        yield
    finally:
        sys.unraisablehook = show


def _is_for_users(record: logging.LogRecord) -> bool:
    """Return False for what Orbax logs: tracebacks of its threads, whose errors we raise, too."""
    if record.name == "asyncio":
        return "orbax" not in record.getMessage()
    return record.name != "absl" or "orbax" not in record.pathname


def _message(error: Exception) -> str:
    """Return the error's own words; the type comes first where the words alone say little."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}"
    return text or type(error).__name__
