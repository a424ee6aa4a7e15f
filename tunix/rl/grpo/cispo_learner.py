"""CISPO: the importance weight is clipped, and every token keeps its gradient."""

import dataclasses

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import aggregation, losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CISPOConfig(grpo_config.GRPOConfig):
    """Settings of CISPO (MiniMax, 2025, arXiv:2506.13585)."""

    policy_loss_fn: str | losses.PolicyLossFn = "cispo"
    """A name in ``POLICY_LOSSES`` or a function like ``losses.clipped_importance``."""

    loss_agg_mode: str | aggregation.Aggregation = "token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    beta: float = 0.0
    """Weight of the KL penalty; CISPO has none."""

    epsilon: float = 1.0
    """How far the weight may fall below 1; 1 is no lower bound."""

    epsilon_high: float | None = 4.0
    """How far it may rise above 1."""


class CISPOLearner(grpo_learner.GRPOLearner[CISPOConfig]):
    """Trains the actor of a cluster with CISPO; arguments as for ``GRPOLearner``."""
