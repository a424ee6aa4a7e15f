"""A window of steps recorded with the JAX profiler."""

import dataclasses
import logging
import os
from collections.abc import Iterator

import jax

from tunix.utils import config as config_lib

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfilerWindow(config_lib.Config):
    """Which steps are recorded, and how."""

    skip_first_n_steps: int = 1
    """Steps to leave out at the start of this process: they compile."""

    profiler_steps: int = 3
    """Number of steps to record."""

    set_profile_options: bool = True
    """Whether the two levels below are set; otherwise JAX's defaults hold."""

    host_tracer_level: int = 2
    """How much of the host is traced: 0 nothing to 3 everything."""

    python_tracer_level: int = 1
    """1 traces Python calls, 0 does not."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the window."""
        yield from super().problems()
        if self.skip_first_n_steps < 0:
            yield f"skip_first_n_steps must not be negative, got {self.skip_first_n_steps}"
        yield from config_lib.below_one(self, "profiler_steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfilerOptions(ProfilerWindow):
    """Which steps are recorded, how, and where the trace goes."""

    log_dir: str
    """Where the trace goes; open it with TensorBoard or XProf."""


class Profiler:
    """Starts and stops the trace at the right steps; does nothing without options.

    Args:
        initial_step: Steps that were taken before this process, on a resumed run.
        max_step: Last step of the run, or ``None``.
        profiler_options: The window, or ``None``.
    """

    def __init__(
        self, initial_step: int, max_step: int | None, profiler_options: ProfilerOptions | None
    ):
        self._options = profiler_options
        self._active = False
        if profiler_options is None:
            return
        self._first = initial_step + profiler_options.skip_first_n_steps
        self._last = self._first + profiler_options.profiler_steps
        if max_step is not None and self._last > max_step:
            _LOG.warning(
                "the profile is to cover steps %d to %d but the run ends at step %d",
                self._first + 1,
                self._last,
                max_step,
            )

    def maybe_activate(self, step: int) -> None:
        """Start the trace if ``step`` steps were taken and the window is open then."""
        if self._options is None or self._active or not self._first <= step < self._last:
            return
        options = None
        if self._options.set_profile_options:
            options = jax.profiler.ProfileOptions()
            options.host_tracer_level = self._options.host_tracer_level
            options.python_tracer_level = self._options.python_tracer_level
        jax.profiler.start_trace(
            os.path.expanduser(self._options.log_dir), profiler_options=options
        )
        self._active = True

    def closes_at(self, step: int) -> bool:
        """Return whether :meth:`maybe_deactivate` will stop the trace at ``step``."""
        return self._active and step >= self._last

    def maybe_deactivate(self, step: int) -> None:
        """Stop the trace if the window closes after ``step`` steps."""
        if self.closes_at(step):
            self.stop()

    def stop(self) -> None:
        """Stop the trace if it runs."""
        if self._active:
            jax.profiler.stop_trace()
            self._active = False
