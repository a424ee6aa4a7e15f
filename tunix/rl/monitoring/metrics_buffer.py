"""Numbers that are collected during a step and logged at its end."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tunix.rl import roles
from tunix.sft import metrics_logger as metrics_logger_lib


class MetricsBuffer:
    """Collects values by mode and name until they are logged.

    Args:
        logger: Where they go.
        prefix: What their names start with.
    """

    def __init__(self, logger: metrics_logger_lib.MetricsLogger, prefix: str):
        self._logger, self._prefix = logger, prefix
        self._values: dict[roles.Mode, dict[str, tuple[list[Any], Callable]]] = {
            mode: {} for mode in roles.Mode
        }

    def add(self, metrics: Mapping[str, tuple[Any, Callable] | float], mode: roles.Mode) -> None:
        """Collect numbers, or ``(value, reduce)`` with a function of all values of a step."""
        for name, value in metrics.items():
            value, reduce = value if isinstance(value, tuple) else (value, np.mean)
            self._values[mode].setdefault(name, ([], reduce))[0].append(value)

    def log(self, mode: roles.Mode, step: int) -> dict[str, float]:
        """Log what was collected, forget it, and return it by name."""
        logged = {
            name: float(reduce(np.asarray(values)))
            for name, (values, reduce) in self._values[mode].items()
        }
        for name, value in logged.items():
            self._logger.log(self._prefix, name, value, mode.value, step)
        self._values[mode] = {}
        return logged
