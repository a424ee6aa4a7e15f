"""Counting XLA compilations, to show that a warmed-up program never compiles again."""

import threading
from types import TracebackType
from typing import Self

import jax.monitoring

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts the programs that XLA is asked for while the ``with`` statement runs.

    A program loaded from the persistent cache counts too: it had to be traced, and in another
    process it would have been compiled. Compilations of all threads are counted.

    Example::

        with CompileCounter() as counter:
            step(batch)
        assert counter.count == 0, counter.names
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []
        self.seconds = 0.0
        """Time that the counted compilations took."""

    @property
    def count(self) -> int:
        """How many programs were compiled so far."""
        return len(self._names)

    @property
    def names(self) -> tuple[str, ...]:
        """The compiled functions, in order."""
        return tuple(self._names)

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Only our own listener: others may be measuring too.
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event != _COMPILE_EVENT:
            return
        with self._lock:
            self._names.append(str(details.get("fun_name", "?")))
            self.seconds += duration_secs
