"""The side of a reward function's process that runs in it.

Only the standard library: a child imports this file and what the function needs.
"""

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from tunix.rl.scoring import process_channel
from tunix.utils import error_text

MOST_ANSWER_BYTES = 1 << 26
"""The longest answer that is read: numbers of millions of completions."""

READY, TAKEN, VALUE, RAISED, UNUSABLE = b"R", b"T", b"V", b"E", b"U"
"""What a child says, by the first byte: it has the function; it has a call; what that returned or
raised, or why the function cannot be used this way."""

Payload = tuple[bytes, tuple[str, str] | None]
"""A pickled function; name and file of its module, if it may not be found by its name."""


def called(fn: Callable[..., Any], kwargs: Mapping[str, Any], most: int | None) -> Any:
    """Return what a function returns.

    Args:
        fn: The function.
        kwargs: Its arguments.
        most: How many entries are expected of what it returns, which becomes a list of at most
            one more, as an iterator may have no end; ``None`` for a single value.
    """
    with one_process():
        value = fn(**kwargs)
        return value if most is None else collected(value, most)


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Have a process that a function forks end where it leaves the function.

    Its caller waits in the other one, and would hear of two values, or not see it end.
    """
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != owner:
            error = sys.exc_info()[1]
            code = error.code if isinstance(error, SystemExit) else error
            os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def collected(value: Any, most: int) -> Any:
    """Return up to ``most + 1`` entries of a value as a list; a value that has none as it is."""
    if isinstance(value, (str, bytes, Mapping, Set)):  # a set has no order
        return value
    try:
        entries = iter(value)
    except TypeError:
        return value
    return list(itertools.islice(entries, most + 1))


def serve(end: socket.socket, payload: Payload) -> None:
    """Answer calls until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    if hasattr(os, "setsid"):
        os.setsid()  # and what a signal to its group means; what is started here ends with us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator is the trainer's
    channel = process_channel.Channel(end)
    try:
        pickled, source = payload
        if source is not None:
            _load(*source)
        fn = pickle.loads(pickled)
    except BaseException as error:
        channel.send(_said(UNUSABLE, error_text.describe(error)))
        return
    with contextlib.suppress(EOFError):
        channel.send(READY)
        while True:
            message = channel.receive()
            channel.send(TAKEN)
            channel.send(_answer(fn, message))


def _end_with_parent() -> None:
    """Wait for the end of the trainer, which a call that never returns would outlive."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a child
    parent.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _answer(fn: Callable[..., Any], message: bytes) -> bytes:
    """Return what a call came to, as bytes."""
    try:
        kwargs, most = pickle.loads(message)
    except BaseException as error:
        told = f"its arguments cannot be read in another process ({error_text.describe(error)})"
        return _said(UNUSABLE, f"{told}; use run_in='thread'")
    try:
        value = called(fn, kwargs, most)
    except BaseException as error:  # SystemExit, too: it is the end of the call alone
        return _said(RAISED, error_text.describe(error) + error_text.location(error, {__file__}))
    kind = type(value).__name__
    try:
        packed = pickle.dumps(value)
    except BaseException as error:
        told = f"it returned {kind}, which cannot leave its process"
        return _said(UNUSABLE, f"{told} ({error_text.describe(error)}); return numbers")
    if len(packed) >= MOST_ANSWER_BYTES:
        told = f"it returned {kind} of {len(packed):,} bytes"
        return _said(UNUSABLE, f"{told}; at most {MOST_ANSWER_BYTES:,} are read")
    return VALUE + packed


def _said(kind: bytes, text: str) -> bytes:
    return kind + text.encode("utf-8", "backslashreplace")


def _load(name: str, file: str) -> None:
    """Execute a file as a module of this name, unless the name is enough to find it."""
    try:
        if importlib.util.find_spec(name) is not None:
            return
    except ModuleNotFoundError:  # its package is not there
        pass
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
