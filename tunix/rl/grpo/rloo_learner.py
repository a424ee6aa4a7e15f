"""RLOO: every completion is compared with the others of its prompt, as one action."""

import dataclasses
from typing import Literal

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import advantages, aggregation, kl


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLOOConfig(grpo_config.GRPOConfig):
    """Settings of REINFORCE leave-one-out (Ahmadian et al., 2024, arXiv:2402.14740)."""

    advantage_estimator: str | advantages.AdvantageFn = "rloo"
    """A name in ``ADVANTAGE_ESTIMATORS`` or a function of ``[P, G]`` rewards."""

    loss_agg_mode: str | aggregation.Aggregation = "sequence-mean-token-sum"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""

    kl_placement: Literal["loss", "reward", "reward-to-go"] = "reward"
    """Where ``beta`` times the KL goes, see ``GRPOConfig``."""

    kl_estimator: str | kl.KLEstimator = "k1"
    """A name in ``KL_ESTIMATORS`` or a function like those."""


class RLOOLearner(grpo_learner.GRPOLearner[RLOOConfig]):
    """Trains the actor of a cluster with RLOO; arguments as for ``GRPOLearner``."""
