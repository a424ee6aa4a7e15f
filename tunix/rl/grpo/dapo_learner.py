"""DAPO: a wider clip upwards, a loss of tokens, prompts that teach, lengths that fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import aggregation
from tunix.rl.scoring import reward_shaping

RewardFn = grpo_learner.RewardFn
MetricFn = grpo_learner.MetricFn
TrainingInputT = grpo_learner.TrainingInputT
OverlongBuffer = reward_shaping.OverlongBuffer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAPOConfig(grpo_config.GRPOConfig):
    """Settings of DAPO (Yu et al., 2025, arXiv:2503.14476)."""

    beta: float = 0.0
    """Weight of the KL penalty; DAPO has none."""

    epsilon_high: float | None = 0.28
    """How far the importance ratio may rise above 1: further than it may fall."""

    loss_agg_mode: str | aggregation.Aggregation = "token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    dynamic_sampling: bool = True
    """Whether prompts whose completions all earn the same are replaced by new prompts until the
    batch is full."""

    overlong_buffer: OverlongBuffer | Mapping[str, Any] | None = dataclasses.field(
        default_factory=OverlongBuffer
    )
    """Takes reward from completions that come close to the longest length allowed."""


class DAPOLearner(grpo_learner.GRPOLearner[DAPOConfig]):
    """Trains the actor of a cluster with DAPO; arguments as for ``GRPOLearner``."""
