"""Settings of ``tunix reward``."""

import dataclasses
from typing import Any

from tunix.cli import preference_schema
from tunix.sft.dpo import reward_trainer
from tunix.utils import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardOptions(config_lib.Config):
    """``reward_config``: the objective (Bradley-Terry)."""

    center_rewards_coefficient: float | None = None
    """Weight of the squared sum of a pair's rewards, which keeps rewards around 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(preference_schema.PreferenceRun):
    """``tunix reward``: train a reward model on pairs of answers."""

    reward_config: RewardOptions = dataclasses.field(default_factory=RewardOptions)

    def objective(self, **loop: Any) -> reward_trainer.RewardTrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""
        return reward_trainer.RewardTrainingConfig(**loop, **vars(self.reward_config))
