"""Group-relative policy optimisation: every completion is compared with its prompt's others."""

from collections.abc import Sequence
from typing import TypeVar

from flax import nnx

from tunix.rl import common, rl_cluster, rl_learner, trajectory
from tunix.rl.collecting import collector, dynamic, experience
from tunix.rl.grpo import grpo_config, grpo_loss
from tunix.rl.objectives import credit
from tunix.rl.scoring import rewards
from tunix.sft import loss_output
from tunix.utils import config as config_lib
from tunix.utils import reference_names

GRPOConfig = grpo_config.GRPOConfig
RewardFn = rewards.RewardFn
MetricFn = rl_learner.MetricFn
TrainingInputT = rl_learner.TrainingInputT

ConfigT = TypeVar("ConfigT", bound=grpo_config.GRPOConfig)


class GRPOLearner(rl_learner.RLLearner[ConfigT]):
    """Trains the actor of a cluster with GRPO (Shao et al., 2024, arXiv:2402.03300).

    Its relatives (DAPO, Dr. GRPO, GSPO, RLOO, REINFORCE++, CISPO) are configs: any of them
    works with this learner.

    Args:
        rl_cluster: Samples and trains.
        algo_config: The algorithm's settings.
        reward_fns: One function or several; see :mod:`tunix.rl.scoring.rewards`.
        metric_fns: Further metrics of every rollout.

    Raises:
        ConfigError: If ``beta`` is not 0 and there is no reference policy, or the overlong buffer
            begins where no completion comes.
    """

    def __init__(
        self,
        rl_cluster: rl_cluster.RLCluster,
        algo_config: ConfigT,
        reward_fns: RewardFn | Sequence[RewardFn],
        metric_fns: Sequence[MetricFn] | None = None,
    ):
        problems = []
        if algo_config.beta != 0.0 and not rl_cluster.has_reference:
            problems.append(no_reference(algo_config.beta))
        if algo_config.overlong is not None:
            longest = rl_cluster.config.rollout(rl_learner.Mode.TRAIN).max_tokens_to_generate
            problems += algo_config.overlong.problems_in(longest)
        if problems:
            raise config_lib.ConfigError(type(self).__name__, problems)
        super().__init__(rl_cluster, algo_config, reward_fns, metric_fns)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads ``ref_logps``."""
        return self.algo_config.loss_beta != 0.0

    @property
    def skips_dead_sequences(self) -> bool:
        """Whether a sequence of advantage 0 is known to have no loss and no gradient."""
        return self.algo_config.skips_dead_sequences

    def loss_fn(self, model: nnx.Module, batch: common.PolicyBatch) -> loss_output.LossOutput:
        """Return the GRPO loss of one micro-batch."""
        return grpo_loss.grpo_loss(model, batch, config=self.algo_config)

    def make_collector(self) -> collector.Collector:
        """Return how the groups of a step come about: without dead ones where that is asked for."""
        if self.algo_config.dynamic_sampling:
            return dynamic.DynamicCollector(self.algo_config.max_sampling_rounds)
        return super().make_collector()

    def shape_rewards(self, scored: experience.Scored) -> experience.Scored:
        """Return the completions with the reward of their length added, if there is one."""
        overlong = self.algo_config.overlong
        if overlong is None:
            return scored
        return experience.with_length_penalty(
            scored, lambda lengths: overlong.penalty(lengths, self.max_completion_length)
        )

    def assign_credit(self, groups: list[trajectory.Group]) -> list[trajectory.Group]:
        """Return the groups with the KL charged where it goes, and whitened if asked for."""
        config = self.algo_config
        if config.reward_beta != 0.0:
            penalties = [
                config.reward_beta * own for own in self.kl_of_tokens(groups, config.kl_fn)
            ]
            if config.kl_placement == "reward":
                groups = credit.charge_rewards(groups, penalties, config.advantage_fn)
            else:
                groups = credit.charge_tokens(groups, penalties)
        if config.whiten_advantages:
            groups = credit.whitened(groups, mask_truncated=config.mask_truncated)
        return groups


def no_reference(beta: float) -> str:
    """Return what to say of a KL penalty without a reference policy."""
    return (
        f"beta is {beta}, but there is no reference policy: set beta to 0, give the cluster a "
        "reference model, or train LoRA adapters, whose base model is the reference"
    )


GrpoConfig = GRPOConfig
GrpoLearner = GRPOLearner


__getattr__ = reference_names.hints(__name__)
