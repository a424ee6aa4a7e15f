"""Trains with actor and rollout on a device each, and starts again from the checkpoint.

Run as ``python -m tests.rl.split_resume_run DIRECTORY``; prints how far the rollout's weights are
from the actor's, before the first step and for comparison.
"""

import json
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from tests.rl import helpers
from tunix.rl import rl_cluster

Role = rl_cluster.Role


def make_cluster(directory):
    first, second = jax.devices()[:2]
    return rl_cluster.RLCluster(
        actor=helpers.tiny_decoder(num_layers=1),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={
                Role.ACTOR: Mesh(np.array([first]), ("fsdp",)),
                Role.ROLLOUT: Mesh(np.array([second]), ("fsdp",)),
            },
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(2e-2),
                eval_every_n_steps=1000,
                pbar_description=None,
                checkpoint_root_directory=directory,
                checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=1),
            ),
            rollout_config=helpers.ROLLOUT,
        ),
    )


def embedding(state):
    (value,) = (v for path, v in nnx.to_flat_state(state) if path == ("embed_tokens", "w"))
    return np.asarray(value[...])


def main(directory):
    cluster = make_cluster(directory)
    learner = helpers.make_learner(cluster, helpers.share_of_odd_characters)
    learner.train([{"prompts": helpers.PROMPTS}])
    trained = embedding(nnx.state(cluster.actor_trainer.model))
    cluster.close()
    sampled = embedding(make_cluster(directory).rollout.weights())
    untrained = embedding(nnx.state(helpers.tiny_decoder(num_layers=1)))
    print(
        json.dumps(
            {
                "from_trained": float(np.abs(sampled - trained).max()),
                "from_untrained": float(np.abs(sampled - untrained).max()),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
