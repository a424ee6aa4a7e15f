"""REINFORCE++: no critic and no group, but advantages whitened over the whole rollout."""

import dataclasses
from typing import Literal

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import advantages, aggregation, kl


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusConfig(grpo_config.GRPOConfig):
    """Settings of REINFORCE++ (Hu et al., 2025, arXiv:2501.03262)."""

    num_generations: int = 1
    """Completions sampled per prompt."""

    advantage_estimator: str | advantages.AdvantageFn = "none"
    """``none``, or ``drgrpo`` for the variant with the group's mean as baseline."""

    loss_agg_mode: str | aggregation.Aggregation = "token-mean"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    kl_placement: Literal["loss", "reward", "reward-to-go"] = "reward-to-go"
    """Where ``beta`` times the KL goes, see ``GRPOConfig``."""

    kl_estimator: str | kl.KLEstimator = "k1"
    """A name in ``KL_ESTIMATORS`` or a function like those."""

    whiten_advantages: bool = True
    """Whether advantages get mean 0 and deviation 1 over all tokens of a rollout."""


class ReinforcePlusPlusLearner(grpo_learner.GRPOLearner[ReinforcePlusPlusConfig]):
    """Trains the actor of a cluster with REINFORCE++; arguments as for ``GRPOLearner``."""
