"""The thread that writes metrics, so that no step waits for a disk or a network."""

import dataclasses
import errno
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tunix.sft.metrics import metrics_backends
from tunix.utils import error_text

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)


class MetricsBackendError(RuntimeError):
    """A metrics backend failed; the cause is the exception it raised."""


class MetricsStorageError(MetricsBackendError, OSError):
    """A metrics backend found no space or no permission: nothing that a program has done wrong."""


@dataclasses.dataclass(frozen=True)
class _Scalar:
    event: str
    value: Any
    step: int


@dataclasses.dataclass(frozen=True)
class _Call:
    """Something to do after everything logged so far; ``done`` is set when it is."""

    action: Callable[[], None]
    done: threading.Event = dataclasses.field(default_factory=threading.Event)


class MetricsWriter:
    """Feeds backends from a queue.

    A backend that raises is reported by the next :meth:`flush` or :meth:`close`; the others go
    on. Values may still be on their way from the device: this thread waits for them.

    Args:
        backends: Where every scalar goes.
        flush_every_n_steps: After how many different steps backends are flushed unasked.
    """

    def __init__(
        self, backends: Sequence[metrics_backends.LoggingBackend], flush_every_n_steps: int
    ):
        self._backends = backends
        self._flush_every_n_steps = flush_every_n_steps
        self._queue: queue.SimpleQueue[_Scalar | _Call | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._last_step: int | None = None
        self._steps_since_flush = 0
        self._thread: threading.Thread | None = None

    def write(self, event: str, value: Any, step: int) -> None:
        """Queue a scalar and return at once."""
        self._start()
        self._queue.put(_Scalar(event, value, step))

    def truncate_after(self, step: int) -> None:
        """Have the backends that can do so forget later steps."""
        for backend in self._backends:
            if isinstance(backend, metrics_backends.TruncatableBackend):
                self._run(lambda backend=backend: backend.truncate_after(step))
        self._raise()

    def flush(self) -> None:
        """Return when everything queued has been written.

        Raises:
            MetricsBackendError: If a backend has failed.
        """
        self._run(self._flush_backends)
        self._raise()

    def close(self) -> None:
        """Write everything, close the backends and end the thread.

        Raises:
            MetricsBackendError: If a backend has failed.
        """
        for backend in self._backends:
            self._run(backend.close)
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, so that a program that forgets to close can end; see MetricsLogger.
            self._thread = threading.Thread(target=self._work, name="tunix-metrics", daemon=True)
            self._thread.start()

    def _run(self, action: Callable[[], None]) -> None:
        """Do something in the writer's thread, after everything queued, and wait for it."""
        if self._thread is None:
            self._guard(action)
            return
        call = _Call(action)
        self._queue.put(call)
        call.done.wait()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, _Call):
                self._guard(item.action)
                item.done.set()
            else:
                self._write_scalar(item)

    def _write_scalar(self, scalar: _Scalar) -> None:
        if scalar.step != self._last_step:
            self._last_step = scalar.step
            self._steps_since_flush += 1
            if self._steps_since_flush > self._flush_every_n_steps:
                self._steps_since_flush = 1
                self._guard(self._flush_backends)
        self._guard(lambda: self._log_scalar(scalar))

    def _log_scalar(self, scalar: _Scalar) -> None:
        value = float(np.asarray(scalar.value).item())
        for backend in self._backends:
            self._guard(
                lambda backend=backend: backend.log_scalar(scalar.event, value, scalar.step)
            )

    def _flush_backends(self) -> None:
        for backend in self._backends:
            if isinstance(backend, metrics_backends.FlushableBackend):
                self._guard(backend.flush)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run an action of a backend; keep its first exception for whoever waits."""
        try:
            action()
        except Exception as error:
            self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError) and error.errno in _STORAGE:
                raise MetricsStorageError(
                    f"cannot write metrics: {error.strerror}; free some space or make the "
                    "directory writable, then continue from the last checkpoint"
                ) from error
            raise MetricsBackendError(
                f"a metrics backend failed: {error_text.describe(error)}"
            ) from error
