"""Progress of a run: a live bar on a terminal, a plain line now and then elsewhere."""

import math
import time
from collections.abc import Iterator

import rich.console
import rich.progress
import rich.text

from tunix.sft import metrics_logger as metrics_logger_lib

PLAIN_INTERVAL_SECONDS = 10.0
"""How often a line is printed where there is no terminal: a log file is not for every step."""


class ProgressBar:
    """Shows steps, time and the latest metrics.

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
        self._metrics: dict[str, dict[str, str]] = {}
        self._last_printed = -math.inf
        self._unprinted = False
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = _live_bar(self._console)
            self._task = self._bar.add_task(
                self._description, total=max_steps, completed=initial_steps, metrics=""
            )
            self._bar.start()

    def update_metrics(
        self, metric_names: list[str], mode: metrics_logger_lib.Mode, ndigits: int = 3
    ) -> None:
        """Show the latest values of these metrics, those that have been logged."""
        for name in metric_names:
            if self._logger.metric_exists(self._prefix, name, mode):
                value = self._logger.get_metric(self._prefix, name, mode)
                self._metrics.setdefault(str(mode), {})[name] = _rounded(value, ndigits)
        if self._bar is not None:
            self._bar.update(self._task, metrics=self._metrics_text())

    def update(self, n: int = 1) -> None:
        """Count ``n`` more steps."""
        self._step += n
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step)
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
        line = f"{self._description} {self._step}{of_all}  {self._metrics_text()}".rstrip()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last_printed = time.monotonic()
        self._unprinted = False

    def _metrics_text(self) -> str:
        """Return ``train loss 1.2  kl 0.1  eval loss 1.3``: every mode once."""
        return "  ".join(
            f"{mode} " + "  ".join(f"{name} {value}" for name, value in metrics.items())
            for mode, metrics in self._metrics.items()
        )


def _rounded(value: float, ndigits: int) -> str:
    """Return ``value`` with ``ndigits`` decimals, or digits where that would show only zeros."""
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
        rich.progress.TimeRemainingColumn(),
        console=console,
    )
