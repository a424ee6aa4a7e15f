"""Settings of the training loop."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunix.sft import metrics_logger, profiler
from tunix.sft.checkpoints import checkpoint_recovery
from tunix.sft.loop import early_stopping as early_stopping_lib
from tunix.utils import config as config_lib

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(config_lib.Config):
    """How long to train, and how often to evaluate."""

    max_steps: int | None = None
    """Optimizer steps of the whole run, resumed parts included; until the data ends when unset."""

    eval_every_n_steps: int = 100
    """Optimizer steps between evaluations."""

    data_sharding_axis: tuple[str, ...] = ("fsdp",)
    """Mesh axes that the rows of a batch are split over, if the model lives on a mesh."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config_lib.below_one(self, "max_steps", "eval_every_n_steps")
        if isinstance(self.data_sharding_axis, str):
            yield (
                "data_sharding_axis must be a tuple of mesh axes, got the string "
                f"{self.data_sharding_axis!r}; write ({self.data_sharding_axis!r},)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchesConfig(config_lib.Config):
    """What becomes of the batches of a data set."""

    gradient_accumulation_steps: int | None = None
    """Batches per optimizer step, 1 when unset. Their sums are added and divided once."""

    max_inflight_computations: int = 2
    """Steps dispatched and not yet finished; 1 waits for each step."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        names = ("gradient_accumulation_steps", "max_inflight_computations")
        yield from config_lib.below_one(self, *names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppingConfig(config_lib.Config):
    """What ends training before its last step."""

    early_stopping: early_stopping_lib.EarlyStoppingConfig | None = None
    """Ends training when evaluations no longer get better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeConfig(config_lib.Config):
    """How a run that was stopped goes on."""

    resume: checkpoint_recovery.Resume = "latest"
    """What an existing run continues from: ``latest`` stops if the latest checkpoint is damaged,
    ``newest-sound`` moves it to ``checkpoints.damaged`` and continues from the newest sound one."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        yield from config_lib.choice_problems(self, {"resume": checkpoint_recovery.CHOICES})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(LoopConfig, BatchesConfig, StoppingConfig, ResumeConfig):
    """How long to train, and when to evaluate, save and report."""

    checkpoint_root_directory: str | None = None
    """Where checkpoints go and are resumed from; ``None`` saves nothing."""
    checkpointing_options: "ocp.CheckpointManagerOptions | None" = None
    """How often to save and how many to keep; every three minutes and three by default."""
    metrics_logging_options: metrics_logger.MetricsLoggerOptions | None = None
    """Where metrics go; ``None`` keeps recent ones in memory only."""
    profiler_options: profiler.ProfilerOptions | None = None
    """Which steps are profiled; ``None`` for none."""
    metrics_prefix: str = ""
    """First part of the name of every metric."""
    pbar_description: str | None = "Training"
    """Text in front of the progress display; ``None`` shows none."""

    def get_with_default(self, key: str, default: Any) -> Any:
        """Return the field ``key``, or ``default`` where it is ``None``."""
        value = getattr(self, key)
        return default if value is None else value
