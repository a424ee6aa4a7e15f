"""Where the time of a step goes: named, nested spans of wall time.

JAX computes asynchronously, so a span sees only what happens on the host until something
waits; :meth:`Span.wait_for` makes it wait for the arrays that the span is about.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from tunix.utils import reference_names


@dataclasses.dataclass
class Span:
    """A span that is open; what ``with timer.span(name) as span`` binds."""

    name: str
    """Names of the enclosing spans and its own, joined by ``/``."""
    outputs: list[Any] = dataclasses.field(default_factory=list)

    def wait_for(self, outputs: Any) -> None:
        """Let the span end only when these arrays have been computed."""
        self.outputs.append(outputs)


class SpanTimer:
    """Adds up the seconds spent under each name.

    Spans may be open in several threads at once; nesting is per thread. A span that is opened
    inside another is named ``outer/inner`` and its time counts in both. Spans also show up in
    a profile taken with ``jax.profiler``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, float] = {}
        self._open = threading.local()

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Time the body of a ``with`` statement, also when it raises."""
        outer: list[str] = self._open.__dict__.setdefault("names", [])
        span = Span("/".join([*outer, name]))
        outer.append(name)
        start = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation(name):
                yield span
                jax.block_until_ready(span.outputs)
        finally:
            seconds = time.perf_counter() - start
            outer.pop()
            with self._lock:
                self._totals[span.name] = self._totals.get(span.name, 0.0) + seconds

    def totals(self) -> dict[str, float]:
        """Return the seconds under each name since the last :meth:`take`."""
        with self._lock:
            return dict(self._totals)

    def take(self) -> dict[str, float]:
        """Return :meth:`totals` and start again from zero: the times of one step."""
        with self._lock:
            totals, self._totals = self._totals, {}
        return totals


__getattr__ = reference_names.hints(__name__)
