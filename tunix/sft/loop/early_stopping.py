"""Ends a training whose evaluations no longer get better."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig(config_lib.Config):
    """Which metric must improve, and how long it may fail to."""

    patience: int
    """Evaluations without improvement after which training ends."""

    metric: str = "loss"
    """A metric of the evaluation."""

    mode: Literal["min", "max"] = "min"
    """Whether smaller or larger is better."""

    min_delta: float = 0.0
    """An improvement is more than this."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.patience < 1:
            yield f"patience must be at least 1, got {self.patience}"
        if self.mode not in ("min", "max"):
            yield f"mode must be 'min' or 'max', got {self.mode!r}"
        if not 0.0 <= self.min_delta < math.inf:
            yield f"min_delta must not be negative, got {self.min_delta}"


class EarlyStopping:
    """Counts evaluations since the best one; its state is part of a checkpoint."""

    def __init__(self, config: EarlyStoppingConfig):
        """Begin without any evaluation."""
        self._config = config
        self._best: float | None = None
        self._best_step = self._failures = 0

    @property
    def is_over(self) -> bool:
        """Whether training should end."""
        return self._failures >= self._config.patience

    def update(self, means: Mapping[str, float], step: int) -> None:
        """Take the result of the evaluation after ``step``. A value that is not finite is worse.

        Raises:
            KeyError: If the evaluation has no such metric; names those it has.
        """
        metric = self._config.metric
        if metric not in means:
            hint = config_lib.did_you_mean(metric, means)
            raise KeyError(
                f"early stopping watches {metric!r}{hint}; the evaluation has {sorted(means)}"
            )
        value = float(means[metric])
        sign = 1.0 if self._config.mode == "min" else -1.0
        is_first = self._best is None and math.isfinite(value)
        if is_first or (
            self._best is not None and sign * (self._best - value) > self._config.min_delta
        ):
            self._best, self._best_step, self._failures = value, step, 0
        else:
            self._failures += 1

    def reason(self) -> str:
        """Return why training ended."""
        c = self._config
        return (
            f"stopped early: {c.metric} of the evaluation did not improve {self._failures} times; "
            f"the best was {self._best} after step {self._best_step}"
        )

    def get_state(self) -> dict[str, Any]:
        """Return what ``set_state`` needs; JSON can hold it."""
        return {"best": self._best, "step": self._best_step, "failures": self._failures}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue where ``get_state`` was called."""
        self._best, self._best_step = state["best"], state["step"]
        self._failures = state["failures"]
