"""Settings of group-relative policy optimisation (GRPO)."""

import dataclasses
from collections.abc import Iterator

from tunix.rl import algorithm_config, kl, losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(algorithm_config.AlgorithmConfig):
    """Settings of group-relative policy optimisation (arXiv:2402.03300)."""

    num_generations: int = 2
    """Completions sampled per prompt; G in the paper."""

    num_iterations: int = 1
    """How often every rollout is trained on; μ in the paper."""

    beta: float = 0.04
    """Weight of the KL penalty to the reference policy; 0 needs no reference at all."""

    kl_estimator: str | kl.KLEstimator = "k3"
    """A name in ``KL_ESTIMATORS`` or a function like those."""

    epsilon: float = 0.2
    """How far the importance ratio may fall below 1; ε in the paper."""

    epsilon_high: float | None = None
    """How far it may rise above 1; ``None`` means as far as ``epsilon``."""

    loss_algo: str | losses.ImportanceFn = "grpo"
    """Which importance ratio: ``grpo`` per token, ``gspo-token`` per sequence, or a function."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with these settings."""
        yield from super().problems()
        if self.num_generations < 2:
            yield f"num_generations must be at least 2 to form a group, got {self.num_generations}"
        if self.num_iterations < 1:
            yield f"num_iterations must be at least 1, got {self.num_iterations}"
        if not self.beta >= 0.0:
            yield f"beta must not be negative, got {self.beta}"
        if not 0.0 < self.epsilon < 1.0:
            yield f"epsilon must lie in (0, 1), got {self.epsilon}"
        if self.epsilon_high is not None and not self.epsilon_high > 0.0:
            yield f"epsilon_high must be positive, got {self.epsilon_high}"
        yield from algorithm_config.choice_problems(
            "kl_estimator", self.kl_estimator, kl.KL_ESTIMATORS
        )
        yield from algorithm_config.choice_problems(
            "loss_algo", self.loss_algo, losses.IMPORTANCE_RATIOS
        )

    @property
    def clip_range(self) -> tuple[float, float]:
        """How far the ratio may fall below and rise above 1."""
        return self.epsilon, self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def importance_fn(self) -> losses.ImportanceFn:
        """The importance ratio as a function."""
        return algorithm_config.resolve(self.loss_algo, losses.IMPORTANCE_RATIOS)

    @property
    def kl_fn(self) -> kl.KLEstimator:
        """The KL estimator as a function."""
        return algorithm_config.resolve(self.kl_estimator, kl.KL_ESTIMATORS)

    @property
    def skips_dead_sequences(self) -> bool:
        """Whether a sequence of advantage 0 is known to have no loss and no gradient."""
        # A user's own loss may have a gradient of its own, e.g. an entropy bonus.
        return self.beta == 0.0 and isinstance(self.policy_loss_fn, str)
