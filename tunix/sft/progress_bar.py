"""Progress of a run: a live bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import math
import time
from collections.abc import Iterator

import rich.console
import rich.progress
import rich.text

from tunix.sft import metrics_logger as metrics_logger_lib
from tunix.sft import training_config

PLAIN_INTERVAL_SECONDS = 10.0
"""How often a line is printed where there is no terminal: a log file is not for every step."""

NOISE = 1e-6
"""Below this a number is what float32 rounding left of zero, and is shown as zero."""

_STEPS_TO_JUDGE_BY = 2
"""Steps after the first, which compiles, before it is said how long the rest will take."""


class ProgressBar:
    """Shows steps, how long the rest will take, and the latest metrics.

    What an evaluation found is shown with its step; a log file gets it once.

    Args:
        metrics_prefix: Prefix of the metrics to show.
        metrics_logger: Where the metrics are read.
        initial_steps: Steps already taken.
        max_steps: Steps in all; ``None`` if the data decides.
        description: Shown in front.
        console: Where to show it; standard error by default, so that it does not mix with output.
    """

    def __init__(
        self,
        metrics_prefix: str,
        metrics_logger: metrics_logger_lib.MetricsLogger,
        initial_steps: int,
        max_steps: int | None,
        description: str | None = None,
        *,
        console: rich.console.Console | None = None,
    ):
        self._prefix = metrics_prefix
        self._logger = metrics_logger
        self._step = initial_steps
        self._max_steps = max_steps
        self._description = description or "Training"
        self._console = console or rich.console.Console(stderr=True)
        self._metrics: dict[metrics_logger_lib.Mode, dict[str, str]] = {}
        self._evaluated_at = initial_steps
        self._first: tuple[float, int] | None = None
        self._last_printed = -math.inf
        self._unprinted = False
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = _live_bar(self._console)
            self._task = self._bar.add_task(
                self._description, total=max_steps, completed=initial_steps, metrics="", left=""
            )
            self._bar.start()

    def update_metrics(
        self, metric_names: list[str], mode: metrics_logger_lib.Mode, ndigits: int = 3
    ) -> None:
        """Show the latest values of these metrics, those that have been logged."""
        for name in metric_names:
            if self._logger.metric_exists(self._prefix, name, mode):
                value = self._logger.get_metric(self._prefix, name, mode)
                self._metrics.setdefault(mode, {})[name] = _rounded(value, ndigits)
        if mode is metrics_logger_lib.Mode.EVAL:
            self._evaluated_at, self._unprinted = self._step, True
        if self._bar is not None:
            self._bar.update(self._task, metrics=self._metrics_text())

    def expect(self, max_steps: int) -> None:
        """Take note of how many steps there will be in all, if that is known only now."""
        self._max_steps = max_steps
        if self._bar is not None:
            self._bar.update(self._task, total=max_steps)

    def update(self, n: int = 1) -> None:
        """Count ``n`` more steps."""
        self._step += n
        if self._first is None:
            self._first = time.monotonic(), self._step
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, left=self._time_left())
            return
        self._unprinted = True
        if time.monotonic() - self._last_printed >= PLAIN_INTERVAL_SECONDS:
            self._print_line()

    def close(self) -> None:
        """Stop the bar, or print the last line."""
        if self._bar is not None:
            self._bar.stop()
        elif self._unprinted:
            self._print_line()

    def _print_line(self) -> None:
        of_all = "" if self._max_steps is None else f"/{self._max_steps}"
        parts = [f"{self._description} {self._step}{of_all}", self._time_left()]
        line = "  ".join(part for part in (*parts, self._metrics_text()) if part)
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_printed = time.monotonic()
        self._unprinted = False
        self._metrics.pop(metrics_logger_lib.Mode.EVAL, None)  # beside later losses it misleads

    def _time_left(self) -> str:
        """Return ``about 3 min left``, or nothing if that is not known or nothing is left."""
        if self._first is None or self._max_steps is None or self._step >= self._max_steps:
            return ""
        begin, first_step = self._first
        if (steps := self._step - first_step) < _STEPS_TO_JUDGE_BY:
            return ""
        seconds = (time.monotonic() - begin) / steps * (self._max_steps - self._step)
        return f"about {duration(seconds)} left"

    def _metrics_text(self) -> str:
        """Return ``train loss 1.2  kl 0.1  eval at step 20: loss 1.3``: every mode once."""
        parts = []
        for mode, metrics in self._metrics.items():
            is_eval = mode is metrics_logger_lib.Mode.EVAL
            head = f"{mode} at step {self._evaluated_at}: " if is_eval else f"{mode} "
            parts.append(head + "  ".join(f"{name} {value}" for name, value in metrics.items()))
        return "  ".join(parts)


@contextlib.contextmanager
def shown(
    config: training_config.TrainingConfig,
    logger: metrics_logger_lib.MetricsLogger,
    done: int,
    total: int | None,
) -> Iterator[ProgressBar | None]:
    """Show the progress of a training in the body, if its settings describe it.

    Args:
        config: The settings.
        logger: Where the metrics are read.
        done: Steps already taken.
        total: Steps in all; ``None`` if the data decides.
    """
    if config.pbar_description is None:
        yield None
        return
    bar = ProgressBar(config.metrics_prefix, logger, done, total, config.pbar_description)
    try:
        yield bar
    finally:
        bar.close()


def duration(seconds: float) -> str:
    """Return a time as people say it, in two units at most: ``40 s``, ``3 h 20 min``."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    many, rest, unit, below = minutes // 60, minutes % 60, "h", "min"
    if many >= 24:
        many, rest, unit, below = hours // 24, hours % 24, "d", "h"
    return f"{many} {unit} {rest} {below}" if rest else f"{many} {unit}"


def _rounded(value: float, ndigits: int) -> str:
    """Return ``value`` with ``ndigits`` decimals, or digits where that would show only zeros."""
    if abs(value) < NOISE:
        value = 0.0
    tiny = value != 0 and abs(value) < 10**-ndigits
    return f"{value:.{ndigits}g}" if tiny or abs(value) >= 1e6 else f"{value:.{ndigits}f}"


class _BarAndMetrics(rich.progress.Progress):
    """A bar and, below it, the metrics: they would not fit beside it."""

    def get_renderables(self) -> Iterator[rich.console.RenderableType]:
        """Yield what is shown, line by line."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield rich.text.Text(task.fields["metrics"])


def _live_bar(console: rich.console.Console) -> rich.progress.Progress:
    return _BarAndMetrics(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        # Rich's own forgets what happened half a minute ago, and a step may take longer.
        rich.progress.TextColumn("{task.fields[left]}"),
        console=console,
    )
