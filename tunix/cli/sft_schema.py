"""Settings of ``tunix sft``."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from tunix.cli import optimizers, schema
from tunix.data import sft_data
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftDataOptions(config_lib.Config):
    """``data_config``: how rows become tokens and batches; see ``tunix.data.sft_data``."""

    format: Literal["auto", "messages", "prompt_completion", "text"] = "auto"
    """What a row is; by its columns when ``auto``."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The library's name of a column -> its name in the data."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to an example longer than ``max_target_length``."""

    untrainable: Literal["error", "drop"] = "error"
    """What happens to an example without a token to train."""

    packing: bool = False
    """Lay several examples into one row; they do not see each other."""

    packing_window: int = 512
    """Consecutive examples that are packed together."""

    pad_to: Literal["bucket", "max"] = "bucket"
    """Pad a batch to the next of a few lengths, or always to ``max_target_length``."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfilerOptions(config_lib.Config):
    """``profiler_options``: a window of steps recorded for TensorBoard."""

    skip_first_n_steps: int = 1
    """Steps before the window; the first ones compile."""

    profiler_steps: int = 3
    """Steps in the window."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftTrainingOptions(schema.LoopOptions):
    """``training_config``: the loop."""

    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""

    profiler_options: ProfilerOptions | None = None

    max_inflight_computations: int = 2
    """Steps that may be under way on the device."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        for name in ("gradient_accumulation_steps", "max_inflight_computations"):
            yield from schema.below_one(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(schema.RunOptions):
    """``tunix sft``: train on examples."""

    data_path: str
    """JSON lines of conversations, prompts with completions, or text."""

    eval_data_path: str | None = None
    """JSON lines to evaluate on."""

    train_fraction: float = 1.0
    """Without ``eval_data_path``: the rows after this fraction are evaluated on."""

    batch_size: int = 8
    """Rows per batch."""

    max_target_length: int = 256
    """Tokens a row holds."""

    num_train_epochs: int = 1
    """Passes over the data."""

    data_config: SftDataOptions = dataclasses.field(default_factory=SftDataOptions)

    optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    training_config: SftTrainingOptions = dataclasses.field(default_factory=SftTrainingOptions)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the data settings."""
        yield from super().problems()
        if not 0.0 < self.train_fraction <= 1.0:
            yield f"train_fraction must lie in (0, 1], got {self.train_fraction}"
        if self.train_fraction < 1.0 and self.eval_data_path is not None:
            yield "train_fraction and eval_data_path both say what to evaluate on; give one"
        try:
            _ = self.data
        except config_lib.ConfigError as error:
            yield from error.problems

    @property
    def data(self) -> sft_data.SftDataConfig:
        """The settings of the data pipeline."""
        options = {f.name: getattr(self.data_config, f.name) for f in _data_fields()}
        return sft_data.SftDataConfig(
            max_target_length=self.max_target_length,
            batch_size=self.batch_size,
            num_epochs=self.num_train_epochs,
            shuffle_seed=self.seed,
            **options,
        )

    @property
    def eval_data(self) -> sft_data.SftDataConfig:
        """The same for evaluation: one pass over every row, in order."""
        return dataclasses.replace(self.data, num_epochs=1, shuffle_seed=None, last_batch="keep")


def _data_fields() -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(SftDataOptions) if f.name != "columns"]
