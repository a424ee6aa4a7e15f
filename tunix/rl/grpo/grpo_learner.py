"""Group-relative policy optimisation: every completion is compared with its prompt's others."""

from collections.abc import Sequence

from flax import nnx

from tunix.rl import common, rewards, rl_cluster, rl_learner
from tunix.rl.grpo import grpo_config, grpo_loss
from tunix.sft import loss_output
from tunix.utils import config as config_lib

GRPOConfig = grpo_config.GRPOConfig
RewardFn = rewards.RewardFn
MetricFn = rl_learner.MetricFn
TrainingInputT = rl_learner.TrainingInputT


class GRPOLearner(rl_learner.RLLearner[grpo_config.GRPOConfig]):
    """Trains the actor of a cluster with GRPO (Shao et al., 2024, arXiv:2402.03300).

    Args:
        rl_cluster: Samples and trains.
        algo_config: The algorithm's settings.
        reward_fns: One function or several; see :mod:`tunix.rl.rewards`.
        metric_fns: Further metrics of every rollout.

    Raises:
        ConfigError: If ``beta`` is not 0 and there is no reference policy.
    """

    def __init__(
        self,
        rl_cluster: rl_cluster.RLCluster,
        algo_config: grpo_config.GRPOConfig,
        reward_fns: RewardFn | Sequence[RewardFn],
        metric_fns: Sequence[MetricFn] | None = None,
    ):
        if algo_config.beta != 0.0 and not rl_cluster.has_reference:
            raise config_lib.ConfigError(
                "GRPOLearner",
                [
                    f"beta is {algo_config.beta}, but there is no reference policy: set beta to 0, "
                    "give the cluster a reference model, or train LoRA adapters, whose base model "
                    "is the reference"
                ],
            )
        super().__init__(rl_cluster, algo_config, reward_fns, metric_fns)

    @property
    def num_generations(self) -> int:
        """Completions sampled per prompt."""
        return self.algo_config.num_generations

    @property
    def num_iterations(self) -> int:
        """How often every rollout is trained on."""
        return self.algo_config.num_iterations

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads ``ref_logps``."""
        return self.algo_config.beta != 0.0

    @property
    def skips_dead_sequences(self) -> bool:
        """Whether a sequence of advantage 0 is known to have no loss and no gradient."""
        return self.algo_config.skips_dead_sequences

    def loss_fn(self, model: nnx.Module, batch: common.PolicyBatch) -> loss_output.LossOutput:
        """Return the GRPO loss of one micro-batch."""
        return grpo_loss.grpo_loss(model, batch, config=self.algo_config)
