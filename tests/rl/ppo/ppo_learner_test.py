import dataclasses
import shutil

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from tests import virtual_devices
from tests.rl import helpers
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.objectives import critic, shared_critic, token_advantages
from tunix.rl.ppo import ppo_learner
from tunix.sft import metrics_logger
from tunix.utils import config as config_lib
from tunix.utils import json_lines

BATCH = {"prompts": helpers.PROMPTS}


def make_cluster(actor=None, *, reference=None, with_critic=True, **training):
    actor = helpers.tiny_decoder() if actor is None else actor
    settings = {"eval_every_n_steps": 1000, "pbar_description": None, **training}
    return rl_cluster.RLCluster(
        actor=actor,
        critic=critic.create_critic_model(actor) if with_critic else None,
        reference=reference,
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(2e-2), critic_optimizer=optax.adam(1e-2), **settings
            ),
            rollout_config=helpers.ROLLOUT,
        ),
    )


def make_learner(cluster, reward_fns=helpers.share_of_odd_characters, **settings):
    config = ppo_learner.PPOConfig(**{"beta": 0.0, "num_generations": 4, **settings})
    return ppo_learner.PPOLearner(cluster, config, reward_fns)


def test_ppo_learns_a_toy_task_and_its_critic_to_foresee_it():
    cluster = make_cluster()
    make_learner(cluster, num_generations=8, num_iterations=2).train([BATCH] * 8)
    reward = helpers.history(cluster, "reward")
    assert reward[0] < 0.6
    assert reward[-1] > 0.85
    error = helpers.history(cluster, "critic/value_error")
    assert error[-1] < 0.3 * error[0]
    assert helpers.history(cluster, "critic/loss").shape == (8,)
    assert cluster.critic_trainer.train_steps == cluster.actor_trainer.train_steps == 16


def test_tokens_get_estimates_over_a_reward_at_the_end():
    cluster = make_cluster()
    cluster.critic_trainer.model.value_bias[...] = np.array([0.25], np.float32)
    cluster.critic_trainer._stepper.read_model()
    learner = make_learner(cluster, whiten_advantages=False, gamma=0.9, gae_lambda=0.8)
    groups = learner.assign_credit(learner.new_rollout().groups(BATCH))
    for member in (one for group in groups for one in group.trajectories):
        rewards = np.zeros(len(member.trained_ids))
        rewards[-1] = member.reward
        values = np.full(rewards.shape, 0.25)
        expected, returns = token_advantages.gae(rewards, values, gamma=0.9, gae_lambda=0.8)
        np.testing.assert_allclose(member.token_advantages, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(member.returns, returns, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(member.values, 0.25, rtol=1e-5)
    # Rewards are sixths: nothing here rounds them to whole numbers.
    assert {round(6 * one.reward) for g in groups for one in g.trajectories} - {0, 6}


def test_every_token_pays_for_its_distance_to_the_reference():
    cluster = make_cluster(reference=helpers.tiny_decoder(7))
    settings = {"whiten_advantages": False, "gae_lambda": 1.0, "kl_method": "k1"}
    free = make_learner(cluster, **settings)
    groups = free.new_rollout().groups(BATCH)
    paid = make_learner(cluster, beta=0.5, **settings).assign_credit(groups)
    ref = free.per_token(groups, cluster.get_ref_per_token_logps)
    row = 0
    for before, after in zip(free.assign_credit(groups), paid, strict=True):
        for a, b in zip(before.trajectories, after.trajectories, strict=True):
            kl = a.trained_logps - ref[row]
            to_go = np.cumsum(kl[::-1])[::-1]
            np.testing.assert_allclose(
                b.token_advantages, a.token_advantages - 0.5 * to_go, rtol=1e-4, atol=1e-5
            )
            row += 1
    cluster.log_metrics(rl_cluster.Mode.TRAIN, 1)
    assert helpers.history(cluster, "kl")[0] > 0.0


def test_advantages_are_whitened_over_the_rollout():
    learner = make_learner(make_cluster())
    groups = learner.assign_credit(learner.new_rollout().groups(BATCH))
    values = np.concatenate([t.token_advantages for g in groups for t in g.trajectories])
    np.testing.assert_allclose([values.mean(), values.std()], [0.0, 1.0], atol=1e-5)


def as_stopped(trajectory):
    return dataclasses.replace(trajectory, finish_reason="stop")


def whitened_estimates(rewards, values, gamma, lam):
    """Lists of token rewards and values -> advantages: written out, completion by completion.

    ``masked_whiten(rewards, shift_mean=False)`` of Huang et al. (2024), then GAE.
    """
    flat = np.concatenate(rewards)
    mean, var = flat.mean(), flat.var()
    found = []
    for reward, value in zip(rewards, values, strict=True):
        reward = (reward - mean) / np.sqrt(var + 1e-8) + mean
        later, own = 0.0, np.zeros(len(reward))
        for t in reversed(range(len(reward))):
            following = value[t + 1] if t + 1 < len(value) else 0.0
            later = reward[t] + gamma * following - value[t] + gamma * lam * later
            own[t] = later
        found.append(own)
    return found


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_rewards_are_whitened_before_advantages_are_estimated(shared, mask_truncated):
    actor = helpers.tiny_decoder()
    if shared:
        shared_critic.add_value_head(actor)
        actor.value_head.bias[...] = np.array([0.25], np.float32)
    cluster = make_cluster(actor, reference=helpers.tiny_decoder(7), with_critic=not shared)
    learner = make_learner(
        cluster,
        critic_backbone="shared" if shared else "separate",
        whiten_rewards=True,
        whiten_advantages=False,
        mask_truncated=mask_truncated,
        beta=0.5,
        kl_method="k1",
        gamma=0.9,
        gae_lambda=0.8,
    )
    groups = [
        dataclasses.replace(group, trajectories=[first, *map(as_stopped, others)])
        for group in learner.new_rollout().groups(BATCH)
        for first, *others in [group.trajectories]
    ]
    members = [one for group in groups for one in group.trajectories]
    ref = learner.per_token(groups, cluster.get_ref_per_token_logps)
    rewards = []
    for row, one in enumerate(members):
        paid = -0.5 * (one.trained_logps - ref[row])
        paid[-1] += one.reward
        rewards.append(np.asarray(paid, np.float64))
    kept = [i for i, one in enumerate(members) if not (mask_truncated and one.truncated)]
    assert len(kept) > 0
    assert (len(kept) < len(members)) == mask_truncated
    expected = whitened_estimates(
        [rewards[i] for i in kept],
        [np.full(len(rewards[i]), 0.25 if shared else 0.0) for i in kept],
        0.9,
        0.8,
    )
    credited = [one for group in learner.assign_credit(groups) for one in group.trajectories]
    for i, own in zip(kept, expected, strict=True):
        np.testing.assert_allclose(credited[i].token_advantages, own, rtol=1e-4, atol=1e-5)
        value = 0.25 if shared else 0.0
        np.testing.assert_allclose(credited[i].returns, own + value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_whitened_rewards_do_not_depend_on_how_a_rollout_is_split(shared):
    found = []
    for micro_batch_size in (None, 1):
        actor = helpers.tiny_decoder()
        if shared:
            shared_critic.add_value_head(actor)
        cluster = make_cluster(
            actor,
            with_critic=not shared,
            train_micro_batch_size=micro_batch_size,
            compute_logps_micro_batch_size=micro_batch_size,
        )
        backbone = "shared" if shared else "separate"
        make_learner(cluster, whiten_rewards=True, critic_backbone=backbone).train([BATCH])
        names = ("loss", "critic/loss", "grad_norm", "critic/return_mean")
        found.append([helpers.history(cluster, name)[0] for name in names])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
    assert np.abs(found[0]).min() > 0.0


@pytest.mark.slow
def test_epochs_and_mini_batches_step_both_models():
    cluster = make_cluster(mini_batch_size=2)
    make_learner(cluster, num_iterations=2, rollout_correction="truncated-token").train([BATCH])
    assert cluster.actor_trainer.train_steps == cluster.critic_trainer.train_steps == 4
    assert helpers.history(cluster, "ratio_max")[0] > 1.0
    # The trainer's own old log-probabilities are the sampler's here: nothing to correct.
    np.testing.assert_allclose(helpers.history(cluster, "correction_weight"), [1.0], atol=1e-4)


@pytest.mark.slow
def test_a_lora_critic_and_actor_leave_the_base_alone():
    actor = lora.apply_lora(
        helpers.tiny_decoder(), lora.LoraConfig(rank=2, alpha=4.0), rngs=nnx.Rngs(1)
    )
    base = np.asarray(actor.layers.mlp.up_proj.w[...])
    cluster = make_cluster(actor)
    make_learner(cluster, beta=0.1).train([BATCH] * 2)
    judge = cluster.critic_trainer.model
    np.testing.assert_array_equal(judge.backbone.layers.mlp.up_proj.w[...], base)
    assert np.abs(judge.value_head[...]).max() > 0.0
    ours, theirs = (m.layers.mlp.up_proj.lora_b[...] for m in (actor, judge.backbone))
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() > 0.0


def test_what_is_missing_is_said_at_once():
    with pytest.raises(config_lib.ConfigError) as caught:
        make_learner(make_cluster(with_critic=False), beta=0.1)
    assert "create_critic_model" in str(caught.value)
    assert "no reference policy" in str(caught.value)
    with pytest.raises(ValueError, match="there is no critic"):
        make_cluster(with_critic=False).get_values(None)


def run_in(directory, steps):
    cluster = make_cluster(
        max_steps=steps,
        checkpoint_root_directory=str(directory / "checkpoints"),
        checkpointing_options=ocp.CheckpointManagerOptions(save_interval_steps=1, max_to_keep=2),
        metrics_logging_options=metrics_logger.MetricsLoggerOptions(
            log_dir=str(directory), flush_every_n_steps=1
        ),
    )
    make_learner(cluster).train([{"prompts": [f"A{i}", f"B{i}"]} for i in range(4)])
    state = jax.tree.map(np.asarray, nnx.state(cluster.critic_trainer.model))
    cluster.close()
    return state, [row["train/critic/loss"] for row in json_lines.read(directory / "metrics.jsonl")]


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_critic_included(tmp_path):
    whole, losses = run_in(tmp_path / "whole", 3)
    run_in(tmp_path / "parts", 2)
    # Killed after the critic's checkpoint and before the actor's: the critic has one too many.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "2")
    resumed, joined = run_in(tmp_path / "parts", 3)
    assert joined == losses
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    kept = [
        sorted(path.name for path in (tmp_path / "parts" / name).iterdir())
        for name in ("checkpoints", "checkpoints_critic")
    ]
    assert kept[0] == kept[1] == ["2", "3"]
    shutil.rmtree(tmp_path / "parts" / "checkpoints_critic")
    with pytest.raises(ValueError, match=r"the actor's checkpoint is of step 3, but the critic's"):
        run_in(tmp_path / "parts", 4)


@pytest.mark.slow
def test_settings_of_the_critic_are_live():
    config = ppo_learner.PPOConfig(beta=0.0, num_generations=4)
    found = {}
    for name, changes in {
        "base": {},
        "gamma": {"gamma": 0.5},
        "clip_range_value": {"clip_range_value": 0.001},
    }.items():
        cluster = make_cluster(mini_batch_size=2)
        learner = ppo_learner.PPOLearner(
            cluster,
            dataclasses.replace(config, **changes),
            helpers.share_of_odd_characters,
        )
        learner.train([BATCH] * 2)
        found[name] = helpers.history(cluster, "critic/loss")[-1]
    assert len(set(found.values())) == 3, found


@pytest.mark.slow
def test_several_devices_give_the_numbers_of_one():
    one, four = virtual_devices.run("tests.rl.ppo.mesh_run", devices=4)
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    for name, values in one.items():
        np.testing.assert_allclose(four[name], values, rtol=1e-4, err_msg=name)
