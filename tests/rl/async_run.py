"""A short run of GRPO or PPO that is ahead of its trainer, on one device or on meshes.

Run as ``python -m tests.rl.async_run SETTINGS...``, each the JSON of arguments of :func:`train`;
a process of its own, to be killed or to see several devices. Prints where each run's models were.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import optax
from flax import nnx

from tests.rl import helpers, rollout_steps_test, split_run
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.collecting import ahead, source
from tunix.rl.grpo import grpo_learner
from tunix.rl.objectives import critic, shared_critic
from tunix.rl.ppo import ppo_learner

Role = rl_cluster.Role
LAYOUTS = {"one": dict, "colocated": split_run.colocated, "split": split_run.split}
DATA = [{"prompts": [f"{a}{b}" for b in "135"]} for a in "ABCDEFGH"]


def make_learner(directory, *, algorithm, layout="one", steps, every=1, is_lora=False, **settings):
    """Return a learner of ``grpo``, ``ppo``, or ``shared``: PPO with one backbone."""
    actor = helpers.tiny_decoder(vocab_size=64)
    if is_lora:
        lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    if algorithm == "shared":
        shared_critic.add_value_head(actor)
        settings["critic_backbone"] = "shared"
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=critic.create_critic_model(actor) if algorithm == "ppo" else None,
        reference=None if is_lora else helpers.tiny_decoder(vocab_size=64),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                # Not Adam: its first steps are the signs of gradients.
                actor_optimizer=optax.sgd(0.5, momentum=0.9),
                eval_every_n_steps=1000,
                pbar_description=None,
                max_steps=steps,
                **rollout_steps_test.run_settings(pathlib.Path(directory), every=every),
            ),
            rollout_config=helpers.ROLLOUT,
            role_to_mesh=LAYOUTS[layout](),
        ),
    )
    settings = {"num_generations": 3, "beta": 0.05, **settings}
    if algorithm == "grpo":
        config, learner = grpo_learner.GRPOConfig(**settings), grpo_learner.GRPOLearner
    else:
        config, learner = ppo_learner.PPOConfig(**settings), ppo_learner.PPOLearner
    return learner(cluster, config, helpers.share_of_odd_characters)


def train(directory, *, through_threads=False, **settings):
    """Train, and return the devices of actor and rollout and all weights of the actor.

    Args:
        directory: Where log and checkpoints go.
        through_threads: Whether rollouts come from the threads, even with none of them ahead.
        settings: See :func:`make_learner`.
    """
    learner = make_learner(directory, **settings)
    cluster, plain = learner.rl_cluster, source.RolloutSource
    if through_threads:
        source.RolloutSource = ahead.AheadSource
    try:
        learner.train(DATA)
        sampling = {d.id for x in jax.tree.leaves(cluster.rollout.weights()) for d in x.devices()}
    finally:
        source.RolloutSource = plain
        cluster.close()
    return {
        "actor": sorted(d.id for d in cluster._actor.place.devices),
        "rollout": sorted(sampling),
        "weights": [
            np.asarray(x).ravel().tolist() for x in cluster.actor_trainer.state.params.values()
        ],
    }


if __name__ == "__main__":
    print(json.dumps([train(**json.loads(settings)) for settings in sys.argv[1:]]))
