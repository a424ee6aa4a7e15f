"""The loop that every trainer shares: interrupts, hooks, evaluations, checkpoints, profiling.

What a step is made of is given to it: batches of examples, or rollouts.
"""

import abc
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import jax

from tunix.sft import profiler
from tunix.sft.loop import interrupt, train_context

_LOG = logging.getLogger(__name__)

DrawnT = TypeVar("DrawnT")


class Steps(abc.ABC, Generic[DrawnT]):
    """What the steps of a training are made of.

    Steps are counted in optimizer steps; one that is taken here may be several of them.
    """

    has_eval: bool
    """Whether there is something to evaluate on."""

    @abc.abstractmethod
    def resume(self) -> None:
        """Go to where the restored checkpoint was saved, in the data and in the logs."""

    @abc.abstractmethod
    def running(self) -> contextlib.AbstractContextManager[None]:
        """Take steps in the body only."""

    @abc.abstractmethod
    def draw(self) -> DrawnT | None:
        """Return what the next step is made of, or ``None`` at the end of the data."""

    @abc.abstractmethod
    def take(self, drawn: DrawnT) -> Any:
        """Train on what was drawn, and return the loss, which may still be on the device."""

    def record(self) -> None:
        """Log the step that was taken, after hooks have seen it."""

    def drain(self) -> None:
        """Wait until all steps are logged."""

    @abc.abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Measure and log how good the model is, and return it."""

    @abc.abstractmethod
    def save(self, metrics: Mapping[str, float] | None, *, force: bool) -> None:
        """Start to save what is trained, and where the data stands behind the last step.

        Args:
            metrics: The evaluation after this step, if there was one.
            force: Save even where the options would not.
        """

    def finish(self) -> None:
        """Take note that no further step will follow."""

    @abc.abstractmethod
    def require_learned(self) -> None:
        """Raise ``DivergedError`` if the training came to numbers that are none."""


class TrainingLoop(Generic[DrawnT]):
    """One training: steps until ``max_steps``, the end of the data, or an interrupt.

    Args:
        trainer: Counts the steps, and has hooks, checkpoints and settings.
        steps: What they are made of.
    """

    def __init__(self, trainer: train_context.TrainContext, steps: Steps[DrawnT]):
        self._trainer, self._steps, self._config = trainer, steps, trainer.config
        self._evaluated: tuple[int, Mapping[str, float]] | None = None
        self._profiler = profiler.Profiler(
            trainer.train_steps, self._config.max_steps, self._config.profiler_options
        )

    def run(self) -> None:
        """Train.

        Raises:
            TrainingInterrupted: After a signal, when the step was finished and saved.
            ValueError: If the data has nothing for a step.
        """
        trainer, hooks = self._trainer, self._trainer.training_hooks
        self._steps.resume()
        if hooks is not None:
            hooks.on_train_start(trainer)
        try:
            with interrupt.graceful_interrupt() as stop, self._steps.running():
                while not stop.requested and not self._is_complete() and self._step():
                    pass
                if not stop.requested:
                    self._steps.drain()
                    self._steps.require_learned()
                    if trainer.train_steps == 0:
                        raise ValueError("train_ds has no batch; pass a non-empty data set")
                self._save_last()
        finally:
            self._profiler.stop()
        if stop.requested:
            raise interrupt.TrainingInterrupted(
                trainer.train_steps, self._config.checkpoint_root_directory, stop.signum
            )
        if hooks is not None:
            hooks.on_train_end(trainer)

    def _is_complete(self) -> bool:
        max_steps, stopping = self._config.max_steps, self._trainer.stopping
        if stopping is not None and stopping.is_over:
            _LOG.info(stopping.reason())
            return True
        return max_steps is not None and self._trainer.train_steps >= max_steps

    def _step(self) -> bool:
        """Take a step; return False if there is no data for one."""
        first_step = self._trainer.train_steps
        self._profiler.maybe_activate(first_step)
        try:
            drawn = self._steps.draw()
            if drawn is None:
                return False
            self._take(drawn)
        except Exception:
            # Data, prompts and rewards are the user's: what was learned before must not be lost.
            if self._trainer.train_steps == first_step:
                self._save_last()
            raise
        self._steps.record()
        self._after_step(first_step)
        return True

    def _take(self, drawn: DrawnT) -> None:
        trainer, hooks = self._trainer, self._trainer.training_hooks
        started = time.perf_counter()
        if hooks is not None:
            hooks.on_train_step_start(trainer)
        with jax.profiler.StepTraceAnnotation("train", step_num=trainer.train_steps):
            loss = self._steps.take(drawn)
        if hooks is not None:
            seconds = time.perf_counter() - started
            hooks.on_train_step_end(trainer, trainer.train_steps, loss, seconds)

    def _after_step(self, first_step: int) -> None:
        """Do what is due: evaluation first, so that a checkpoint implies its log."""
        trainer, every = self._trainer, self._config.eval_every_n_steps
        step = trainer.train_steps
        if self._profiler.closes_at(step):
            trainer.wait()
            self._profiler.maybe_deactivate(step)
        if self._steps.has_eval and step // every > first_step // every:
            self._steps.drain()
            self._evaluated = step, self._steps.evaluate()
            if trainer.stopping is not None:
                trainer.stopping.update(self._evaluated[1], step)
        if trainer.checkpoint_manager.should_save(step):
            self._save(force=False)

    def _save(self, *, force: bool) -> None:
        """Save, once everything up to here is in the log: what a checkpoint covers is not lost."""
        trainer = self._trainer
        self._steps.drain()
        trainer.metrics_logger.flush()
        with trainer.perf_tracer.span("checkpoint"):
            evaluated, metrics = self._evaluated or (None, None)
            is_current = evaluated == trainer.train_steps
            self._steps.save(metrics if is_current else None, force=force)

    def _save_last(self) -> None:
        """Log and save the last complete step, unless that is done or there is none."""
        steps, manager = self._trainer.train_steps, self._trainer.checkpoint_manager
        self._steps.finish()
        self._steps.drain()
        self._trainer.wait()
        self._trainer.metrics_logger.flush()
        if manager.is_enabled and steps > 0 and manager.latest_step() != steps:
            self._save(force=True)
        manager.wait_until_finished()
