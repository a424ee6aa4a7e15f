"""The models that take part in reinforcement learning, where they live and what they do.

A learner tells the cluster what to sample, score and train; the cluster knows how.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from tunix.models import lora
from tunix.perf import span
from tunix.rl import common, roles
from tunix.rl import trainer as trainer_lib
from tunix.rl.cluster import cluster_build, cluster_parts, trained_role
from tunix.rl.cluster import cluster_config as cluster_config_lib
from tunix.rl.collecting import prompt_sampler
from tunix.rl.monitoring import metrics_buffer
from tunix.rl.objectives import critic as critic_lib
from tunix.rl.rollout import base_rollout
from tunix.sft.loop import step_handle
from tunix.tokenizers import tokenizer_adapter
from tunix.utils import reference_names

Role = roles.Role
Mode = roles.Mode
RLTrainingConfig = cluster_config_lib.RLTrainingConfig
ClusterConfig = cluster_config_lib.ClusterConfig


class RLCluster:
    """Actor, reference and rollout, ready to sample, score and train.

    Args:
        actor: The policy that is trained: its LoRA adapters if it has any, else all of it.
        critic: Says what states are worth, and is trained, too; see
            :func:`tunix.rl.objectives.critic.create_critic_model`. PPO needs one.
        reference: The policy to stay close to. Under LoRA it may be left out: the actor
            without its adapters takes its place.
        reward: A reward model; :meth:`get_rewards` is then a reward function.
        tokenizer: Anything that :class:`TokenizerAdapter` wraps.
        cluster_config: Settings.

    Raises:
        ConfigError: If the models do not go together.
        ShardingError: If a mesh cannot hold a model.
    """

    def __init__(
        self,
        *,
        actor: nnx.Module,
        critic: nnx.Module | None = None,
        reference: nnx.Module | None = None,
        reward: nnx.Module | None = None,
        tokenizer: Any,
        cluster_config: ClusterConfig,
    ):
        self.config = cluster_config
        self.tokenizer = tokenizer_adapter.TokenizerAdapter(tokenizer)
        cluster_build.place_models(actor, critic, reference, reward, config=cluster_config)
        self._actor, self._critic = cluster_build.trained_roles(actor, critic, cluster_config)
        self._has_own_reference = reference is not None
        self.inference_worker = cluster_build.make_worker(actor, reference, reward, cluster_config)
        # Made last: a trainer that resumed has put the restored weights into the model.
        self.rollout, self._sync, self._residency = cluster_build.make_rollout(
            self._actor, self._critic, self.inference_worker, self.tokenizer, cluster_config
        )
        self._sampler = prompt_sampler.PromptSampler(self.rollout, self.tokenizer, cluster_config)
        self._metrics = metrics_buffer.MetricsBuffer(
            self.actor_trainer.metrics_logger, cluster_config.training_config.metrics_prefix
        )
        self.bytes_synced = 0
        """Bytes that the rollout's devices received from others in the last sync."""

    @property
    def perf(self) -> span.SpanTimer:
        """Where the time goes."""
        return self.actor_trainer.perf_tracer

    @property
    def actor_trainer(self) -> trainer_lib.Trainer:
        """Trains the actor."""
        return self._actor.trainer

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic."""
        return self._critic is not None

    @property
    def critic_trainer(self) -> trainer_lib.Trainer:
        """Trains the critic.

        Raises:
            ValueError: If there is none.
        """
        return self._critic_role.trainer

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference policy: its own model, or the actor's base under LoRA."""
        return self._has_own_reference or lora.is_lora_enabled(self.actor_trainer.model)

    @property
    def has_reward_model(self) -> bool:
        """Whether there is a reward model."""
        return Role.REWARD.value in self.inference_worker.places

    @property
    def data_parallelism(self) -> int:
        """How many parts the rows of a batch are split into: a number that suits all roles."""
        trained = [self._actor] if self._critic is None else [self._actor, self._critic]
        places = [*(role.place for role in trained), *self.inference_worker.places.values()]
        return math.lcm(*(place.data_parallelism for place in places))

    def on_device(self, *used: Role) -> contextlib.AbstractContextManager[None]:
        """Have models on their devices in a ``with`` block; matters with ``offload_to_cpu``."""
        return self._residency.use(*(role.value for role in used))

    def sampling_key(self, mode: Mode, step: int, call: int = 0) -> PRNGKeyArray:
        """Return the key of a call that a step makes; equal for no two of them.

        Args:
            mode: What is sampled for.
            step: The step of the run, so that a resumed run draws what it would have drawn.
            call: Which call of this step.
        """
        return self._sampler.key(mode, step, call)

    def generate(
        self,
        prompts: prompt_sampler.Prompts,
        apply_chat_template: bool = False,
        mode: Mode = Mode.TRAIN,
        *,
        rollout_config: base_rollout.RolloutConfig | None = None,
        num_samples: int = 1,
        key: PRNGKeyArray | None = None,
    ) -> base_rollout.RolloutOutput:
        """Sample completions.

        Args:
            prompts: Texts, taken as they stand, or conversations for the chat template.
            apply_chat_template: Take a text as the user's message instead.
            mode: Which settings to sample with.
            rollout_config: Other settings than the mode's.
            num_samples: Completions per prompt.
            key: Decides every draw; by default each call draws differently.

        Raises:
            PromptError: Listing every prompt that is empty or longer than ``max_prompt_length``.
        """
        with self.on_device(Role.ROLLOUT):
            return self._sampler.generate(
                prompts,
                self.config.rollout(mode) if rollout_config is None else rollout_config,
                apply_chat_template=apply_chat_template,
                num_samples=num_samples,
                key=key,
            )

    def get_ref_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, " N"]:
        """Return the reference's log-probabilities of the predicted tokens.

        Raises:
            ValueError: If there is no reference.
        """
        if not self.has_reference:
            raise ValueError(
                "there is no reference policy: pass reference=..., or train LoRA adapters, whose "
                "base model is the reference"
            )
        is_actor = self.inference_worker.get_model("reference") is self.actor_trainer.model
        with self.on_device(Role.ACTOR if is_actor else Role.REFERENCE):
            return self._actor.place.fetch(self.inference_worker.get_ref_per_token_logps(batch))

    def get_old_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, " N"]:
        """Return the log-probabilities of the predicted tokens under the actor as it is now."""
        return self.compute_with_actor(common.token_logps, batch)

    def compute_with_actor(
        self, fn: Callable[..., Float[Array, " N"]], batch: common.PolicyBatch
    ) -> Float[Array, " N"]:
        """Return ``fn(actor, batch=batch)``, a number for every predicted token, no gradient."""
        with self.on_device(Role.ACTOR):
            return self._actor.compute(fn, batch)

    def get_values(self, batch: common.PolicyBatch) -> Float[Array, " N"]:
        """Return what the critic thinks of the state before each predicted token.

        Raises:
            ValueError: If there is no critic.
        """
        with self.on_device(Role.CRITIC):
            return self._critic_role.compute(critic_lib.token_values, batch)

    def get_rewards(
        self,
        prompt_ids: Sequence[Int[np.ndarray, " P"]],
        completion_ids: Sequence[Int[np.ndarray, " T"]],
    ) -> list[float]:
        """Return the reward model's score of every completion; a reward function by its form.

        Raises:
            ValueError: If there is no reward model.
        """
        with self.on_device(Role.REWARD):
            return self.inference_worker.get_rewards(prompt_ids, completion_ids)

    def update_critic(
        self, micro_batches: Sequence[common.PolicyBatch], *, weight: float = 0.0
    ) -> step_handle.StepHandle:
        """Take one optimizer step of the critic, see :meth:`update_actor`.

        Raises:
            ValueError: If there is no critic.
        """
        with self._residency.use(*cluster_parts.TRAINED_CRITIC):
            return self._critic_role.update(micro_batches, weight)

    def update_actor(
        self, micro_batches: Sequence[common.PolicyBatch], *, weight: float = 0.0
    ) -> step_handle.StepHandle:
        """Take one optimizer step, without waiting for it.

        Args:
            micro_batches: What is learned from.
            weight: That of trajectories known to have neither loss nor gradient.
        """
        with self._residency.use(*cluster_parts.TRAINED_ACTOR):
            return self._actor.update(micro_batches, weight)

    def copy_weights(self) -> nnx.State:
        """Return the actor's weights as they are now, for a later :meth:`sync_weights`."""
        with self.on_device(Role.ACTOR):
            return self.actor_trainer.copy_weights()

    def sync_weights(self, weights: nnx.State | None = None) -> None:
        """Give the rollout the actor's weights: those of now, or a copy made earlier.

        Raises:
            WeightSyncError: If ``verify_weight_sync`` is set and the rollout has others then.
        """
        rollout, used = cluster_parts.ROLLOUT, [cluster_parts.ACTOR] if weights is None else []
        replacing = rollout
        if self._sync.moves_part(self.rollout):
            used, replacing = [*used, rollout], None
        with self._residency.use(*used, replacing=replacing):
            self.bytes_synced = self._sync(self.rollout, weights)
            if self.config.verify_weight_sync:
                self._sync.check(self.rollout, weights)

    def buffer_metrics(
        self, metrics: Mapping[str, tuple[Any, Callable] | float], mode: Mode = Mode.TRAIN
    ) -> None:
        """Collect values until the step is logged.

        Args:
            metrics: Numbers, or ``(value, reduce)`` with a function of all values of a step.
            mode: What they were measured on.
        """
        self._metrics.add(metrics, mode)

    def log_metrics(self, mode: Mode, step: int) -> dict[str, float]:
        """Log what was collected, forget it, and return it by name."""
        return self._metrics.log(mode, step)

    def set_jit(self, jit: bool) -> None:
        """Compile the updates, or run every operation on its own."""
        for role in filter(None, (self._actor, self._critic)):
            role.trainer.set_jit(jit)

    def save_at(self, position: Mapping[str, Any], *, force: bool) -> bool:
        """Start to save all that is trained, and return whether this step is saved.

        Args:
            position: Where the learner stands; JSON must be able to hold it.
            force: Save even where the options would not.
        """
        if self._critic is not None:
            # Complete before the actor's begins: what an actor's checkpoint needs is then there.
            with self._residency.use(*cluster_parts.TRAINED_CRITIC):
                self.critic_trainer.save_at(position, force=True)
                self.critic_trainer.checkpoint_manager.wait_until_finished()
        with self._residency.use(*cluster_parts.TRAINED_ACTOR):
            return self.actor_trainer.save_at(position, force=force)

    def require_learned(self) -> None:
        """Raise ``DivergedError`` if weights, or the losses at the end, are not finite."""
        if self._critic is not None:
            with self._residency.use(*cluster_parts.TRAINED_CRITIC):
                self.critic_trainer.require_learned()
        with self._residency.use(*cluster_parts.TRAINED_ACTOR):
            self.actor_trainer.require_learned()

    def close(self) -> None:
        """Finish all writing and leave what is trained on its devices.

        The cluster cannot be used afterwards.
        """
        self.actor_trainer.wait()
        if self._critic is not None:
            # While both are written, the critic has one more, which no run continues from.
            saved = self.actor_trainer.checkpoint_manager
            saved.wait_until_finished()
            self.critic_trainer.checkpoint_manager.keep_only(saved.all_steps())
            self.critic_trainer.close()
        self.actor_trainer.close()
        with self.on_device(Role.ACTOR, Role.CRITIC):
            pass

    @property
    def _critic_role(self) -> trained_role.TrainedRole:
        if self._critic is None:
            raise ValueError("there is no critic; pass critic=create_critic_model(actor)")
        return self._critic


__getattr__ = reference_names.hints(__name__)
