"""Settings of ``tunix dpo``."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tunix.cli.schemas import preference_schema
from tunix.sft import training_config as training_config_lib
from tunix.sft.dpo import cpo_trainer, kto_trainer, simpo_trainer
from tunix.sft.dpo import dpo_config as dpo_config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpoRun(preference_schema.PreferenceRun):
    """``tunix dpo``: train on preferences. At most one objective's block; DPO if none."""

    dpo_config: dpo_config_lib.DPOConfig | None = None
    """Pairs of answers against a reference, the model before training."""

    orpo_config: dpo_config_lib.ORPOConfig | None = None
    """Pairs of answers by their odds, without a reference."""

    simpo_config: simpo_trainer.SimPOConfig | None = None
    """Pairs of answers by log-probability per token, without a reference."""

    cpo_config: cpo_trainer.CPOConfig | None = None
    """Pairs of answers under a uniform reference."""

    kto_config: kto_trainer.KTOConfig | None = None
    """Single answers that are good or bad."""

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

    def objective(self, **others: Any) -> training_config_lib.TrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""
        options: Any = vars(self)[f"{self.objective_name}_config"] or dpo_config_lib.DPOConfig()
        more: dict[str, Any] = {"algorithm": "orpo"} if self.objective_name == "orpo" else {}
        if self.has_reference:
            more["offload_reference"] = self.reference == "offloaded"
        return _CONFIGS[self.objective_name].composed(
            options, self, self.training_config, **more, **others
        )


_CONFIGS: Mapping[str, type[training_config_lib.TrainingConfig]] = {
    "dpo": dpo_config_lib.DPOTrainingConfig,
    "orpo": dpo_config_lib.DPOTrainingConfig,
    "simpo": simpo_trainer.SimPOTrainingConfig,
    "cpo": cpo_trainer.CPOTrainingConfig,
    "kto": kto_trainer.KTOTrainingConfig,
}
