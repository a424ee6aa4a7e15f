"""Settings of ``tunix reward``."""

import dataclasses
from typing import Any

from tunix.cli.schemas import preference_schema
from tunix.sft.dpo import reward_trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(preference_schema.PreferenceRun):
    """``tunix reward``: train a reward model on pairs of answers."""

    reward_config: reward_trainer.RewardConfig = dataclasses.field(
        default_factory=reward_trainer.RewardConfig
    )

    def objective(self, **others: Any) -> reward_trainer.RewardTrainingConfig:
        """Return the trainer's settings, made of the objective's and those of the loop."""
        return reward_trainer.RewardTrainingConfig.composed(
            self.reward_config, self, self.training_config, **others
        )
