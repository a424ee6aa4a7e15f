"""Small models and rollouts that the tests of reinforcement learning share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder
from tunix.rl import rl_cluster, trajectory
from tunix.rl.batches import batching, packing
from tunix.rl.grpo import grpo_learner
from tunix.rl.objectives import aggregation
from tunix.rl.rollout import base_rollout

CONFIG = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=61,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    weight_tying=True,
    precision="exact",
)

SETTINGS = batching.BatchSettings(
    shape=packing.Shape(num_rows=6, row_length=48),
    max_completion_length=6,
    temperature=0.7,
    aggregate=aggregation.sequence_mean_token_mean,
    mask_truncated=False,
    skip_dead=False,
)


def tiny_decoder(seed=0, **changes):
    model = decoder.Decoder(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(seed))
    # Larger embeddings than at initialisation, so that distributions are not all uniform.
    model.embed_tokens.w[...] = 6.0 * model.embed_tokens.w[...]
    return model


def make_groups(advantages, *, seed=0, max_prompt=9, max_completion=6, vocab_size=61):
    """Return one group per row of advantages, with ragged prompts and completions."""
    rng = np.random.default_rng(seed)
    groups = []
    for row in advantages:
        members = []
        for advantage in row:
            length = int(rng.integers(1, max_completion + 1))
            members.append(
                {
                    "token_ids": rng.integers(0, vocab_size, length).astype(np.int32),
                    "logps": rng.uniform(-7.0, -2.0, length).astype(np.float32),
                    "finish_reason": "length" if length == max_completion else "stop",
                    "advantage": float(advantage),
                }
            )
        prompt = rng.integers(0, vocab_size, int(rng.integers(1, max_prompt + 1))).astype(np.int32)
        members = [
            trajectory.Trajectory.of_completion(prompt, versions=0, **member) for member in members
        ]
        groups.append(trajectory.Group(prompt="?", trajectories=members))
    return groups


def spans_of(prompt_ids, token_ids, version=0):
    """A prompt and a completion of which nothing more is known."""
    ids, logps = np.asarray(token_ids, np.int32), np.zeros(len(token_ids), np.float32)
    return trajectory.Trajectory.of_completion(prompt_ids, ids, logps, version).spans


def make_step(groups, *, on_policy=False, at_least_one=False, shape=(6, 48), **changes):
    rows, length = shape
    changes["shape"] = packing.Shape(num_rows=rows, row_length=length)
    settings = dataclasses.replace(SETTINGS, **changes)
    return batching.make_step_batches(
        groups, settings, on_policy=on_policy, at_least_one=at_least_one
    )


def one_batch(groups, **changes):
    (batch,) = make_step(groups, **changes).batches
    return jax.tree.map(jnp.asarray, batch)


def one_by_one(groups, **changes):
    """The plain layout, to test the packed one against: a chunk of one row for each trajectory."""
    alone = [dataclasses.replace(g, trajectories=[one]) for g in groups for one in g.trajectories]
    return [one_batch([group], shape=(1, 16), **changes) for group in alone]


def per_trajectory(groups, fn, **changes):
    """What a function of a batch says of each trajectory's tokens."""
    step = make_step(groups, **changes)
    return step.per_trajectory(lambda batch: fn(jax.tree.map(jnp.asarray, batch)))


def naive_logps(model, groups, temperature, **options):
    """Log-probabilities of every completion, each from a forward pass of its own."""
    rows = []
    for group in groups:
        for member in group.trajectories:
            ids = np.concatenate([group.prompt_ids, member.trained_ids])[None]
            logits = np.asarray(model(jnp.asarray(ids), **options)[0], np.float64)[0] / temperature
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            start = len(group.prompt_ids) - 1
            at = np.arange(start, start + len(member.trained_ids))
            rows.append(log_probs[at, member.trained_ids])
    return rows


class CharTokenizer:
    """One id per character from space on; 0 ends a text and pads it, 1 begins it."""

    def encode(self, text):
        return [ord(c) - 30 for c in text]

    def decode(self, ids):
        return "".join(chr(i + 30) for i in ids if i > 1)

    def bos_id(self):
        return 1

    def eos_id(self):
        return 0

    def pad_id(self):
        return 0


PROMPTS = ["AB", "CDEF", "3", "9:9"]
ROLLOUT = base_rollout.RolloutConfig(max_tokens_to_generate=6, max_prompt_length=8, temperature=0.8)


def share_of_fives(completions, **columns):
    """Reward with many values: half of the groups would be dead under a reward of 0 or 1."""
    return [text.count("5") / 6 for text in completions]


def share_of_odd_characters(completions, **columns):
    """Reward that an untrained model earns about half of."""
    return [sum(ord(c) % 2 for c in text) / 6 for text in completions]


def make_cluster(
    actor=None,
    *,
    critic=None,
    reference=None,
    rollout=ROLLOUT,
    rollout_engine="vanilla",
    learning_rate=2e-2,
    **training,
):
    settings = {
        "eval_every_n_steps": 1000,
        "pbar_description": None,
        "actor_optimizer": optax.adam(learning_rate),
        **training,
    }
    return rl_cluster.RLCluster(
        actor=tiny_decoder() if actor is None else actor,
        critic=critic,
        reference=reference,
        tokenizer=CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(**settings),
            rollout_config=rollout,
            rollout_engine=rollout_engine,
        ),
    )


def make_learner(cluster, reward_fns=share_of_fives, *, metric_fns=None, **settings):
    config = grpo_learner.GRPOConfig(**{"num_generations": 4, "beta": 0.0, **settings})
    return grpo_learner.GRPOLearner(cluster, config, reward_fns, metric_fns)


def history(cluster, name, mode="train"):
    return cluster.actor_trainer.metrics_logger.get_metric_history("", name, mode)
