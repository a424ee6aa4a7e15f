"""Settings of proximal policy optimisation (PPO)."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from tunix.rl import algorithm_config
from tunix.rl.objectives import aggregation, kl, losses, token_advantages
from tunix.utils import config as config_lib

CRITIC_BACKBONES = ("separate", "shared")
DEFAULT_VF_COEF = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(algorithm_config.AlgorithmConfig):
    """Settings of proximal policy optimisation (arXiv:1707.06347) with a critic."""

    advantage_estimator: str | token_advantages.TokenAdvantageFn = "gae"
    """A name in ``TOKEN_ADVANTAGE_ESTIMATORS`` or a function like those."""

    policy_loss_fn: str | losses.PolicyLossFn = "ppo"
    """A name in ``POLICY_LOSSES`` or a function like ``losses.clipped_surrogate``."""

    loss_agg_mode: str | aggregation.Aggregation = "token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    gamma: float = 1.0
    """Discount of the reward per token."""

    gae_lambda: float = 0.95
    """Between 0, which trusts the critic's next value, and 1, which trusts the rewards alone."""

    epsilon_low: float | None = None
    """How far the importance ratio may fall below 1; ``None`` means as far as ``epsilon``."""

    clip_range_value: float | None = 0.2
    """How far a value may move from that at the rollout before it stops learning; ``None``
    does not clip."""

    critic_backbone: Literal["separate", "shared"] = "separate"
    """``separate``: the critic is a model beside the actor. ``shared``: it is a second head of the
    actor, trained in the same pass; half the work, and both pull at one backbone."""

    vf_coef: float | None = None
    """Weight of the value loss beside the policy's with a shared backbone; 0.1 when unset."""

    kl_method: str | kl.KLEstimator = "low_var_kl"
    """How the KL that every token pays for is estimated: a name in ``KL_ESTIMATORS`` or a
    function like those. Only ``k1`` makes it the gradient of the KL in expectation."""

    whiten_rewards: bool = False
    """Whether the rewards of tokens, penalties among them, get deviation 1 over all tokens of a
    rollout before advantages are estimated; their mean stays. The critic then has targets of one
    size whatever the reward functions count in, but tokens without a reward get a small one, too:
    with a positive mean each costs something, and long completions cost more."""

    whiten_advantages: bool = True
    """Whether advantages get mean 0 and deviation 1 over all tokens of a rollout."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                yield f"{name} must lie in [0, 1], got {getattr(self, name)}"
        if self.epsilon_low is not None and not 0.0 < self.epsilon_low <= 1.0:
            yield f"epsilon_low must lie in (0, 1], got {self.epsilon_low}"
        if self.clip_range_value is not None and not self.clip_range_value > 0.0:
            yield f"clip_range_value must be positive or None, got {self.clip_range_value}"
        if self.critic_backbone not in CRITIC_BACKBONES:
            hint = config_lib.did_you_mean(str(self.critic_backbone), CRITIC_BACKBONES)
            yield (
                f"critic_backbone {self.critic_backbone!r} is not one of "
                f"{list(CRITIC_BACKBONES)}{hint}"
            )
        elif self.vf_coef is not None and self.critic_backbone == "separate":
            yield "vf_coef is read with critic_backbone 'shared' alone; leave it out"
        if self.vf_coef is not None and not self.vf_coef >= 0.0:
            yield f"vf_coef must not be negative, got {self.vf_coef}"
        yield from algorithm_config.choice_problems("kl_method", self.kl_method, "kl_estimator")

    def _estimator_problems(self) -> Iterator[str]:
        yield from algorithm_config.choice_problems(
            "advantage_estimator", self.advantage_estimator, "token_advantage_estimator"
        )

    @property
    def value_coef(self) -> float:
        """Weight of the value loss with a shared backbone."""
        return DEFAULT_VF_COEF if self.vf_coef is None else self.vf_coef

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far the ratio may fall below and rise above 1."""
        low, high = super().clip_range
        return (low if self.epsilon_low is None else self.epsilon_low), high

    @property
    def token_advantage_fn(self) -> token_advantages.TokenAdvantageFn:
        """The advantage estimator as a function of tokens."""
        return algorithm_config.resolve("token_advantage_estimator", self.advantage_estimator)

    @property
    def kl_fn(self) -> kl.KLEstimator:
        """The KL estimator as a function."""
        return algorithm_config.resolve("kl_estimator", self.kl_method)
