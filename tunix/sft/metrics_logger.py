"""Metrics of a run: recent values in memory, all of them in the backends."""

import collections
import dataclasses
import enum
import logging
import pathlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from tunix.sft.metrics import metrics_backends, metrics_writer
from tunix.utils import config as config_lib
from tunix.utils import reference_names

_LOG = logging.getLogger(__name__)

HISTORY = 1024
"""Values of each metric kept in memory; the backends keep all."""

LoggingBackend = metrics_backends.LoggingBackend
JsonLinesBackend = metrics_backends.JsonLinesBackend
TensorboardBackend = metrics_backends.TensorboardBackend
ConsoleBackend = metrics_backends.ConsoleBackend
WandbBackend = metrics_backends.WandbBackend
BackendFactory = Callable[[], LoggingBackend]


class Mode(enum.StrEnum):
    """What a metric was measured on."""

    TRAIN = "train"
    EVAL = "eval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsOptions(config_lib.Config):
    """How metrics are written, wherever that is."""

    project_name: str = "tunix"
    """Shown in TensorBoard as the title of the run."""

    flush_every_n_steps: int = 20
    """After how many steps everything is handed to the operating system."""

    wandb: Literal["online", "offline"] | None = None
    """Logs to Weights and Biases too (``pip install tunix[wandb]``); ``offline`` writes files for
    ``wandb sync``."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these options."""
        yield from super().problems()
        yield from config_lib.below_one(self, "flush_every_n_steps")
        if self.wandb not in (None, "online", "offline"):
            yield f"wandb must be 'online', 'offline' or None, got {self.wandb!r}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsLoggerOptions(MetricsOptions):
    """Where metrics are written, and how."""

    log_dir: str
    """The run's directory: ``metrics.jsonl`` and ``tensorboard/`` are made in it."""

    run_name: str = ""
    """If given, the files are made in this subdirectory of ``log_dir``."""

    backend_factories: list[BackendFactory] | None = None
    """What makes the backends. If not given: JSON lines, TensorBoard where ``tensorboardX`` is
    installed and, if asked for, W&B."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these options."""
        yield from super().problems()
        if self.wandb is not None and self.backend_factories is not None:
            yield "wandb is not read where backend_factories are given; add WandbBackend to them"

    @property
    def directory(self) -> pathlib.Path:
        """Where the files are made."""
        return pathlib.Path(self.log_dir).expanduser() / self.run_name

    def create_backends(self) -> list[LoggingBackend]:
        """Return new backends."""
        if self.backend_factories is not None:
            return [factory() for factory in self.backend_factories]
        title = "/".join(filter(None, (self.project_name, self.run_name)))
        backends: list[LoggingBackend] = [JsonLinesBackend(self.directory / "metrics.jsonl")]
        try:
            backends.append(TensorboardBackend(self.directory / "tensorboard", title))
        except ImportError as error:  # nobody asked for it by name, and nothing is lost
            _LOG.warning("%s; metrics.jsonl has the same numbers", error)
        if self.wandb is not None:
            backends.append(
                WandbBackend(self.directory, self.project_name, self.run_name, self.wandb)
            )
        return backends


class MetricsLogger:
    """Takes scalars from the loop and returns at once; a thread writes them.

    Args:
        metrics_logger_options: Where to write; without it values are kept in memory only.
    """

    def __init__(self, metrics_logger_options: MetricsLoggerOptions | None = None):
        self._history: dict[str, collections.deque[Any]] = {}
        self._writer: metrics_writer.MetricsWriter | None = None
        if metrics_logger_options is not None:
            self._writer = metrics_writer.MetricsWriter(
                metrics_logger_options.create_backends(),
                metrics_logger_options.flush_every_n_steps,
            )
            # A program that never calls close() still gets its last lines when it ends.
            self._finalizer = weakref.finalize(self, self._writer.close)

    def log(
        self,
        metrics_prefix: str,
        metric_name: str,
        scalar_value: float | np.ndarray | Any,
        mode: Mode | str,
        step: int,
    ) -> None:
        """Record a scalar of ``step``.

        Args:
            metrics_prefix: First part of the name, e.g. the role of a model; may be empty.
            metric_name: Last part of the name.
            scalar_value: A number, or an array of one element, also one that a device is still
                computing.
            mode: Middle part of the name: ``train`` or ``eval``.
            step: The step it belongs to.

        Raises:
            ValueError: If the value has more than one element.
        """
        event = event_name(metrics_prefix, metric_name, mode)
        if np.shape(scalar_value) not in ((), (1,)):
            raise ValueError(
                f"metric {event!r} must be a scalar, found shape {np.shape(scalar_value)}; log its "
                "mean or its parts under different names"
            )
        self._history.setdefault(event, collections.deque(maxlen=HISTORY)).append(scalar_value)
        if self._writer is not None:
            self._writer.write(event, scalar_value, step)

    def metric_exists(self, metrics_prefix: str, metric_name: str, mode: Mode | str) -> bool:
        """Return whether a metric has been logged."""
        return event_name(metrics_prefix, metric_name, mode) in self._history

    def get_metric(self, metrics_prefix: str, metric_name: str, mode: Mode | str) -> float:
        """Return the last value of a metric.

        Raises:
            KeyError: If it has not been logged.
        """
        return float(np.asarray(self._values(metrics_prefix, metric_name, mode)[-1]).item())

    def get_metric_history(
        self, metrics_prefix: str, metric_name: str, mode: Mode | str
    ) -> np.ndarray:
        """Return the last :data:`HISTORY` values of a metric, oldest first.

        Raises:
            KeyError: If it has not been logged.
        """
        values = self._values(metrics_prefix, metric_name, mode)
        return np.array([float(np.asarray(value).item()) for value in values])

    def truncate_after(self, step: int) -> None:
        """Forget what was written for later steps: a resumed run will write it again."""
        if self._writer is not None:
            self._writer.truncate_after(step)

    def flush(self) -> None:
        """Return when everything logged has been written.

        Raises:
            MetricsBackendError: If a backend has failed.
        """
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write everything and close the backends.

        Raises:
            MetricsBackendError: If a backend has failed.
        """
        if self._writer is not None:
            self._finalizer.detach()
            self._writer.close()

    def _values(
        self, metrics_prefix: str, metric_name: str, mode: Mode | str
    ) -> collections.deque[Any]:
        event = event_name(metrics_prefix, metric_name, mode)
        if event not in self._history:
            hint = config_lib.did_you_mean(event, self._history)
            raise KeyError(f"no metric {event!r} has been logged{hint}")
        return self._history[event]


def event_name(metrics_prefix: str, metric_name: str, mode: Mode | str) -> str:
    """Return the full name of a metric: prefix, mode and name, joined by ``/``."""
    return "/".join(filter(None, (metrics_prefix, str(mode), metric_name)))


__getattr__ = reference_names.hints(__name__)
