"""Trains actor and critic on one and on four virtual devices, and prints the logs as JSON.

Run as ``python -m tests.rl.ppo.mesh_run``; a process of its own, because the number of devices is
fixed when JAX starts.
"""

import json

import jax
import optax
from flax import nnx

from tests.rl import helpers
from tunix.rl import rl_cluster
from tunix.rl.objectives import critic
from tunix.rl.ppo import ppo_learner
from tunix.sft import sharding_utils

METRICS = ("reward", "grad_norm", "critic/loss", "critic/grad_norm")


def run(mesh):
    actor = helpers.tiny_decoder(vocab_size=64)
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic.create_critic_model(actor),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-3),
                eval_every_n_steps=1000,
                pbar_description=None,
            ),
            rollout_config=helpers.ROLLOUT,
            role_to_mesh={} if mesh is None else dict.fromkeys(rl_cluster.Role, mesh),
        ),
    )
    config = ppo_learner.PPOConfig(beta=0.0, num_generations=3, whiten_rewards=True)
    learner = ppo_learner.PPOLearner(cluster, config, helpers.share_of_odd_characters)
    learner.train([{"prompts": helpers.PROMPTS[:3]}] * 2)
    found = sharding_utils.mesh_of(nnx.state(cluster.critic_trainer.model))
    return {
        "devices": 1 if found is None else found.size,
        **{name: helpers.history(cluster, name).tolist() for name in METRICS},
    }


if __name__ == "__main__":
    print(json.dumps([run(None), run(jax.make_mesh((2, 2), ("fsdp", "tp")))]))
