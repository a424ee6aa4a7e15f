"""The loop around the training step: data, hooks, logging, evaluation, checkpoints, profiling."""

import logging
import operator
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax

from tunix.sft import (
    evaluation,
    interrupt,
    profiler,
    progress_bar,
    step_recorder,
    system_metrics,
    train_data,
)

if TYPE_CHECKING:
    from tunix.sft import peft_trainer

_LOG = logging.getLogger(__name__)


class TrainingLoop:
    """One call of ``PeftTrainer.train``."""

    def __init__(
        self,
        trainer: "peft_trainer.PeftTrainer",
        train_ds: Iterable[Any],
        eval_ds: Iterable[Any] | None,
    ):
        config = trainer.config
        self._trainer, self._config = trainer, config
        self._batches_per_step = config.gradient_accumulation_steps or 1
        self._data = train_data.TrainData(train_ds)
        self._eval = None if eval_ds is None else evaluation.EvalData(eval_ds)
        self._evaluated: tuple[int, Mapping[str, float]] | None = None
        self._first_step = trainer.train_steps
        self._profiler = profiler.Profiler(
            self._first_step, config.max_steps, config.profiler_options
        )
        self._progress = self._progress_bar(train_ds)
        self._system = system_metrics.SystemMetrics(trainer.model, trainer.perf_tracer)
        self._recorder = step_recorder.StepRecorder(
            trainer.metrics_logger,
            config.metrics_prefix,
            self._progress,
            self._system,
            lag=config.max_inflight_computations - 1,
        )

    def run(self) -> None:
        """Train until ``max_steps``, the end of the data, or an interrupt."""
        trainer = self._trainer
        trainer.resume_data(self._data)
        if trainer.training_hooks is not None:
            trainer.training_hooks.on_train_start(trainer)
        try:
            with interrupt.graceful_interrupt() as stop, self._system:
                self._recorder.restart_clock()
                while not stop.requested and not self._is_complete() and self._step():
                    pass
                if not stop.requested:
                    self._recorder.drain()
                    trainer.require_learned()
                    if trainer.train_steps == 0:
                        raise ValueError("train_ds has no batch; pass a non-empty data set")
                self._save_last(self._data.state())
        finally:
            self._profiler.stop()
            if self._progress is not None:
                self._progress.close()
        if stop.requested:
            raise interrupt.TrainingInterrupted(
                trainer.train_steps, self._config.checkpoint_root_directory, stop.signum
            )
        if trainer.training_hooks is not None:
            trainer.training_hooks.on_train_end(trainer)

    def _is_complete(self) -> bool:
        max_steps, stopping = self._config.max_steps, self._trainer.stopping
        if stopping is not None and stopping.is_over:
            _LOG.info(stopping.reason())
            return True
        return max_steps is not None and self._trainer.train_steps >= max_steps

    def _step(self) -> bool:
        """Take one optimizer step; return False if there is no data for one."""
        trainer = self._trainer
        with trainer.perf_tracer.span("data"):
            batches = self._draw()
        if not batches:
            return False
        hooks = trainer.training_hooks
        self._profiler.maybe_activate(trainer.train_steps)
        started = time.perf_counter()
        if hooks is not None:
            hooks.on_train_step_start(trainer)
        with (
            trainer.perf_tracer.span("step"),
            jax.profiler.StepTraceAnnotation("train", step_num=trainer.train_steps),
        ):
            handle = trainer.step_on([trainer.model_input(batch) for batch in batches])
        if hooks is not None:
            loss: Any = handle.metrics["loss"]
            hooks.on_train_step_end(trainer, handle.step, loss, time.perf_counter() - started)
        self._recorder.add(handle)
        self._after_step(handle.step)
        return True

    def _draw(self) -> list[Any]:
        """Return the batches of one step; if the data fails, save what was learned before."""
        position = self._data.state()
        try:
            return self._next_batches()
        except Exception:
            self._save_last(position)
            raise

    def _next_batches(self) -> list[Any]:
        """Return the batches of one step; fewer than usual at the end of the data."""
        hooks = self._trainer.data_hooks
        if hooks is None:
            return self._data.take(self._batches_per_step)
        batches = []
        while len(batches) < self._batches_per_step:
            batch = hooks.load_next_train_batch(self._trainer)
            if batch is None:
                break
            batches.append(batch)
        return batches

    def _after_step(self, step: int) -> None:
        """Do what is due after ``step``: evaluation first, so that a checkpoint implies its log."""
        trainer = self._trainer
        if self._profiler.closes_at(step):
            trainer.wait()
            self._profiler.maybe_deactivate(step)
        if self._eval is not None and step % self._config.eval_every_n_steps == 0:
            self._recorder.drain()
            with trainer.perf_tracer.span("eval"):
                self._evaluated = step, evaluation.evaluate(trainer, self._eval)
            self._recorder.log_eval(self._evaluated[1], step)
            if trainer.stopping is not None:
                trainer.stopping.update(self._evaluated[1], step)
            self._recorder.restart_clock()
        if trainer.checkpoint_manager.should_save(step):
            self._save(self._data.state(), force=False)
            self._recorder.restart_clock()

    def _save(self, data_state: Mapping[str, Any], *, force: bool) -> None:
        """Save, once everything up to here is in the log: what a checkpoint covers is not lost."""
        trainer = self._trainer
        self._recorder.drain()
        trainer.metrics_logger.flush()
        with trainer.perf_tracer.span("checkpoint"):
            evaluated, metrics = self._evaluated or (None, None)
            is_current = evaluated == trainer.train_steps
            trainer.save_checkpoint(
                data_state=data_state, metrics=metrics if is_current else None, force=force
            )

    def _save_last(self, data_state: Mapping[str, Any]) -> None:
        """Log and save the last step, unless that is done or there is none."""
        steps, manager = self._trainer.train_steps, self._trainer.checkpoint_manager
        self._recorder.drain()
        self._trainer.wait()
        self._trainer.metrics_logger.flush()
        if manager.is_enabled and steps > 0 and manager.latest_step() != steps:
            self._save(data_state, force=True)
        manager.wait_until_finished()

    def _progress_bar(self, train_ds: Iterable[Any]) -> progress_bar.ProgressBar | None:
        if self._config.pbar_description is None:
            return None
        total = self._config.max_steps
        if batches := operator.length_hint(train_ds):
            of_data = -(-batches // self._batches_per_step)
            of_data += 0 if self._trainer.is_resuming else self._first_step
            total = of_data if total is None else min(total, of_data)
        return progress_bar.ProgressBar(
            self._config.metrics_prefix,
            self._trainer.metrics_logger,
            self._first_step,
            total,
            self._config.pbar_description,
        )
