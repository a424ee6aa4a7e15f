"""Settings that ``tunix dpo`` and ``tunix reward`` share: preferences and the loop."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tunix.cli.schemas import optimizers, schema, sft_schema
from tunix.data.preference import preference_config
from tunix.sft import training_config as training_config_lib
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceDataOptions(preference_config.RowConfig):
    """``data_config``: how rows become batches."""

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The library's name of a column -> its name in the data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRun(preference_config.BatchSize, schema.RunOptions, abc.ABC):
    """What every run on preferences has: rows, limits, the loop."""

    data_path: str
    """Pairs (``chosen``, ``rejected``, perhaps ``prompt`` and ``margin``), or for KTO rated answers
    (``prompt``, ``completion``, ``label``)."""

    eval_data_path: str | None = None
    """The same to evaluate on."""

    train_fraction: float = 1.0
    """Without ``eval_data_path``: the rows after this fraction, at least one, are evaluated on."""

    num_train_epochs: int = 1
    """Passes over the data."""

    data_config: PreferenceDataOptions = dataclasses.field(default_factory=PreferenceDataOptions)

    optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    training_config: sft_schema.BatchLoopOptions = dataclasses.field(
        default_factory=sft_schema.BatchLoopOptions
    )

    @abc.abstractmethod
    def objective(self, **others: Any) -> training_config_lib.TrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""

    @property
    def is_rated(self) -> bool:
        """Whether rows are single answers, good or bad, instead of pairs."""
        return False

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the objective and the data settings."""
        yield from super().problems()
        yield from schema.held_out_problems(self.train_fraction, self.eval_data_path)
        if self.num_train_epochs < 1:
            yield f"num_train_epochs must be at least 1, got {self.num_train_epochs}"
            return
        try:
            _ = self.data
        except config_lib.ConfigError as error:
            yield from error.problems

    @property
    def data(self) -> preference_config.PreferenceDataConfig:
        """The settings of the data pipeline."""
        return preference_config.PreferenceDataConfig.composed(
            self, self.data_config, num_epochs=self.num_train_epochs, shuffle_seed=self.seed
        )

    @property
    def eval_data(self) -> preference_config.PreferenceDataConfig:
        """The same for evaluation: one pass over every row, in order."""
        return dataclasses.replace(self.data, num_epochs=1, shuffle_seed=None, last_batch="keep")
