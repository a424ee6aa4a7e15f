"""The estimate of what reinforcement learning takes, against the arrays that are there."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.cluster import memory
from tunix.rl.objectives import critic as critic_lib
from tunix.rl.ppo import ppo_learner
from tunix.sft import memory_estimate


def learner_of(*, actor=None, critic=None, reference=None, ppo=False, **training):
    cluster = helpers.make_cluster(actor, critic=critic, reference=reference, **training)
    if not ppo:
        return helpers.make_learner(cluster, beta=0.1 if reference is not None else 0.0)
    config = ppo_learner.PPOConfig(num_generations=4, beta=0.0)
    return ppo_learner.PPOLearner(cluster, config, helpers.share_of_fives)


def size_of(tree):
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


MODEL = size_of(nnx.state(helpers.tiny_decoder()))


def test_every_model_is_counted_once():
    alone = memory.estimate(learner_of())
    assert (alone.trained, alone.gradients, alone.frozen) == (MODEL, MODEL, 0)
    assert 2 * MODEL <= alone.optimizer < 2 * MODEL + 100  # adam
    with_reference = memory.estimate(learner_of(reference=helpers.tiny_decoder(7)))
    assert with_reference == dataclasses.replace(alone, frozen=MODEL)


def test_a_critic_adds_weights_and_optimizer_and_takes_its_turn_with_gradients():
    actor = helpers.tiny_decoder()
    critic = critic_lib.create_critic_model(actor)
    own = size_of(nnx.state(critic))
    alone = memory.estimate(learner_of())
    found = memory.estimate(learner_of(actor=actor, critic=critic, ppo=True))
    assert found.trained == MODEL + own
    assert found.optimizer - alone.optimizer >= 2 * own
    assert found.gradients == max(MODEL, own)
    assert found.activations == alone.activations


def test_adapters_leave_the_base_frozen_and_are_their_own_reference():
    actor = helpers.tiny_decoder()
    lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(0))
    adapters = size_of(nnx.state(actor, nnx.LoRAParam))
    found = memory.estimate(learner_of(actor=actor))
    assert (found.trained, found.gradients, found.frozen) == (adapters, adapters, MODEL)


def test_the_engine_takes_a_copy_of_the_weights_and_keys_and_values():
    learner = learner_of(rollout_micro_batch_size=8)
    found = memory.estimate(learner)
    # Two layers of keys and values, 8 slots of 8 + 6 tokens, two heads of 8, float32.
    cache = 2 * 2 * 8 * (8 + 6) * 2 * 8 * 4
    assert MODEL + cache <= found.sampling < MODEL + cache + 20_000
    engine = learner.rl_cluster.rollout._engine
    learner.rl_cluster.generate(helpers.PROMPTS)
    assert engine.cache_bytes == size_of(
        jax.tree.map(np.asarray, strip_keys(engine._programs._state))
    )


def strip_keys(tree):
    """Return the leaves with the keys of random draws as the numbers they are."""
    return [
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(tree)
    ]


def test_activations_are_those_of_a_chunk():
    # Of a prompt of 8 and four completions of 6, whose last tokens predict nothing: 28 tokens,
    # sixteen groups to a row of 512.
    one, four = (memory.estimate(learner_of(train_micro_batch_size=n)) for n in (16, 64))
    assert four.activations > 3.8 * one.activations - 4 * memory_estimate._HEAD_BYTES


def test_what_waits_on_the_host_is_not_counted():
    cluster = rl_cluster.RLCluster(
        actor=helpers.tiny_decoder(),
        reference=helpers.tiny_decoder(7),
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(0.1), eval_every_n_steps=9, pbar_description=None
            ),
            rollout_config=helpers.ROLLOUT,
            offload_to_cpu=True,
        ),
    )
    found = memory.estimate(helpers.make_learner(cluster, beta=0.1))
    assert (found.trained, found.frozen, found.sampling) == (MODEL, 0, 0)


@pytest.mark.parametrize("remedies", [memory_estimate.REMEDIES, memory_estimate.RL_REMEDIES])
def test_what_does_not_fit_comes_with_the_remedies_of_its_command(remedies):
    found = memory_estimate.MemoryEstimate(
        trained=1, frozen=0, optimizer=0, gradients=0, activations=8_000_000_000, sampling=10**9
    )
    assert "sampling 1.00 GB" in str(found)
    text = memory_estimate.warning(found, 10**9, remedies)
    assert text.endswith(f"consider {' or '.join(remedies)}")
