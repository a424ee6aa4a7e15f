"""Ctrl-C that loses nothing: the first asks for a stop, the second aborts."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by the user, after the step in progress was finished and saved."""


class StopRequest:
    """Whether the user has asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT into a request that the loop in the body can honour.

    The second SIGINT raises ``KeyboardInterrupt`` at once. Outside the main thread, where
    signals cannot be caught, the request simply never comes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print or logging: the interrupted code may hold their locks.
        os.write(2, b"\nstopping after this step; Ctrl-C again aborts without saving\n")

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        # None: the handler was not installed from Python and cannot be put back.
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
