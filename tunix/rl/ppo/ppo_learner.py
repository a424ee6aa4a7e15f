"""Proximal policy optimisation: a critic says what each token was worth."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tunix.models.transformer import decoder
from tunix.rl import (
    advantages,
    common,
    credit,
    critic,
    policy_objective,
    rewards,
    rl_cluster,
    rl_learner,
    shared_critic,
    token_advantages,
    trajectory,
)
from tunix.rl.grpo import grpo_learner
from tunix.rl.ppo import ppo_config
from tunix.sft import loss_output, step_handle
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
        reward_fns: One function or several; see :mod:`tunix.rl.rewards`. ``None`` takes the
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
        config, width = self.algo_config, self.max_completion_length
        with self.rl_cluster.perf.span("values"):
            values = self.per_token(groups, self._values)
        mask = credit.sampled_mask(groups, width)
        scores = np.asarray([m.reward for m in credit.members_of(groups)], np.float32)
        token_rewards = token_advantages.token_rewards(scores, self._penalties(groups), mask)
        if config.whiten_rewards:
            trained = credit.trained_mask(groups, width, mask_truncated=config.mask_truncated)
            token_rewards = token_advantages.whiten(token_rewards, trained, keep_mean=True)
        found, returns = config.token_advantage_fn(
            token_rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        groups = credit.with_values(groups, values, np.asarray(returns))
        groups = credit.with_token_advantages(groups, np.asarray(found))
        if not config.whiten_advantages:
            return groups
        return credit.whitened(groups, width, mask_truncated=config.mask_truncated)

    def update(self, micro_batches: Sequence[common.PolicyBatch]) -> list[step_handle.StepHandle]:
        """Take one optimizer step of the critic and one of the actor, together if they share it."""
        if self._is_shared:
            return [self.rl_cluster.update_actor(micro_batches)]
        learned = self.rl_cluster.update_critic(micro_batches)
        named = {f"critic/{name}": value for name, value in learned.metrics.items()}
        return [
            dataclasses.replace(learned, metrics=named),
            self.rl_cluster.update_actor(micro_batches),
        ]

    @property
    def _is_shared(self) -> bool:
        return self.algo_config.critic_backbone == "shared"

    def _values(self, batch: common.PolicyBatch) -> Float[Array, "S C"]:
        if self._is_shared:
            return self.rl_cluster.compute_with_actor(shared_critic.token_values, batch)
        return self.rl_cluster.get_values(batch)

    def _penalties(self, groups: list[trajectory.Group]) -> Float[np.ndarray, "S C"]:
        """Return what every token pays for its distance to the reference."""
        beta = self.algo_config.beta
        if beta == 0.0:
            return np.zeros(
                (len(credit.members_of(groups)), self.max_completion_length), np.float32
            )
        with self.rl_cluster.perf.span("reference"):
            ref_logps = self.per_token(groups, self.rl_cluster.get_ref_per_token_logps)
        return beta * self.logged_kl(groups, ref_logps, self.algo_config.kl_fn)


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
