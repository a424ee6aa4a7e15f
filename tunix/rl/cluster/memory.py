"""How much memory reinforcement learning will take, said before the first rollout."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from tunix.rl import rl_learner
from tunix.sft import memory_estimate


def estimate(learner: rl_learner.RLLearner[Any]) -> memory_estimate.MemoryEstimate:
    """Return what updates take.

    Actor and critic are updated in turn: of gradients and activations the larger count. What
    ``offload_to_cpu`` keeps on the host while the actor is updated is not counted.
    """
    cluster = learner.rl_cluster
    shape = learner.batch_settings.shape
    rows, length = shape.num_rows, shape.row_length
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
