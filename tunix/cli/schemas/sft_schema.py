"""Settings of ``tunix sft``."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from tunix.cli.schemas import generation_schema, optimizers, schema
from tunix.data import batching, mixing, sft_config
from tunix.sft import losses, profiler, training_config
from tunix.sft.loop import generation_eval
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOptions(config_lib.Config):
    """``data_config.mixture``: several data sets in given proportions."""

    weights: tuple[float, ...]
    """The share of each entry of ``data_path``; any positive numbers."""

    stop: mixing.Stop = "first_exhausted"
    """Whether an epoch lasts until the first data set is through, or until the last one is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftDataOptions(sft_config.RowConfig):
    """``data_config``: how rows become tokens and batches, and which rows are read."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The library's name of a column -> its name in the data."""

    mixture: MixtureOptions | None = None
    """Several data sets in given proportions; unset, each of their rows once an epoch."""

    streaming_window: int | None = None
    """If set, data is read while training, this many examples at a time; needs `max_steps`."""

    shard: batching.Shard = batching.WHOLE
    """The rows of every batch that this host reads, where several hosts read their own."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        yield from config_lib.below_one(self, "streaming_window")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLoopOptions(schema.LoopOptions, training_config.BatchesConfig):
    """``training_config``: the loop over the batches of a data set."""

    profiler_options: profiler.ProfilerWindow | None = None
    """A window of steps to record for TensorBoard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepBestOptions(config_lib.Config):
    """``keep_best``: checkpoints of the best evaluations."""

    num: int = 1
    """How many are kept beside the latest."""

    metric: str = "loss"
    """A metric of the evaluation."""

    mode: Literal["min", "max"] = "min"
    """Whether smaller or larger is better."""

    restore_best: bool = False
    """Brings the best weights back at the end and evaluates them (``eval_of_best`` in the summary);
    checkpoints stay as they are."""

    def problems(self) -> Iterator[str]:
        """Yield numbers out of range."""
        yield from super().problems()
        yield from config_lib.below_one(self, "num")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedLoopOptions(BatchLoopOptions, training_config.StoppingConfig):
    """``training_config`` of ``tunix sft``."""

    keep_best: KeepBestOptions | None = None
    """Keeps the checkpoints of the best evaluations, too."""

    ema_decay: float | None = None
    """Averages the parameters with this decay, and evaluates the average at the end."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            yield f"ema_decay must lie between 0 and 1, got {self.ema_decay}"
        if self.keep_best is not None and self.checkpointing_options is None:
            yield "keep_best keeps checkpoints, and checkpointing_options is null; remove one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions(losses.NextTokenLoss):
    """``loss_config``: the objective; see ``tunix.sft.losses``."""

    neftune_alpha: float | None = None
    """Size of the noise on embeddings while training (arXiv:2310.05914); 5 to 15 is usual."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.neftune_alpha is not None and not self.neftune_alpha > 0:
            yield f"neftune_alpha must be positive, got {self.neftune_alpha}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(sft_config.BatchSize, schema.RunOptions):
    """``tunix sft``: train on examples."""

    data_path: str | tuple[str, ...]
    """Conversations, prompts with completions, or text: a file (`.jsonl`, `.json`, `.parquet`), a
    pattern, a directory of `save_to_disk`, `hub:OWNER/NAME@SPLIT`, or a list of these."""

    eval_data_path: str | tuple[str, ...] | None = None
    """The same to evaluate on."""

    train_fraction: float = 1.0
    """Without ``eval_data_path``: the rows after this fraction, at least one, are evaluated on."""

    num_train_epochs: int = 1
    """Passes over the data."""

    data_config: SftDataOptions = dataclasses.field(default_factory=SftDataOptions)

    loss_config: LossOptions = dataclasses.field(default_factory=LossOptions)

    optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    training_config: SupervisedLoopOptions = dataclasses.field(
        default_factory=SupervisedLoopOptions
    )

    evaluation: generation_schema.EvaluationOptions = dataclasses.field(
        default_factory=generation_schema.EvaluationOptions
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the data settings."""
        yield from super().problems()
        yield from schema.held_out_problems(self.train_fraction, self.eval_data_path)
        has_evaluation = self.train_fraction < 1.0 or self.eval_data_path is not None
        loop, generation = self.training_config, self.evaluation.generation
        for name, chosen in (
            ("early_stopping", loop.early_stopping),
            ("keep_best", loop.keep_best),
        ):
            if chosen is not None and not has_evaluation:
                yield f"training_config.{name} goes by evaluations: set eval_data_path"
            if (
                chosen is not None
                and generation is None
                and chosen.metric.startswith(generation_eval.PREFIX)
            ):
                yield (
                    f"training_config.{name} goes by {chosen.metric}, which nothing measures: set "
                    "evaluation.generation"
                )
        if generation is not None and not has_evaluation:
            yield "evaluation.generation asks held-out rows: set eval_data_path or train_fraction"
        if generation is not None and self.data_config.format == "text":
            yield "evaluation.generation needs prompts, and data_config.format is text; remove one"
        yield from config_lib.below_one(self, "num_train_epochs")
        yield from self._source_problems()

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Every source to train on."""
        return (self.data_path,) if isinstance(self.data_path, str) else self.data_path

    @property
    def eval_data_paths(self) -> tuple[str, ...]:
        """Every source to evaluate on."""
        path = self.eval_data_path
        return (path,) if isinstance(path, str) else path or ()

    def _source_problems(self) -> Iterator[str]:
        mixture, window = self.data_config.mixture, self.data_config.streaming_window
        if not self.data_paths:
            yield "data_path is an empty list; name a file"
        if mixture is not None and len(mixture.weights) != len(self.data_paths):
            yield (
                f"data_config.mixture has {len(mixture.weights)} weights for "
                f"{len(self.data_paths)} entries of data_path; give one for each"
            )
        try:
            self.data_config.shard.require_divides(self.batch_size)
        except ValueError as error:
            yield f"data_config.shard: {error}"
        if window is None:
            return
        if self.training_config.max_steps is None:
            yield "a stream does not know its length: set training_config.max_steps"
        if mixture is not None:
            yield "data_config.mixture cannot be streamed; remove it or streaming_window"
        if self.train_fraction < 1.0:
            yield "train_fraction cannot be streamed; set eval_data_path"

    @property
    def data(self) -> sft_config.SftDataConfig:
        """The settings of the data pipeline."""
        return sft_config.SftDataConfig.composed(
            self, self.data_config, num_epochs=self.num_train_epochs, shuffle_seed=self.seed
        )

    @property
    def eval_data(self) -> sft_config.SftDataConfig:
        """The same for evaluation: one pass over every row, in order."""
        return dataclasses.replace(self.data, num_epochs=1, shuffle_seed=None, last_batch="keep")
