"""Settings of ``tunix dpo``."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.cli import preference_schema
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
class DpoRun(preference_schema.PreferenceRun):
    """``tunix dpo``: train on preferences. At most one objective's block; DPO if none."""

    dpo_config: DpoOptions | None = None
    orpo_config: OrpoOptions | None = None
    simpo_config: SimpoOptions | None = None
    cpo_config: CpoOptions | None = None
    kto_config: KtoOptions | None = None

    reference: Literal["precomputed", "live", "offloaded"] = "precomputed"
    """How DPO and KTO ask the reference, the model before training: ``precomputed`` over all data
    before the first step; ``live``, for every batch when it comes; ``offloaded``, live with its
    weights in host memory in between."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the objective and the data settings."""
        chosen = [f"{name}_config" for name in _CONFIGS if vars(self)[f"{name}_config"] is not None]
        if len(chosen) > 1:
            yield f"{' and '.join(chosen)} are different objectives; keep one"
            return
        yield from super().problems()
        if self.reference != "precomputed" and not self.has_reference:
            yield f"reference is not read: {self.objective_name} compares with none; remove it"
        elif self.reference == "offloaded" and self.model_config.lora_config is not None:
            yield (
                "reference: offloaded moves a second copy of the weights, and with "
                "model_config.lora_config there is none: the model without its adapters is the "
                "reference; set it to live"
            )

    @property
    def objective_name(self) -> str:
        """Which objective is trained."""
        given = (name for name in _CONFIGS if vars(self)[f"{name}_config"] is not None)
        return next(given, "dpo")

    @property
    def has_reference(self) -> bool:
        """Whether the objective compares with a reference."""
        return self.objective_name in ("dpo", "kto")

    @property
    def is_rated(self) -> bool:
        """Whether rows are single answers, good or bad, instead of pairs."""
        return self.objective_name == "kto"

    def objective(self, **loop: Any) -> training_config_lib.TrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""
        options: Any = vars(self)[f"{self.objective_name}_config"] or DpoOptions()
        more: dict[str, Any] = {"algorithm": "orpo"} if self.objective_name == "orpo" else {}
        if self.has_reference:
            more["offload_reference"] = self.reference == "offloaded"
        return _CONFIGS[self.objective_name](**loop, **vars(options), **more)


_CONFIGS: Mapping[str, type[training_config_lib.TrainingConfig]] = {
    "dpo": dpo_config.DPOTrainingConfig,
    "orpo": dpo_config.DPOTrainingConfig,
    "simpo": simpo_trainer.SimPOTrainingConfig,
    "cpo": cpo_trainer.CPOTrainingConfig,
    "kto": kto_trainer.KTOTrainingConfig,
}
