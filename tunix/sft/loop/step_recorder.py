"""Metrics of training steps on their way from the device to the logger."""

import collections
import math
import time
from collections.abc import Mapping

from tunix.sft import metrics_logger, progress_bar
from tunix.sft.loop import step_handle
from tunix.sft.metrics import system_metrics

MAX_LOG_PERPLEXITY = 700.0
"""Above this the exponential does not fit a float; an untrained model is far below."""


class StepRecorder:
    """Logs each step's metrics when they are there, without making the host wait.

    Args:
        logger: Where metrics go.
        prefix: First part of their names.
        progress: Shows them, if given.
        system: Adds metrics of the machine, if given.
        lag: How many steps the host may be ahead of what is read here; 0 reads each step at
            once.
    """

    def __init__(
        self,
        logger: metrics_logger.MetricsLogger,
        prefix: str,
        progress: progress_bar.ProgressBar | None,
        system: system_metrics.SystemMetrics | None,
        lag: int,
    ):
        self._logger, self._prefix = logger, prefix
        self._progress, self._system, self._lag = progress, system, lag
        self._pending: collections.deque[tuple[step_handle.StepHandle, tuple[int, float]]]
        self._pending = collections.deque()
        self._clock = time.perf_counter()

    def add(self, handle: step_handle.StepHandle) -> None:
        """Take a step that was just dispatched, and log the ones that are far enough behind."""
        compiled = (0, 0.0) if self._system is None else self._system.compiled()
        self._pending.append((handle, compiled))
        while len(self._pending) > self._lag:
            self._record(*self._pending.popleft())

    def drain(self) -> None:
        """Wait for all steps and log them."""
        while self._pending:
            self._record(*self._pending.popleft())

    def restart_clock(self) -> None:
        """Leave what happened since the last step out of the next step's numbers."""
        self._clock = time.perf_counter()
        if self._system is not None:
            self._system.skip()

    def log_eval(self, means: Mapping[str, float], step: int) -> None:
        """Log and show the result of an evaluation."""
        self._log(dict(means), metrics_logger.Mode.EVAL, step)

    def _record(self, handle: step_handle.StepHandle, compiled: tuple[int, float]) -> None:
        values = handle.result()
        del values["status"]  # reported by the watch for skipped steps
        now = time.perf_counter()
        values["step_time_sec"], self._clock = now - self._clock, now
        if self._system is not None:
            seconds = values["step_time_sec"]
            values |= self._system.read(compiled, handle.tokens, handle.row_length, seconds)
        self._log(values, metrics_logger.Mode.TRAIN, handle.step)
        if self._progress is not None:
            self._progress.update()

    def _log(self, values: dict[str, float], mode: metrics_logger.Mode, step: int) -> None:
        if "nll" in values:
            values["perplexity"] = math.exp(min(values.pop("nll"), MAX_LOG_PERPLEXITY))
        for name, value in values.items():
            self._logger.log(self._prefix, name, value, mode, step)
        if self._progress is not None:
            self._progress.update_metrics(["loss", "perplexity"], mode)
