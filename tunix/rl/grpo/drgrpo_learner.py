"""Dr. GRPO: no deviation in the advantage, no length in the loss."""

import dataclasses

from tunix.rl.grpo import grpo_config, grpo_learner
from tunix.rl.objectives import advantages, aggregation
from tunix.utils import reference_names

RewardFn = grpo_learner.RewardFn
MetricFn = grpo_learner.MetricFn
TrainingInputT = grpo_learner.TrainingInputT


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrGRPOConfig(grpo_config.GRPOConfig):
    """Settings of Dr. GRPO (Liu et al., 2025, arXiv:2503.20783)."""

    advantage_estimator: str | advantages.AdvantageFn = "drgrpo"
    """A name in ``ADVANTAGE_ESTIMATORS`` or a function of ``[P, G]`` rewards."""

    loss_agg_mode: str | aggregation.Aggregation = "sequence-mean-token-scale"
    """A name in ``AGGREGATIONS`` or a function like those: what every token weighs."""


class DrGRPOLearner(grpo_learner.GRPOLearner[DrGRPOConfig]):
    """Trains the actor of a cluster with Dr. GRPO; arguments as for ``GRPOLearner``."""


__getattr__ = reference_names.hints(__name__)
