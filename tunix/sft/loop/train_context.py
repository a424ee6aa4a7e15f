"""A trainer as the loop, hooks and evaluations see it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flax import nnx

from tunix.perf import span
from tunix.sft import checkpoint_manager, loss_output, metrics_logger, training_config
from tunix.sft.loop import early_stopping


class TrainContext(Protocol):
    """What :class:`~tunix.sft.peft_trainer.PeftTrainer` shows of itself."""

    checkpoint_manager: checkpoint_manager.CheckpointManager
    metrics_logger: metrics_logger.MetricsLogger
    perf_tracer: span.SpanTimer
    stopping: early_stopping.EarlyStopping | None
    eval_metrics: Callable[[Any], Mapping[str, float]] | None

    @property
    def config(self) -> training_config.TrainingConfig:
        """Settings."""
        ...

    @property
    def training_hooks(self) -> Any:
        """Called during training; a ``TrainingHooks``, or ``None``."""
        ...

    @property
    def data_hooks(self) -> Any:
        """Supplies batches; a ``DataHooks``, or ``None``."""
        ...

    @property
    def model(self) -> nnx.Module:
        """The model, with the parameters of the last step."""
        ...

    @property
    def train_steps(self) -> int:
        """Optimizer steps taken, those before a resume included."""
        ...

    @property
    def iter_steps(self) -> int:
        """Batches consumed, those before a resume included."""
        ...

    def eval_output(self, batch: Any) -> loss_output.LossOutput:
        """Return the sums of one batch in evaluation mode, on the device."""
        ...

    def wait(self) -> None:
        """Wait for all steps in flight and report those that were skipped."""
        ...
