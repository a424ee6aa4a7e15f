"""Settings of ``tunix ppo``."""

import dataclasses
from collections.abc import Iterator

from tunix.cli.schemas import optimizers, rl_schema
from tunix.rl.ppo import ppo_config as ppo_config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOTrainingOptions(rl_schema.RLTrainingOptions):
    """``rl_training_config``: the loop, with a critic beside the actor."""

    critic_optimizer_config: optimizers.OptimizerOptions | None = None
    """How the critic is trained; as the actor is when unset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoRun(rl_schema.RLRun):
    """``tunix ppo``: train by proximal policy optimisation, with a critic."""

    ppo_config: ppo_config_lib.PPOConfig = dataclasses.field(
        default_factory=ppo_config_lib.PPOConfig
    )

    rl_training_config: PPOTrainingOptions = dataclasses.field(default_factory=PPOTrainingOptions)

    @property
    def algorithm_name(self) -> str:
        """The algorithm, as headings name it."""
        return "ppo"

    @property
    def algo_config(self) -> ppo_config_lib.PPOConfig:
        """The algorithm's settings."""
        return self.ppo_config

    @property
    def critic_optimizer(self) -> optimizers.OptimizerOptions | None:
        """How the critic is trained; ``None`` where there is none beside the actor."""
        if self.has_value_head:
            return None
        options = self.rl_training_config
        return options.critic_optimizer_config or options.actor_optimizer_config

    @property
    def has_value_head(self) -> bool:
        """Whether the actor is its own critic."""
        return self.ppo_config.critic_backbone == "shared"

    def problems(self) -> Iterator[str]:
        """Yield settings that nothing would read."""
        yield from super().problems()
        if self.has_value_head and self.rl_training_config.critic_optimizer_config is not None:
            yield (
                "rl_training_config.critic_optimizer_config is not read: with "
                "ppo_config.critic_backbone 'shared' the actor's optimizer trains both; remove it"
            )
