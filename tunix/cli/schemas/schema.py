"""Settings that every run has, each with its type, default and meaning.

The keys are those of google-tunix wherever one means the same
(``reference_keys.py`` answers for the others). What ``tunix sft`` and
``tunix grpo`` add is in ``sft_schema.py`` and ``grpo_schema.py``.
"""

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Literal

from tunix.models import lora_config
from tunix.models.transformer import config as transformer_config
from tunix.ops import quantize
from tunix.sft import metrics_logger, training_config
from tunix.utils import config as config_lib


def held_out_problems(
    train_fraction: float, eval_data_path: str | tuple[str, ...] | None
) -> Iterator[str]:
    """Yield what is wrong with the two ways to say what is evaluated on."""
    if not 0.0 < train_fraction <= 1.0:
        yield f"train_fraction must lie in (0, 1], got {train_fraction}"
    if train_fraction < 1.0 and eval_data_path is not None:
        yield "train_fraction and eval_data_path both say what to evaluate on; give one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions(config_lib.Config):
    """``model_config.mesh``: how the devices are arranged."""

    shape: tuple[int, ...]
    """Devices along each axis, such as ``[4, 2]``."""

    axis_names: tuple[str, ...]
    """Their names: ``fsdp`` splits parameters and batches, ``tp`` splits matrices."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the mesh."""
        yield from super().problems()
        if len(self.shape) != len(self.axis_names):
            yield f"shape has {len(self.shape)} axes, axis_names {len(self.axis_names)}"
        if not self.shape:
            yield "shape names no axis; write [1] with axis_names [fsdp] for a single device"
        if len(set(self.axis_names)) != len(self.axis_names):
            yield f"axis_names must differ from each other, got {list(self.axis_names)}"
        if any(size < 1 for size in self.shape):
            yield f"shape must hold positive numbers, got {list(self.shape)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraOptions(lora_config.LoraConfig):
    """``model_config.lora_config``: adapters, and in how many bits the base below them is held."""

    weight_qtype: quantize.Kind | None = None
    """Quantises the projections of the base (QLoRA); without it they are held as `dtype` says."""

    tile_size: int | None = None
    """Inputs that share a scale with `weight_qtype`: 64 when unset, with `int8` all of them."""

    def problems(self) -> Iterator[str]:
        """Yield settings that nothing would read."""
        yield from super().problems()
        yield from config_lib.below_one(self, "tile_size")
        if self.tile_size is not None and self.weight_qtype is None:
            yield "tile_size goes with weight_qtype, which is not set; remove it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldModel(config_lib.Config):
    """Which model, and how it is held."""

    model_id: str
    """A Hugging Face directory, a ``.gguf`` file, ``package:NAME`` or a hub id."""

    model_source: Literal["huggingface", "kaggle", "gcs", "local"] = "huggingface"
    """Where to look for what is not on disk; ``local`` never asks anyone."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """How parameters are stored."""

    precision: Literal["auto", "exact", "fast"] = "auto"
    """``exact`` multiplies in float32, ``fast`` in bfloat16 with float32 sums, ``auto`` is fast
    where the device has units for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(HeldModel):
    """``model_config``: which model, and how it is held and trained."""

    model_path: str | None = None
    """Where its files are, if ``model_id`` only names it."""

    model_download_path: str | None = None
    """Where fetched files go; the source's own cache when unset."""

    remat: transformer_config.Remat = "nothing_saveable"
    """What the backward pass keeps of a layer instead of computing it again."""

    lora_config: LoraOptions | None = None
    """Trains adapters instead of all parameters."""

    rng_seed: int = 0
    """Seed of the adapters' initial values."""

    mesh: MeshOptions | None = None
    """One device when unset."""

    def problems(self) -> Iterator[str]:
        """Yield settings that nothing would read."""
        yield from super().problems()
        if self.rng_seed and self.lora_config is None:
            yield "rng_seed initialises adapters, and lora_config is not set; remove it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions(config_lib.Config):
    """``tokenizer_config``."""

    tokenizer_path: str | None = None
    """Directory, file, ``package:NAME`` or hub id; the model's own tokenizer when unset."""

    date: str | None = None
    """What a chat template that writes today's date is told, as ``2026-12-01``; the day of the
    run's first start when unset."""

    def problems(self) -> Iterator[str]:
        """Yield what is no date."""
        yield from super().problems()
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                yield f"date must be a day such as 2026-12-01, got {self.date!r}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointingOptions(config_lib.Config):
    """``checkpointing_options``: checkpoints below the run directory."""

    save_interval_steps: int = 100
    """Steps between checkpoints; the last step is always saved."""

    save_interval_seconds: int | None = None
    """If set, checkpoints are written this often instead, whatever steps take."""

    max_to_keep: int = 1
    """Older ones are deleted."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        names = ("save_interval_steps", "save_interval_seconds", "max_to_keep")
        yield from config_lib.below_one(self, *names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions(training_config.LoopConfig):
    """What ``training_config`` and ``rl_training_config`` share."""

    checkpointing_options: CheckpointingOptions | None = dataclasses.field(
        default_factory=CheckpointingOptions
    )
    """``null`` saves nothing, so that the run cannot be resumed."""

    metrics_logging_options: metrics_logger.MetricsOptions = dataclasses.field(
        default_factory=metrics_logger.MetricsOptions
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRun(config_lib.Config):
    """A model, and a directory for what becomes of it."""

    model_config: ModelOptions

    tokenizer_config: TokenizerOptions = dataclasses.field(default_factory=TokenizerOptions)

    run_dir: str | None = None
    """Everything the run writes goes here; ``runs/NAME-DATE-TIME`` when unset. An existing
    run continues from its last checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(training_config.ResumeConfig, ModelRun):
    """What every run has."""

    seed: int = 0
    """Seed of data order and sampling."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        if self.seed < 0:
            yield f"seed must not be negative, got {self.seed}"
