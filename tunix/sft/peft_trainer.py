"""The trainer that every objective shares: full or LoRA, one exact optimizer step at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import optax
from flax import nnx

from tunix.models.transformer import decoder as decoder_lib
from tunix.perf import span
from tunix.sft import hooks, losses, memory_estimate, training_config, training_input
from tunix.sft import loss_output as loss_output_lib
from tunix.sft import metrics_logger as metrics_logger_lib
from tunix.sft.checkpoints import resume
from tunix.sft.loop import (
    batch_steps,
    early_stopping,
    evaluation,
    nonfinite,
    step_handle,
    stepper,
    train_data,
    train_state,
    train_step,
    training_loop,
)
from tunix.sft.metrics import system_metrics
from tunix.utils import calls, compile_cache

TrainingConfig = training_config.TrainingConfig
TrainingInput = training_input.TrainingInput
MetricsLogger = metrics_logger_lib.MetricsLogger
MetricsLoggerOptions = metrics_logger_lib.MetricsLoggerOptions


class PeftTrainer:
    """Trains a model: its LoRA adapters if it has any, all its parameters otherwise.

    The trainer owns the trained arrays. Each step gives new ones to the model and frees the old,
    so read them from the model when they are needed and keep copies, not references.

    If the configured directory holds a checkpoint, the trainer starts from the latest one.

    Args:
        model: A :class:`~tunix.models.transformer.decoder.Decoder` or any ``nnx.Module``.
        optimizer: Gets the gradient of the mean loss of each optimizer step.
        training_config: Settings of the loop.
        metrics_logger: Where metrics go; by default made from the config.
        perf_tracer: Adds up where the time goes.

    Raises:
        CheckpointDamagedError: If the latest checkpoint, or all of them, cannot be read.
        CheckpointMismatchError: If the latest checkpoint does not fit model and optimizer.
        CheckpointWriteError: If the checkpoint directory cannot be written.
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: TrainingConfig,
        metrics_logger: MetricsLogger | None = None,
        perf_tracer: span.SpanTimer | None = None,
    ):
        compile_cache.enable()
        self.config = training_config
        self.training_hooks: hooks.TrainingHooks | None = None
        self.data_hooks: hooks.DataHooks | None = None
        self.eval_metrics: evaluation.EvalMetricsFn | None = None
        self.perf_tracer = perf_tracer or span.SpanTimer()
        self.checkpoint_manager = resume.open_checkpoints(training_config)
        self.metrics_logger = metrics_logger or MetricsLogger(
            training_config.metrics_logging_options
        )
        self._gen_model_input_fn: Callable[[Any], Mapping[str, Any]] | None = None
        self._reread_model = False
        self._stepper = stepper.Stepper(
            model,
            optimizer,
            losses.next_token_loss,
            max_inflight=training_config.max_inflight_computations,
            data_sharding_axis=training_config.data_sharding_axis,
            dump_directory=nonfinite.dump_directory(training_config),
            accumulates=self.accumulates,
        )
        self._train_steps = self._iter_steps = 0
        stopping = training_config.early_stopping
        self.stopping = None if stopping is None else early_stopping.EarlyStopping(stopping)
        self._restored: resume.Position | None = None
        self._data_behind: resume.Position | None = None
        self._is_log_cut = False
        self._restore_latest()

    def with_loss_fn(self, loss_fn: train_step.LossFn, has_aux: bool = False) -> Self:
        """Set the loss: ``loss_fn(model, **model_input)``.

        Args:
            loss_fn: Returns a :class:`~tunix.sft.loss_output.LossOutput` of sums and weights, or a
                scalar, which counts as one unit of weight.
            has_aux: Whether it returns ``(scalar, aux)``, where ``aux`` maps metric names to
                scalars or ``(sum, weight)`` pairs.
        """
        if not callable(loss_fn):
            calls.require("loss function", loss_fn, ["model"])
        self._stepper.set_loss(loss_fn, has_aux=has_aux)
        return self

    def with_gen_model_input_fn(self, gen_model_input_fn: Callable[[Any], Any]) -> Self:
        """Set what turns a batch into the loss function's keyword arguments."""
        calls.require("gen_model_input_fn", gen_model_input_fn, ["batch"])
        self._gen_model_input_fn = gen_model_input_fn
        return self

    def with_training_hooks(self, training_hooks: hooks.TrainingHooks | None) -> Self:
        """Set the hooks that are called during training."""
        if training_hooks is not None:
            calls.require_methods("training hooks", training_hooks, hooks.TrainingHooks)
        self.training_hooks = training_hooks
        return self

    def with_data_hooks(self, data_hooks: hooks.DataHooks | None) -> Self:
        """Set the hooks that supply batches."""
        if data_hooks is not None:
            calls.require_methods("data hooks", data_hooks, hooks.DataHooks)
        self.data_hooks = data_hooks
        return self

    def with_eval_metrics(self, eval_metrics: evaluation.EvalMetricsFn | None) -> Self:
        """Set what every evaluation measures besides the loss; ``None`` measures nothing else.

        Args:
            eval_metrics: Called with the trainer, returns values by name. They are logged and
                returned with the others, and can decide early stopping and the best checkpoint.
        """
        if eval_metrics is not None:
            calls.require("eval_metrics", eval_metrics, ["trainer"])
        self.eval_metrics = eval_metrics
        return self

    def clear_jit_cache(self) -> None:
        """Have the step functions traced again before the next step."""
        self._stepper.clear_jit_cache()

    def train(
        self,
        train_ds: Iterable[Any],
        eval_ds: Iterable[Any] | None = None,
        skip_jit: bool = False,
        *,
        cache_nnx_graph: bool = True,
    ) -> None:
        """Train until ``max_steps`` or the end of the data.

        Continues where the restored checkpoint was saved: ``train_ds`` must be the same data, from
        its start. If the data ends within an accumulation, the last step is made of what
        is left.

        Args:
            train_ds: Batches.
            eval_ds: Batches read in full every ``eval_every_n_steps`` steps.
            skip_jit: Run every operation on its own, to debug a loss function.
            cache_nnx_graph: False reads the model again before every step, so that changes that
                hooks make to it count, at the cost of a copy of its parameters.

        Raises:
            TrainingInterrupted: After SIGINT, when the step was finished and saved.
            DivergedError: If weights, or the losses at the end, are not finite.
            ValueError: If there is something to measure at evaluations, and no ``eval_ds``.
        """
        self._stepper.set_jit(not skip_jit)
        self._reread_model = not cache_nnx_graph
        if eval_ds is None and self.eval_metrics is not None:
            raise ValueError(
                "with_eval_metrics measures at evaluations, and train got no eval_ds; pass one, "
                "or call with_eval_metrics(None)"
            )
        steps = batch_steps.BatchSteps(self, train_ds, eval_ds)
        training_loop.TrainingLoop(self, steps).run()

    @property
    def accumulates(self) -> bool:
        """Whether steps may have another number of micro-batches than one."""
        return (self.config.gradient_accumulation_steps or 1) > 1

    def step_on(
        self, micro_batches: Sequence[Mapping[str, Any]], *, weight: float = 0.0
    ) -> step_handle.StepHandle:
        """Take one optimizer step and return without waiting for it.

        Sums of losses, weights and gradients are added over the micro-batches and divided once,
        so the step does not depend on how its examples are split.

        Args:
            micro_batches: The loss function's keyword arguments, one mapping per micro-batch.
                Without any the model is not computed; without weight either, nothing is learned.
            weight: Weight of examples known to have neither loss nor gradient, beside those of
                the micro-batches.
        """
        if self._reread_model:
            self._stepper.read_model()
        metrics = self._stepper.step(self._train_steps + 1, micro_batches, weight)
        self._train_steps += 1
        self._iter_steps += len(micro_batches)
        counts = [system_metrics.count_tokens(batch) for batch in micro_batches]
        return step_handle.StepHandle(
            self._train_steps,
            metrics,
            tokens=sum(tokens for tokens, _ in counts),
            row_length=max((length for _, length in counts), default=0),
        )

    def evaluate(self, eval_ds: Iterable[Any]) -> dict[str, float]:
        """Return the mean loss and metrics of a data set, see :mod:`tunix.sft.loop.evaluation`."""
        return evaluation.evaluate(self, eval_ds)

    def eval_output(self, batch: Any) -> loss_output_lib.LossOutput:
        """Return the sums of one batch in evaluation mode, on the device."""
        return self._stepper.evaluate(self.model_input(batch))

    def model_input(self, batch: Any) -> dict[str, Any]:
        """Return the loss function's keyword arguments for a batch."""
        if self._gen_model_input_fn is not None:
            return training_input.named_inputs(self._gen_model_input_fn(batch))
        inputs = training_input.default_model_input(batch)
        mask = inputs.get("input_mask")
        is_open = "loss_positions" not in inputs and self._slices_positions()
        if is_open and isinstance(mask, np.ndarray):
            inputs |= training_input.loss_positions(mask)
        return inputs

    def memory_estimate(self, rows: int, row_length: int) -> memory_estimate.MemoryEstimate:
        """Return what steps on batches of ``rows`` x ``row_length`` tokens will take, in bytes."""
        model, state = self.model, self.state
        return memory_estimate.estimate(
            state.params,
            self._stepper.frozen,
            state.opt_state,
            model.config if isinstance(model, decoder_lib.Decoder) else None,
            rows=rows,
            length=row_length,
        )

    def save_checkpoint(
        self,
        *,
        data_state: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Start to save the run and return whether this step is saved.

        Args:
            data_state: Position in the data, see ``TrainData.state``.
            metrics: The evaluation after this step, by which the best checkpoint is known.
            force: Save even where the options would not.

        Raises:
            DivergedError: If the weights are not finite; they are not saved.
        """
        self._stepper.report_skipped()
        self._stepper.require_finite(self._train_steps)
        position = resume.Position(
            iter_steps=self._iter_steps,
            data_state=data_state or {},
            custom=self.custom_checkpoint_metadata(),
            stopping=None if self.stopping is None else self.stopping.get_state(),
            skipped_last=self._stepper.watch.skipped_last,
        )
        return resume.save(
            self.checkpoint_manager,
            self.state,
            self._train_steps,
            position,
            metrics=metrics,
            force=force,
        )

    def custom_checkpoint_metadata(self) -> dict[str, Any]:
        """Return what else a checkpoint should hold; override it. JSON must be able to hold it."""
        return {}

    def require_learned(self) -> None:
        """Wait for all steps in flight, and raise if the training came to numbers that are none.

        Raises:
            DivergedError: If the weights are not finite, or the losses at the end were not.
        """
        self._stepper.require_learned(self._train_steps)

    def wait(self) -> None:
        """Wait for all steps in flight and report those that were skipped."""
        self._stepper.wait()

    def replace_state(self, state: train_state.TrainState) -> None:
        """Continue, evaluate or export with other arrays of the same shapes."""
        self._stepper.replace_state(state)

    def sync_model(self) -> nnx.Module:
        """Let the model hold the current arrays, and return it; every step does so already."""
        self._stepper.write_back()
        return self._stepper.model

    def close(self) -> None:
        """Finish all writing. The trainer cannot be used afterwards."""
        self.wait()
        self.checkpoint_manager.close()
        self.metrics_logger.close()

    @property
    def model(self) -> nnx.Module:
        """The model, with the parameters of the last step."""
        return self._stepper.model

    @property
    def state(self) -> train_state.TrainState:
        """Everything a step changes; the arrays are donated to the next step."""
        return self._stepper.state

    @property
    def train_steps(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        return self._train_steps

    @property
    def iter_steps(self) -> int:
        """Batches consumed, those before a resume included."""
        return self._iter_steps

    @property
    def restored_metadata(self) -> Mapping[str, Any] | None:
        """What :meth:`custom_checkpoint_metadata` returned when the checkpoint was saved.

        ``None`` if this run did not start from a checkpoint.
        """
        return None if self._restored is None else self._restored.custom

    @property
    def is_resuming(self) -> bool:
        """Whether the next training goes on where a restored one stood in its data."""
        return self._data_behind is not None

    def resume_data(self, data: train_data.TrainData) -> None:
        """Move the data to where the restored checkpoint was saved, and cut the log there.

        Only the first training after a restore does so; the next one starts its data anew.
        """
        if self.config.checkpoint_root_directory is not None and not self._is_log_cut:
            self.metrics_logger.truncate_after(self._train_steps)
            self._is_log_cut = True
        if self._data_behind is not None and self.data_hooks is None:
            data.resume(self._data_behind.data_state, self._data_behind.iter_steps)
        self._data_behind = None

    def _restore_latest(self) -> None:
        found = resume.restore_latest(self.checkpoint_manager, self.state)
        if found is None:
            return
        state, self._train_steps, self._restored = found
        self._stepper.replace_state(state)
        self._iter_steps = self._restored.iter_steps
        self._stepper.watch.skipped_last = self._restored.skipped_last
        if self.stopping is not None and self._restored.stopping is not None:
            self.stopping.set_state(self._restored.stopping)
        self._data_behind = self._restored

    def _slices_positions(self) -> bool:
        """Return whether the head can be computed at the positions with loss only."""
        return (
            isinstance(self._stepper.loss_fn, losses.NextTokenLoss)
            and isinstance(self.model, decoder_lib.Decoder)
            # On a mesh the rows are split over devices, and a flat index would gather them.
            and self._stepper.mesh is None
        )
