"""How much memory reinforcement learning will take, said before the first rollout."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from tunix.rl import packing, rl_learner
from tunix.sft import memory_estimate


def estimate(
    learner: rl_learner.RLLearner[Any], num_prompts: int
) -> memory_estimate.MemoryEstimate:
    """Return what updates on rollouts of so many prompts take, all completions at their longest.

    Actor and critic are updated in turn: of gradients and activations the larger count. What
    ``offload_to_cpu`` keeps on the host while the actor is updated is not counted.
    """
    cluster = learner.rl_cluster
    rows, length = _shape_of_micro_batch(learner, num_prompts)
    found = cluster.actor_trainer.memory_estimate(rows, length)
    if cluster.config.offload_to_cpu:
        return found
    if cluster.has_critic:
        critic = cluster.critic_trainer.memory_estimate(rows, length)
        found = dataclasses.replace(
            found,
            trained=found.trained + critic.trained,
            frozen=found.frozen + critic.frozen,
            optimizer=found.optimizer + critic.optimizer,
            gradients=max(found.gradients, critic.gradients),
            activations=max(found.activations, critic.activations),
        )
    others = _arrays_of_others(learner)
    return dataclasses.replace(
        found,
        frozen=found.frozen + memory_estimate.num_bytes(others),
        sampling=cluster.rollout.num_bytes(),
    )


def _arrays_of_others(learner: rl_learner.RLLearner[Any]) -> list[jax.Array]:
    """Return the arrays of reference and reward model that are not the actor's."""
    cluster = learner.rl_cluster
    worker = cluster.inference_worker
    mine = {id(leaf) for leaf in jax.tree.leaves(nnx.state(cluster.actor_trainer.model))}
    found = {
        id(leaf): leaf
        for role in worker.places
        for leaf in jax.tree.leaves(nnx.state(worker.get_model(role)))
    }
    return [leaf for key, leaf in found.items() if key not in mine]


def _shape_of_micro_batch(learner: rl_learner.RLLearner[Any], num_prompts: int) -> tuple[int, int]:
    """Return rows and length of the largest micro-batch that such a rollout can have."""
    training, rollout = learner.rl_cluster.config.training_config, learner.rollout_config
    num_groups = min(training.mini_batch_size or num_prompts, num_prompts)
    settings = learner.batch_settings(num_groups)
    num_groups = min(settings.micro_batch_size, num_groups)
    prompt = np.zeros(rollout.max_prompt_length, np.int32)
    completion = np.zeros(rollout.max_tokens_to_generate, np.int32)
    count = learner.num_generations
    groups = [
        packing.PackGroup(
            prompt=prompt,
            completions=[completion] * count,
            indices=range(i * count, (i + 1) * count),
        )
        for i in range(num_groups)
    ]
    layout = settings.layout_fn(
        groups,
        num_sequences=num_groups * count,
        max_completion_length=settings.max_completion_length,
        row_length=settings.row_length,
    )
    rows, length = layout.tokens.shape
    return rows, length
