"""Runs another library's training loop one step at a time. Standard library alone."""

import threading
from collections.abc import Callable
from typing import Any


class Paced:
    """A training loop in a thread of its own that waits at the end of every step.

    ``Trainer.train`` of transformers sets everything up anew at each call, so calling it for
    every repeat would charge it with more than a step.

    Args:
        run: The loop; it must call :meth:`pause` at the end of each step.
    """

    def __init__(self, run: Callable[[], Any]):
        self._run = run
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._facts: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def pause(self, facts: dict[str, Any]) -> None:
        """End a step; called by the loop."""
        self._facts = facts
        self._done.release()
        self._go.acquire()

    def step(self) -> dict[str, Any]:
        """Run one step and return its facts; called by the worker."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._guarded, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._facts

    def _guarded(self) -> None:
        try:
            self._run()
            raise RuntimeError("the training loop ended")
        except BaseException as error:  # raised again where it is seen
            self._error = error
            self._done.release()
