"""Steps on batches of examples: what supervised and preference training give the loop."""

import contextlib
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from tunix.sft import progress_bar
from tunix.sft.loop import (
    evaluation,
    step_handle,
    step_recorder,
    train_context,
    train_data,
    training_loop,
)
from tunix.sft.metrics import system_metrics


class Trainer(train_context.TrainContext, Protocol):
    """What trains on batches."""

    @property
    def is_resuming(self) -> bool:
        """Whether the training goes on where a restored one stood in its data."""
        ...

    def resume_data(self, data: train_data.TrainData) -> None:
        """Move the data to where the restored checkpoint was saved, and cut the log there."""
        ...

    def model_input(self, batch: Any) -> dict[str, Any]:
        """Return the loss function's keyword arguments for a batch."""
        ...

    def step_on(self, micro_batches: Sequence[Mapping[str, Any]]) -> step_handle.StepHandle:
        """Take one optimizer step and return without waiting for it."""
        ...

    def save_checkpoint(
        self,
        *,
        data_state: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Start to save the run."""
        ...

    def require_learned(self) -> None:
        """Wait for all steps, and raise if the training came to numbers that are none."""
        ...


class BatchSteps(training_loop.Steps[list[Any]]):
    """Draws batches and trains on them.

    Args:
        trainer: Takes the steps.
        train_ds: Batches.
        eval_ds: Batches that are evaluated, if any.
    """

    _recorder: step_recorder.StepRecorder

    def __init__(self, trainer: Trainer, train_ds: Iterable[Any], eval_ds: Iterable[Any] | None):
        self._trainer = trainer
        self._batches_per_step = trainer.config.gradient_accumulation_steps or 1
        self._total = self._expected_steps(operator.length_hint(train_ds))
        self._data = train_data.TrainData(train_ds)
        self._eval = None if eval_ds is None else evaluation.EvalData(eval_ds)
        self.has_eval = eval_ds is not None
        self._undone: Mapping[str, Any] | None = None
        """Where the data stood before a step that is drawn and not taken."""
        self._handle: step_handle.StepHandle | None = None

    def resume(self) -> None:
        """Go to where the restored checkpoint was saved."""
        self._trainer.resume_data(self._data)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Record, measure and show the steps of the body."""
        trainer, config = self._trainer, self._trainer.config
        logger, done = trainer.metrics_logger, trainer.train_steps
        system = system_metrics.SystemMetrics(trainer.model, trainer.perf_tracer)
        with progress_bar.shown(config, logger, done, self._total) as progress, system:
            self._recorder = step_recorder.StepRecorder(
                logger,
                config.metrics_prefix,
                progress,
                system,
                lag=config.max_inflight_computations - 1,
            )
            if self._eval is not None:
                evaluation.compile_ahead(trainer, self._eval)
            self._recorder.restart_clock()
            yield

    def draw(self) -> list[Any] | None:
        """Return the batches of one step; fewer than usual at the end of the data."""
        self._undone = self._data.state()
        with self._trainer.perf_tracer.span("data"):
            batches = self._next_batches()
        if not batches:
            self._undone = None
        return batches or None

    def take(self, drawn: list[Any]) -> Any:
        """Take one optimizer step."""
        with self._trainer.perf_tracer.span("step"):
            inputs = [self._trainer.model_input(batch) for batch in drawn]
            self._handle = self._trainer.step_on(inputs)
        self._undone = None
        return self._handle.metrics["loss"]

    def record(self) -> None:
        """Hand the step on to be logged when its metrics are there."""
        assert self._handle is not None  # a step was taken
        self._recorder.add(self._handle)

    def drain(self) -> None:
        """Wait for all steps and log them."""
        self._recorder.drain()

    def evaluate(self) -> Mapping[str, float]:
        """Return the mean loss and metrics of the evaluation set."""
        assert self._eval is not None  # has_eval
        with self._trainer.perf_tracer.span("eval"):
            found = evaluation.evaluate(self._trainer, self._eval)
        self._recorder.log_eval(found, self._trainer.train_steps)
        self._recorder.restart_clock()
        return found

    def save(self, metrics: Mapping[str, float] | None, *, force: bool) -> None:
        """Save, with the position behind the last step that was taken."""
        position = self._data.state() if self._undone is None else self._undone
        self._trainer.save_checkpoint(data_state=position, metrics=metrics, force=force)
        self._recorder.restart_clock()

    def require_learned(self) -> None:
        """Raise ``DivergedError`` if the training came to numbers that are none."""
        self._trainer.require_learned()

    def _next_batches(self) -> list[Any]:
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

    def _expected_steps(self, num_batches: int) -> int | None:
        """Return how many steps there will be in all, if that is known."""
        total = self._trainer.config.max_steps
        if num_batches:
            of_data = -(-num_batches // self._batches_per_step)
            of_data += 0 if self._trainer.is_resuming else self._trainer.train_steps
            total = of_data if total is None else min(total, of_data)
        return total
