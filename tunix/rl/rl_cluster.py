"""The models that take part in reinforcement learning, where they live and what they do.

A learner tells the cluster what to sample, score and train; the cluster knows how.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from tunix.generate import tokenizer_adapter
from tunix.models import lora
from tunix.models.transformer import decoder, sharding
from tunix.perf import span
from tunix.rl import cluster_config as cluster_config_lib
from tunix.rl import common, critic_trainer, roles, rollout_text, trainer
from tunix.rl import critic as critic_lib
from tunix.rl.inference import inference_worker
from tunix.rl.rollout import base_rollout
from tunix.sft import sharding_utils, step_handle
from tunix.utils import config as config_lib

Role = roles.Role
Mode = roles.Mode
RLTrainingConfig = cluster_config_lib.RLTrainingConfig
ClusterConfig = cluster_config_lib.ClusterConfig

_KEY_DOMAINS = {Mode.TRAIN: 0, Mode.EVAL: 1}
_UNNUMBERED_CALLS = 2
"""Third domain of sampling keys: calls of ``generate`` without a key."""


class RLCluster:
    """Actor, reference and rollout, ready to sample, score and train.

    Args:
        actor: The policy that is trained: its LoRA adapters if it has any, else all of it.
        critic: Says what states are worth, and is trained, too; see
            :func:`tunix.rl.critic.create_critic_model`. PPO needs one.
        reference: The policy to stay close to. Under LoRA it may be left out: the actor
            without its adapters takes its place.
        tokenizer: Anything that :class:`TokenizerAdapter` wraps.
        cluster_config: Settings.

    Raises:
        ConfigError: If the models do not go together.
    """

    def __init__(
        self,
        *,
        actor: nnx.Module,
        critic: nnx.Module | None = None,
        reference: nnx.Module | None = None,
        tokenizer: Any,
        cluster_config: ClusterConfig,
    ):
        _check_models(actor, reference)
        self.config = cluster_config
        self.tokenizer = tokenizer_adapter.TokenizerAdapter(tokenizer)
        if cluster_config.mesh is not None and cluster_config.mesh.size > 1:
            for model in filter(None, (actor, critic, reference)):
                _move_to(model, cluster_config.mesh)
        config = cluster_config.training_config
        self.actor_trainer = trainer.Trainer(actor, config.actor_optimizer, config)
        self._critic_trainer = (
            None
            if critic is None
            else critic_trainer.make_critic_trainer(critic, config, self.actor_trainer)
        )
        self._is_lora = lora.is_lora_enabled(actor)
        self._has_own_reference = reference is not None
        self.inference_worker = inference_worker.InferenceWorker(
            {"reference": actor if reference is None else reference},
            adapters=reference is not None,
        )
        # Made last: a trainer that resumed has put the restored weights into the model.
        self.rollout = cluster_config.engine_class(
            model=actor,
            tokenizer=self.tokenizer,
            cache_size=max(cluster_config.rollout(mode).cache_size for mode in Mode),
            max_slots=config.rollout_micro_batch_size,
        )
        self._base_key = jax.random.key(cluster_config.rollout(Mode.TRAIN).seed)
        self._calls = itertools.count()
        self._buffered: dict[Mode, dict[str, tuple[list[Any], Callable]]] = {m: {} for m in Mode}

    @property
    def perf(self) -> span.SpanTimer:
        """Where the time goes."""
        return self.actor_trainer.perf_tracer

    @property
    def has_critic(self) -> bool:
        """Whether there is a critic."""
        return self._critic_trainer is not None

    @property
    def critic_trainer(self) -> trainer.Trainer:
        """Trains the critic.

        Raises:
            ValueError: If there is none.
        """
        if self._critic_trainer is None:
            raise ValueError("there is no critic; pass critic=create_critic_model(actor)")
        return self._critic_trainer

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference policy: its own model, or the actor's base under LoRA."""
        return self._has_own_reference or self._is_lora

    @property
    def data_parallelism(self) -> int:
        """How many parts the rows of a batch are split into."""
        mesh = sharding_utils.mesh_of(nnx.state(self.actor_trainer.model))
        axes = self.config.training_config.data_sharding_axis
        return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in axes]))

    def sampling_key(self, mode: Mode, step: int, call: int = 0) -> PRNGKeyArray:
        """Return the key of a call that a step makes; equal for no two of them.

        Args:
            mode: What is sampled for.
            step: The step of the run, so that a resumed run draws what it would have drawn.
            call: Which call of this step.
        """
        key = jax.random.fold_in(self._base_key, _KEY_DOMAINS[mode])
        return jax.random.fold_in(jax.random.fold_in(key, step), call)

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[Mapping[str, str]]],
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
        config = self.config.rollout(mode) if rollout_config is None else rollout_config
        if key is None:
            domain = jax.random.fold_in(self._base_key, _UNNUMBERED_CALLS)
            key = jax.random.fold_in(domain, next(self._calls))
        encoded = rollout_text.encode_prompts(
            self.tokenizer,
            prompts,
            apply_chat_template=apply_chat_template,
            max_prompt_length=config.max_prompt_length,
        )
        completions = self.rollout.generate(
            [one.token_ids.tolist() for one in encoded], config, key=key, num_samples=num_samples
        )
        return base_rollout.RolloutOutput(
            prompts=[one.text for one in encoded],
            prompt_tokens=[one.token_ids for one in encoded],
            completions=completions,
            text=[rollout_text.completion_text(self.tokenizer, one) for one in completions],
            has_logprobs=config.return_logprobs,
        )

    def get_ref_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, "S C"]:
        """Return the reference's log-probabilities of the completion tokens.

        Raises:
            ValueError: If there is no reference.
        """
        if not self.has_reference:
            raise ValueError(
                "there is no reference policy: pass reference=..., or train LoRA adapters, whose "
                "base model is the reference"
            )
        return self.inference_worker.get_ref_per_token_logps(batch)

    def get_old_per_token_logps(self, batch: common.PolicyBatch) -> Float[Array, "S C"]:
        """Return the log-probabilities of the completion tokens under the actor as it is now."""
        return self.actor_trainer.compute(common.token_logps, batch)

    def get_values(self, batch: common.PolicyBatch) -> Float[Array, "S C"]:
        """Return what the critic thinks of the state before each completion token.

        Raises:
            ValueError: If there is no critic.
        """
        return self.critic_trainer.compute(critic_lib.token_values, batch)

    def update_critic(self, micro_batches: Sequence[common.PolicyBatch]) -> step_handle.StepHandle:
        """Take one optimizer step of the critic, without waiting for it.

        Raises:
            ValueError: If there is no critic.
        """
        return self.critic_trainer.step_on([{"batch": batch} for batch in micro_batches])

    def update_actor(self, micro_batches: Sequence[common.PolicyBatch]) -> step_handle.StepHandle:
        """Take one optimizer step on the micro-batches, without waiting for it."""
        return self.actor_trainer.step_on([{"batch": batch} for batch in micro_batches])

    def sync_weights(self) -> None:
        """Give the rollout the actor's weights."""
        self.rollout.update_params(self.actor_trainer.model)

    def buffer_metrics(
        self, metrics: Mapping[str, tuple[Any, Callable] | float], mode: Mode = Mode.TRAIN
    ) -> None:
        """Collect values until the step is logged.

        Args:
            metrics: Numbers, or ``(value, reduce)`` with a function of all values of a step.
            mode: What they were measured on.
        """
        for name, value in metrics.items():
            value, reduce = value if isinstance(value, tuple) else (value, np.mean)
            self._buffered[mode].setdefault(name, ([], reduce))[0].append(value)

    def log_metrics(self, mode: Mode, step: int) -> dict[str, float]:
        """Log what was collected, forget it, and return it by name."""
        logger = self.actor_trainer.metrics_logger
        prefix = self.config.training_config.metrics_prefix
        logged = {
            name: float(reduce(np.asarray(values)))
            for name, (values, reduce) in self._buffered[mode].items()
        }
        for name, value in logged.items():
            logger.log(prefix, name, value, mode.value, step)
        self._buffered[mode] = {}
        return logged

    def set_jit(self, jit: bool) -> None:
        """Compile the updates, or run every operation on its own."""
        self.actor_trainer.set_jit(jit)
        if self._critic_trainer is not None:
            self._critic_trainer.set_jit(jit)

    def save_at(self, position: Mapping[str, Any], *, force: bool) -> bool:
        """Start to save all that is trained, and return whether this step is saved.

        Args:
            position: Where the learner stands; JSON must be able to hold it.
            force: Save even where the options would not.
        """
        if self._critic_trainer is not None:
            # Complete before the actor's begins: what an actor's checkpoint needs is then there.
            self._critic_trainer.save_at(position, force=True)
            self._critic_trainer.checkpoint_manager.wait_until_finished()
        return self.actor_trainer.save_at(position, force=force)

    def close(self) -> None:
        """Finish all writing; the cluster cannot be used afterwards."""
        if self._critic_trainer is not None:
            self._critic_trainer.close()
        self.actor_trainer.close()


def _check_models(actor: nnx.Module, reference: nnx.Module | None) -> None:
    problems = []
    if reference is actor:
        problems.append(
            "reference is the actor itself and would change with it; leave it out (LoRA: the base "
            "model is used) or pass a copy"
        )
    if isinstance(actor, decoder.Decoder) and isinstance(reference, decoder.Decoder):
        sizes = (actor.num_embed, reference.num_embed)
        if sizes[0] != sizes[1]:
            problems.append(f"actor and reference have vocabularies of {sizes[0]} and {sizes[1]}")
    if problems:
        raise config_lib.ConfigError("RLCluster", problems)


def _move_to(model: nnx.Module, mesh: Mesh) -> None:
    """Move a model to a mesh, unless it lives there already."""
    if sharding_utils.mesh_of(nnx.state(model)) != mesh:
        sharding.shard_model(model, mesh)
