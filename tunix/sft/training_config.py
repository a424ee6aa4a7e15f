"""Settings of the training loop."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tunix.sft import checkpoint_recovery, metrics_logger, profiler
from tunix.sft import early_stopping as early_stopping_lib
from tunix.utils import config as config_lib

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(config_lib.Config):
    """How long to train, and when to evaluate, save and report."""

    eval_every_n_steps: int
    """After how many optimizer steps the evaluation set is read."""
    early_stopping: early_stopping_lib.EarlyStoppingConfig | None = None
    """Whether training ends when evaluations no longer get better."""
    max_steps: int | None = None
    """Optimizer steps of the whole run, resumed parts included; ``None``: until the data ends."""
    gradient_accumulation_steps: int | None = None
    """Batches per optimizer step; ``None`` is 1. Their sums are added and divided once."""
    checkpoint_root_directory: str | None = None
    """Where checkpoints go and are resumed from; ``None`` saves nothing."""
    checkpointing_options: "ocp.CheckpointManagerOptions | None" = None
    """How often to save and how many to keep; every three minutes and three by default."""
    resume: checkpoint_recovery.Resume = "latest"
    """``latest`` stops if the latest checkpoint is damaged; ``newest-sound`` then sets it aside
    and continues from the newest sound one before it."""
    metrics_logging_options: metrics_logger.MetricsLoggerOptions | None = None
    """Where metrics go; ``None`` keeps recent ones in memory only."""
    profiler_options: profiler.ProfilerOptions | None = None
    """Which steps are profiled; ``None`` for none."""
    data_sharding_axis: tuple[str, ...] = ("fsdp",)
    """Mesh axes that the rows of a batch are split over, if the model lives on a mesh."""
    max_inflight_computations: int = 2
    """Steps dispatched and not yet finished; 1 waits for each step."""
    metrics_prefix: str = ""
    """First part of the name of every metric."""
    pbar_description: str | None = "Training"
    """Text in front of the progress display; ``None`` shows none."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in ("eval_every_n_steps", "max_inflight_computations"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        for name in ("max_steps", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name} must be at least 1 or None, got {value}"
        yield from config_lib.choice_problems(self, {"resume": checkpoint_recovery.CHOICES})
        if isinstance(self.data_sharding_axis, str):
            yield (
                "data_sharding_axis must be a tuple of mesh axes, got the string "
                f"{self.data_sharding_axis!r}; write ({self.data_sharding_axis!r},)"
            )

    def get_with_default(self, key: str, default: Any) -> Any:
        """Return the field ``key``, or ``default`` where it is ``None``."""
        value = getattr(self, key)
        return default if value is None else value
