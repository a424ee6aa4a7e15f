"""Settings of ``tunix dpo``."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.cli import optimizers, schema, sft_schema
from tunix.data import preference_config
from tunix.sft import training_config as training_config_lib
from tunix.sft.dpo import cpo_trainer, dpo_config, kto_trainer, simpo_trainer
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoOptions(config_lib.Config):
    """``dpo_config``: pairs of answers against a reference, the model before training."""

    loss_type: str | tuple[str, ...] = "sigmoid"
    """A loss, or several whose weighted values are added."""

    loss_weights: tuple[float, ...] | None = None
    """One per loss; 1 when unset."""

    beta: float = 0.1
    """How strongly the policy is held to the reference."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong, for the losses that know of it."""

    rpo_alpha: float | None = None
    """Weight of the chosen answer's negative log-likelihood per token."""

    discopop_tau: float = 0.05
    """Temperature of DiscoPOP's gate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrpoOptions(config_lib.Config):
    """``orpo_config``: pairs of answers by their odds, without a reference."""

    lambda_orpo: float = 0.1
    """Weight of the odds ratio term."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimpoOptions(config_lib.Config):
    """``simpo_config``: pairs of answers by log-probability per token, without a reference."""

    beta: float = 2.0
    """Scale of the reward."""

    simpo_gamma: float = 1.0
    """By how much the chosen answer should lead."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CpoOptions(config_lib.Config):
    """``cpo_config``: pairs of answers under a uniform reference."""

    beta: float = 0.1
    """Scale of the reward."""

    cpo_alpha: float = 1.0
    """Weight of the chosen answer's negative log-likelihood per token."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KtoOptions(config_lib.Config):
    """``kto_config``: single answers that are good or bad."""

    beta: float = 0.1
    """How fast utility saturates."""

    desirable_weight: float = 1.0
    """Weight of good answers."""

    undesirable_weight: float = 1.0
    """Weight of bad answers."""


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
    """Pad a batch to the next of a few lengths, or always to the longest."""

    last_batch: Literal["drop", "keep"] = "keep"
    """What happens to a short last batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoRun(schema.RunOptions):
    """``tunix dpo``: train on preferences. At most one objective's block; DPO if none."""

    data_path: str
    """Pairs (``chosen``, ``rejected``, perhaps ``prompt``), or for KTO rated answers (``prompt``,
    ``completion``, ``label``)."""

    eval_data_path: str | None = None
    """The same to evaluate on."""

    train_fraction: float = 1.0
    """Without ``eval_data_path``: the rows after this fraction are evaluated on."""

    batch_size: int = 8
    """Rows per batch."""

    max_prompt_length: int = 512
    """Tokens of a prompt."""

    max_response_length: int = 512
    """Tokens of an answer."""

    num_train_epochs: int = 1
    """Passes over the data."""

    dpo_config: DpoOptions | None = None
    orpo_config: OrpoOptions | None = None
    simpo_config: SimpoOptions | None = None
    cpo_config: CpoOptions | None = None
    kto_config: KtoOptions | None = None

    data_config: PreferenceDataOptions = dataclasses.field(default_factory=PreferenceDataOptions)

    optimizer_config: optimizers.OptimizerOptions = dataclasses.field(
        default_factory=optimizers.OptimizerOptions
    )

    training_config: sft_schema.SftTrainingOptions = dataclasses.field(
        default_factory=sft_schema.SftTrainingOptions
    )

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the objective and the data settings."""
        yield from super().problems()
        if not 0.0 < self.train_fraction <= 1.0:
            yield f"train_fraction must lie in (0, 1], got {self.train_fraction}"
        if self.train_fraction < 1.0 and self.eval_data_path is not None:
            yield "train_fraction and eval_data_path both say what to evaluate on; give one"
        chosen = [f"{name}_config" for name in _CONFIGS if vars(self)[f"{name}_config"] is not None]
        if len(chosen) > 1:
            yield f"{' and '.join(chosen)} are different objectives; keep one"
            return
        for make in (lambda: self.data, lambda: self.objective(eval_every_n_steps=1)):
            try:
                make()
            except config_lib.ConfigError as error:
                yield from error.problems

    @property
    def objective_name(self) -> str:
        """Which objective is trained."""
        given = (name for name in _CONFIGS if vars(self)[f"{name}_config"] is not None)
        return next(given, "dpo")

    def objective(self, **loop: Any) -> training_config_lib.TrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""
        options: Any = vars(self)[f"{self.objective_name}_config"] or DpoOptions()
        more: dict[str, Any] = {"algorithm": "orpo"} if self.objective_name == "orpo" else {}
        return _CONFIGS[self.objective_name](**loop, **vars(options), **more)

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


_CONFIGS: Mapping[str, type[training_config_lib.TrainingConfig]] = {
    "dpo": dpo_config.DPOTrainingConfig,
    "orpo": dpo_config.DPOTrainingConfig,
    "simpo": simpo_trainer.SimPOTrainingConfig,
    "cpo": cpo_trainer.CPOTrainingConfig,
    "kto": kto_trainer.KTOTrainingConfig,
}
