"""Signals that lose nothing: the first asks for a stop, a second Ctrl-C aborts.

SIGTERM is what a scheduler sends before it takes the machine away (pre-emption).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after the step in progress was finished and saved.

    Args:
        step: The last one; 0 if none was begun.
        directory: Where it was saved; None if checkpoints are not kept.
        signum: The signal.
        again: What continues the training.
    """

    def __init__(
        self,
        step: int,
        directory: str | os.PathLike[str] | None,
        signum: int = signal.SIGINT,
        *,
        again: str = "run the same command again",
    ):
        self.step, self.directory, self.signum = step, directory, signum
        if not step:
            message = "stopped before the first step; nothing was saved"
        elif directory is None:
            message = f"stopped after step {step}; nothing was saved, because no "
            message += "checkpoint_root_directory is set"
        else:
            message = f"stopped after step {step} and saved it in {directory}; {again} to continue "
            message += "from there"
        super().__init__(message)


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.requested = False
        self.signum: int = signal.SIGINT


@contextlib.contextmanager
def graceful_interrupt() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request that the loop in the body can honour.

    A second SIGINT raises ``KeyboardInterrupt`` at once; further SIGTERMs change nothing. Outside
    the main thread, where signals cannot be caught, the request simply never comes.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print or logging: the interrupted code may hold their locks.
        os.write(2, b"\nstopping after this step; Ctrl-C again aborts without saving\n")

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        if not stop.requested:
            os.write(2, b"\nSIGTERM: stopping after this step\n")
            stop.requested, stop.signum = True, signum

    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the program without a word while the body runs.

    For imports, which take seconds: an exception in the middle of one is a long traceback, or
    becomes an ``ImportError`` about something else. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    # Whoever ignores the signal, as shells do for jobs in the background, goes on doing so.
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, handler)
