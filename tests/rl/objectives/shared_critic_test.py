import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests.rl import helpers
from tests.rl.objectives import policy_objective_test
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.objectives import aggregation, critic, policy_objective, shared_critic
from tunix.rl.ppo import ppo_learner
from tunix.utils import config as config_lib

BATCH = {"prompts": helpers.PROMPTS}


def tiny_actor(seed=0):
    actor = helpers.tiny_decoder(seed)
    shared_critic.add_value_head(actor)
    return actor


def with_head(model, name_w, name_b):
    """Set a head that is not zero, as it is after some training."""
    head = 0.1 * np.random.default_rng(3).normal(size=(32, 1)).astype(np.float32)
    name_w[...], name_b[...] = head, np.array([0.3], np.float32)
    return model


def gradient(objective, model, batch):
    """Return the gradient of the loss sum by dotted path."""
    grads = nnx.grad(lambda m: objective(m, batch).loss_sum)(model)
    return {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(grads)}


def config_of(**settings):
    settings = {"critic_backbone": "shared", "entropy_coef": 0.01, **settings}
    return ppo_learner.PPOConfig(**settings)


def batch_and_actor():
    batch = helpers.one_batch(policy_objective_test.rollout(), aggregate=aggregation.token_mean)
    actor = tiny_actor()
    return batch, with_head(actor, actor.value_head.w, actor.value_head.bias)


def test_the_joint_gradient_is_the_sum_of_both():
    batch, actor = batch_and_actor()
    config = config_of(vf_coef=0.7, clip_range_value=0.4)
    joint = gradient(functools.partial(shared_critic.joint_objective, config=config), actor, batch)
    policy = gradient(
        functools.partial(policy_objective.policy_objective, config=config), actor, batch
    )
    judge = critic.Critic(actor)
    judge = with_head(judge, judge.value_head, judge.value_bias)
    value = gradient(functools.partial(critic.value_objective, clip_range=0.4), judge, batch)
    for name in policy:
        theirs = {
            "value_head.w": value["value_head"],
            "value_head.bias": value["value_bias"],
        }.get(name, value.get(f"backbone.{name}"))
        expected = policy[name] + 0.7 * theirs
        np.testing.assert_allclose(joint[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)
    assert np.abs(value["backbone.layers.mlp.up_proj.w"]).max() > 1e-3

    # The bias by hand: a token gives coef * (V - R), or nothing where its value was clipped.
    values = np.asarray(shared_critic.token_values(actor, batch))
    old, returns, mask = (np.asarray(x) for x in (batch.values, batch.returns, batch.mask))
    clipped = np.clip(values, old - 0.4, old + 0.4)
    moved_on = (clipped - returns) ** 2 > (values - returns) ** 2
    expected = 0.7 * np.where(mask & ~moved_on, values - returns, 0.0).sum()
    np.testing.assert_allclose(joint["value_head.bias"], [expected], rtol=1e-4)
    assert (mask & moved_on).any() and (mask & ~moved_on).any()


def test_with_a_coefficient_of_0_the_critic_pulls_at_nothing():
    batch, actor = batch_and_actor()
    config = config_of(vf_coef=0.0)
    joint = gradient(functools.partial(shared_critic.joint_objective, config=config), actor, batch)
    alone = gradient(
        functools.partial(policy_objective.policy_objective, config=config), actor, batch
    )
    for name, expected in alone.items():
        np.testing.assert_array_equal(joint[name], expected, err_msg=name)
    assert not joint["value_head.w"].any()


def make_learner(actor, *, optimizer=None, judge=None, training=None, **settings):
    cluster = rl_cluster.RLCluster(
        actor=actor,
        critic=judge,
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer or optax.adam(2e-2),
                critic_optimizer=optax.sgd(0.0),
                **{"eval_every_n_steps": 1000, "pbar_description": None, **(training or {})},
            ),
            rollout_config=helpers.ROLLOUT,
        ),
    )
    config = ppo_learner.PPOConfig(**{"beta": 0.0, "num_generations": 4, **settings})
    return ppo_learner.PPOLearner(cluster, config, helpers.share_of_odd_characters)


def test_one_backbone_learns_the_task_and_to_foresee_it():
    learner = make_learner(
        tiny_actor(), critic_backbone="shared", num_generations=8, num_iterations=2, vf_coef=0.5
    )
    learner.train([BATCH] * 8)
    reward = helpers.history(learner.rl_cluster, "reward")
    assert reward[0] < 0.6
    assert reward[-1] > 0.85
    error = helpers.history(learner.rl_cluster, "critic/value_error")
    assert error[-1] < 0.3 * error[0]


@pytest.mark.slow
def test_a_run_with_coefficient_0_is_one_whose_own_critic_never_learns():
    states = []
    for shared in (True, False):
        actor = tiny_actor() if shared else helpers.tiny_decoder()
        learner = make_learner(
            actor,
            judge=None if shared else critic.create_critic_model(actor),
            critic_backbone="shared" if shared else "separate",
            vf_coef=0.0 if shared else None,
            optimizer=optax.sgd(0.5),
        )
        learner.train([BATCH] * 3)
        model = learner.rl_cluster.actor_trainer.model
        states.append(
            {
                p: np.asarray(v[...])
                for p, v in nnx.to_flat_state(nnx.state(model))
                if p[0] != "value_head"
            }
        )
    for path, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][path], err_msg=str(path))


def run_in(directory, steps):
    training = {
        "max_steps": steps,
        "checkpoint_root_directory": str(directory),
        "checkpointing_options": ocp.CheckpointManagerOptions(save_interval_steps=1),
    }
    learner = make_learner(tiny_actor(), critic_backbone="shared", training=training)
    learner.train([{"prompts": [f"A{i}", f"B{i}"]} for i in range(4)])
    state = jax.tree.map(np.asarray, nnx.state(learner.rl_cluster.actor_trainer.model))
    learner.rl_cluster.close()
    return state


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_head_included(tmp_path):
    whole = run_in(tmp_path / "whole", 3)
    run_in(tmp_path / "parts", 2)
    resumed = run_in(tmp_path / "parts", 3)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert np.abs(resumed["value_head"]["w"][...]).max() > 0.0


@pytest.mark.slow
def test_the_head_is_trained_with_the_adapters_and_the_base_stays_the_reference():
    actor = lora.apply_lora(
        helpers.tiny_decoder(), lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1)
    )
    shared_critic.add_value_head(actor)
    base = np.asarray(actor.layers.mlp.up_proj.w[...])
    learner = make_learner(actor, critic_backbone="shared", beta=0.1)
    learner.train([BATCH] * 2)
    np.testing.assert_array_equal(actor.layers.mlp.up_proj.w[...], base)
    assert np.abs(actor.value_head.w[...]).max() > 0.0
    assert jnp.abs(helpers.history(learner.rl_cluster, "kl")).max() > 0.0


def test_where_the_critic_is_must_be_said_and_true():
    actor = tiny_actor()
    with pytest.raises(config_lib.ConfigError, match="set critic_backbone to 'shared'"):
        make_learner(actor)
    plain = helpers.tiny_decoder()
    with pytest.raises(config_lib.ConfigError) as caught:
        make_learner(plain, judge=critic.create_critic_model(plain), critic_backbone="shared")
    first, second = caught.value.problems
    assert "add_value_head(actor)" in first and "leave it out" in second
    with pytest.raises(ValueError, match="already"):
        shared_critic.add_value_head(actor)
    with pytest.raises(TypeError, match="tunix decoder"):
        shared_critic.add_value_head(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(config_lib.ConfigError, match="read with critic_backbone 'shared' alone"):
        ppo_learner.PPOConfig(vf_coef=0.1)
    with pytest.raises(config_lib.ConfigError, match="did you mean 'shared'"):
        ppo_learner.PPOConfig(critic_backbone="share")
