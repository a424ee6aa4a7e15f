"""A bound on how many steps the host may run ahead of the device."""

import collections
from typing import Any

import jax


class InflightThrottler:
    """Remembers dispatched computations and waits for the oldest when there are too many.

    Without a bound the host queues steps, and with them their batches, faster than the device
    computes them.
    """

    def __init__(self, max_inflight: int):
        if max_inflight < 1:
            raise ValueError(f"max_inflight must be at least 1, got {max_inflight}")
        self._max_inflight = max_inflight
        self._inflight: collections.deque[Any] = collections.deque()

    def add_computation(self, computation: Any) -> None:
        """Remember the arrays (any pytree) that a step just dispatched will produce."""
        self._inflight.append(computation)

    def wait_for_next(self) -> None:
        """Wait until one more computation may be dispatched."""
        while len(self._inflight) >= self._max_inflight:
            jax.block_until_ready(self._inflight.popleft())

    def wait_for_all(self) -> None:
        """Wait until nothing is in flight."""
        while self._inflight:
            jax.block_until_ready(self._inflight.popleft())
