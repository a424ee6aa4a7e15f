"""Settings that ``tunix dpo`` and ``tunix reward`` share: preferences and the loop."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.cli import optimizers, schema, sft_schema
from tunix.data import preference_config
from tunix.sft import training_config as training_config_lib
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceDataOptions(config_lib.Config):
    """``data_config``: how rows become batches; see ``tunix.data.preference_data``."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The library's name of a column -> its name in the data."""

    too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a row longer than the limits."""

    identical: Literal["error", "drop"] = "error"
    """What happens to a pair of two equal answers."""

    packing: bool = False
    """Lay several prompts with their answers into one row; they do not see each other."""

    packing_window: int = 512
    """Consecutive examples that are packed together."""

    row_length: int | None = None
    """Tokens of a packed row; what the longest example needs when unset."""

    pad_to: Literal["bucket", "max"] = "bucket"
    """Pad rows to the longest prompt with its answers, rounded up to 64 tokens, or not rounded."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRun(schema.RunOptions, abc.ABC):
    """What every run on preferences has: rows, limits, the loop."""

    data_path: str
    """Pairs (``chosen``, ``rejected``, perhaps ``prompt`` and ``margin``), or for KTO rated answers
    (``prompt``, ``completion``, ``label``)."""

    eval_data_path: str | None = None
    """The same to evaluate on."""

    train_fraction: float = 1.0
    """Without ``eval_data_path``: the rows after this fraction, at least one, are evaluated on."""

    batch_size: int = 8
    """Rows per batch."""

    max_prompt_length: int = 512
    """Tokens of a prompt."""

    max_response_length: int = 512
    """Tokens of an answer."""

    num_train_epochs: int = 1
    """Passes over the data."""

    data_config: PreferenceDataOptions = dataclasses.field(default_factory=PreferenceDataOptions)

    optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    training_config: sft_schema.SftTrainingOptions = dataclasses.field(
        default_factory=sft_schema.SftTrainingOptions
    )

    @abc.abstractmethod
    def objective(self, **loop: Any) -> training_config_lib.TrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""

    @property
    def is_rated(self) -> bool:
        """Whether rows are single answers, good or bad, instead of pairs."""
        return False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the objective and the data settings."""
        yield from super().problems()
        yield from schema.held_out_problems(self.train_fraction, self.eval_data_path)
        for make in (lambda: self.data, lambda: self.objective(eval_every_n_steps=1)):
            try:
                make()
            except config_lib.ConfigError as error:
                yield from error.problems

    @property
    def data(self) -> preference_config.PreferenceDataConfig:
        """The settings of the data pipeline."""
        options = {k: v for k, v in vars(self.data_config).items() if k != "columns"}
        return preference_config.PreferenceDataConfig(
            max_prompt_length=self.max_prompt_length,
            max_response_length=self.max_response_length,
            batch_size=self.batch_size,
            num_epochs=self.num_train_epochs,
            shuffle_seed=self.seed,
            **options,
        )

    @property
    def eval_data(self) -> preference_config.PreferenceDataConfig:
        """The same for evaluation: one pass over every row, in order."""
        return dataclasses.replace(self.data, num_epochs=1, shuffle_seed=None, last_batch="keep")
