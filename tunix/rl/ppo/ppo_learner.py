"""Proximal policy optimisation: a critic says what each token was worth."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tunix.models.transformer import decoder
from tunix.rl import common, rl_cluster, rl_learner, trajectory
from tunix.rl.grpo import grpo_learner
from tunix.rl.objectives import advantages, credit, critic, policy_objective, shared_critic
from tunix.rl.ppo import ppo_config
from tunix.rl.scoring import rewards
from tunix.sft import loss_output
from tunix.sft.loop import step_handle
from tunix.utils import config as config_lib
from tunix.utils import reference_names

PPOConfig = ppo_config.PPOConfig
RewardFn = rewards.RewardFn
MetricFn = rl_learner.MetricFn
TrainingInputT = rl_learner.TrainingInputT


class PPOLearner(rl_learner.RLLearner[ppo_config.PPOConfig]):
    """Trains actor and critic of a cluster with PPO (Schulman et al., 2017, arXiv:1707.06347).

    The reward of a completion comes at its last token; every token pays ``beta`` times its KL
    to the reference. Advantages are generalised estimates over these rewards and the critic's
    values at the rollout; mini-batches and epochs (``num_iterations``) then train both models,
    or the one model that is both (``critic_backbone="shared"``).

    Args:
        rl_cluster: Samples and trains; has a critic, or an actor with a value head.
        ppo_config: The algorithm's settings.
        reward_fns: One function or several; see :mod:`tunix.rl.scoring.rewards`. ``None`` takes the
            scores of the cluster's reward model.
        metric_fns: Further metrics of every rollout.

    Raises:
        ConfigError: If the critic is not where the settings say, ``beta`` is not 0 and there is no
            reference, or nothing gives rewards.
    """

    def __init__(
        self,
        rl_cluster: rl_cluster.RLCluster,
        ppo_config: ppo_config.PPOConfig,
        reward_fns: RewardFn | Sequence[RewardFn] | None = None,
        metric_fns: Sequence[MetricFn] | None = None,
    ):
        problems = _critic_problems(rl_cluster, ppo_config)
        if ppo_config.beta != 0.0 and not rl_cluster.has_reference:
            problems.append(grpo_learner.no_reference(ppo_config.beta))
        if reward_fns is None and not rl_cluster.has_reward_model:
            problems.append("there are no rewards: give reward_fns, or the cluster a reward model")
        if problems:
            raise config_lib.ConfigError("PPOLearner", problems)
        scores = rl_cluster.get_rewards if reward_fns is None else reward_fns
        super().__init__(rl_cluster, ppo_config, scores, metric_fns)
        if not self._is_shared:
            rl_cluster.critic_trainer.with_loss_fn(
                functools.partial(critic.value_objective, clip_range=ppo_config.clip_range_value)
            )

    @property
    def advantage_fn(self) -> advantages.AdvantageFn:
        """What completions are compared with before tokens are: nothing."""
        return advantages.unchanged

    def loss_fn(self, model: nnx.Module, batch: common.PolicyBatch) -> loss_output.LossOutput:
        """Return the actor's loss of one micro-batch, and the critic's where they share it."""
        if self._is_shared:
            assert isinstance(model, decoder.Decoder)  # or it would have no value head
            return shared_critic.joint_objective(model, batch, config=self.algo_config)
        return policy_objective.policy_objective(model, batch, config=self.algo_config)

    def assign_credit(self, groups: list[trajectory.Group]) -> list[trajectory.Group]:
        """Return the groups with values, returns and the advantage of every token."""
        config = self.algo_config
        with self.rl_cluster.perf.span("values"):
            values = self.per_token(groups, self._values)
        rewards = [
            one.reward_of_tokens - penalty
            for one, penalty in zip(credit.members_of(groups), self._penalties(groups), strict=True)
        ]
        truncation = {"mask_truncated": config.mask_truncated}
        if config.whiten_rewards:
            rewards = credit.whiten(groups, rewards, keep_mean=True, **truncation)
        estimates = [
            config.token_advantage_fn(own, value, gamma=config.gamma, gae_lambda=config.gae_lambda)
            for own, value in zip(rewards, values, strict=True)
        ]
        groups = credit.with_values(groups, values, [np.asarray(x) for _, x in estimates])
        groups = credit.with_token_advantages(groups, [np.asarray(x) for x, _ in estimates])
        return credit.whitened(groups, **truncation) if config.whiten_advantages else groups

    def update(
        self, micro_batches: Sequence[common.PolicyBatch], *, weight: float
    ) -> list[step_handle.StepHandle]:
        """Take one optimizer step of the critic and one of the actor, together if they share it."""
        if self._is_shared:
            return super().update(micro_batches, weight=weight)
        learned = self.rl_cluster.update_critic(micro_batches)
        named = {f"critic/{name}": value for name, value in learned.metrics.items()}
        return [
            dataclasses.replace(learned, metrics=named),
            *super().update(micro_batches, weight=weight),
        ]

    @property
    def _is_shared(self) -> bool:
        return self.algo_config.critic_backbone == "shared"

    def _values(self, batch: common.PolicyBatch) -> Float[Array, " N"]:
        if self._is_shared:
            return self.rl_cluster.compute_with_actor(shared_critic.token_values, batch)
        return self.rl_cluster.get_values(batch)

    def _penalties(self, groups: list[trajectory.Group]) -> Sequence[Float[np.ndarray, " N"]]:
        """Return what every token pays for its distance to the reference."""
        beta = self.algo_config.beta
        if beta == 0.0:
            return [np.zeros(one.num_trained, np.float32) for one in credit.members_of(groups)]
        return [beta * own for own in self.kl_of_tokens(groups, self.algo_config.kl_fn)]


def _critic_problems(cluster: rl_cluster.RLCluster, config: ppo_config.PPOConfig) -> list[str]:
    """Return what is wrong with the critic that the cluster has, or has not."""
    on_actor = shared_critic.has_value_head(cluster.actor_trainer.model)
    if config.critic_backbone == "separate":
        if cluster.has_critic:
            return []
        hint = "; the actor has a value head: set critic_backbone to 'shared'" if on_actor else ""
        return [f"there is no critic: give the cluster critic=create_critic_model(actor){hint}"]
    problems = []
    if not on_actor:
        problems.append(
            "critic_backbone is 'shared', but the actor has no value head: call "
            "shared_critic.add_value_head(actor) before the cluster is made"
        )
    if cluster.has_critic:
        problems.append("critic_backbone is 'shared', but the cluster has a critic; leave it out")
    return problems


PpoConfig = PPOConfig
PpoLearner = PPOLearner


__getattr__ = reference_names.hints(__name__)
