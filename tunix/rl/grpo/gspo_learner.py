"""GSPO: one importance ratio for a whole sequence, clipped as a whole."""

import dataclasses

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GSPOConfig(grpo_config.GRPOConfig):
    """Settings of GSPO (Zheng et al., 2025, arXiv:2507.18071)."""

    loss_algo: str | losses.ImportanceFn = "gspo"
    """Which importance ratio: ``gspo``, or ``gspo-token`` where tokens differ in advantage."""

    beta: float = 0.0
    """Weight of the KL penalty; GSPO has none."""

    epsilon: float = 3e-4
    """How far the ratio may fall below 1: a mean over tokens moves little (section 5.1)."""

    epsilon_high: float | None = 4e-4
    """How far it may rise above 1."""


class GSPOLearner(grpo_learner.GRPOLearner[GSPOConfig]):
    """Trains the actor of a cluster with GSPO; arguments as for ``GRPOLearner``."""
