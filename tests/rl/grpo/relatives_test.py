"""The relatives of GRPO: what their configs choose, and that they learn."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.rl import rl_cluster
from tunix.rl.grpo import (
    cispo_learner,
    dapo_learner,
    drgrpo_learner,
    grpo_config,
    grpo_learner,
    gspo_learner,
    reinforce_plus_plus_learner,
    rloo_learner,
)
from tunix.rl.objectives import advantages, aggregation, losses
from tunix.utils import config as config_lib

BATCH = {"prompts": helpers.PROMPTS}
RPPConfig = reinforce_plus_plus_learner.ReinforcePlusPlusConfig


def test_configs_choose_the_functions_of_their_papers():
    dapo = dapo_learner.DAPOConfig()
    assert (dapo.clip_range, dapo.aggregate) == ((0.2, 0.28), aggregation.token_mean)
    assert dapo.dynamic_sampling
    assert dapo.overlong is not None
    dr = drgrpo_learner.DrGRPOConfig()
    assert dr.advantage_fn is advantages.group_centered
    assert dr.aggregate is aggregation.sequence_mean_token_scale
    assert gspo_learner.GSPOConfig().importance_fn is losses.sequence_mean_log_ratio
    assert gspo_learner.GSPOConfig(loss_algo="gspo-token").importance_fn is (
        losses.sequence_log_ratio
    )
    assert rloo_learner.RLOOConfig().advantage_fn is advantages.leave_one_out
    assert rloo_learner.RLOOConfig(beta=0.1).reward_beta == 0.1
    assert rloo_learner.RLOOConfig(beta=0.1).loss_beta == 0.0
    assert cispo_learner.CISPOConfig().policy_loss is losses.clipped_importance
    assert RPPConfig().num_generations == 1
    assert grpo_learner.GrpoConfig is grpo_config.GRPOConfig
    assert grpo_learner.GrpoLearner is grpo_learner.GRPOLearner


def test_mistakes_of_the_relatives_are_reported():
    with pytest.raises(config_lib.ConfigError) as caught:
        dapo_learner.DAPOConfig(
            num_generations=1, max_sampling_rounds=0, overlong_buffer={"overlong_buffer": 3}
        )
    message = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "overlong_buffer: unknown key 'overlong_buffer'" in message
    with pytest.raises(config_lib.ConfigError, match="did you mean 'reward'"):
        grpo_config.GRPOConfig(kl_placement="rewards")
    with pytest.raises(config_lib.ConfigError, match="epsilon_c is not read"):
        cispo_learner.CISPOConfig(epsilon_c=3.0)


def test_the_buffer_may_be_written_as_google_tunix_writes_it():
    written = {
        "enable": True,
        "overlong_buffer_length": 2,
        "overlong_buffer_penalty": 0.5,
        "max_response_length": 6,
    }
    overlong = dapo_learner.DAPOConfig(overlong_buffer=written).overlong
    np.testing.assert_allclose(overlong.penalty(np.array([4, 5, 6]), 99), [0.0, -0.25, -0.5])
    assert dapo_learner.DAPOConfig(overlong_buffer={**written, "enable": False}).overlong is None
    assert dapo_learner.DAPOConfig(overlong_buffer=None).overlong is None


def test_a_buffer_that_no_completion_reaches_is_refused():
    cluster = helpers.make_cluster()
    longest = cluster.config.rollout(rl_cluster.Mode.TRAIN).max_tokens_to_generate
    ends = {"max_response_length": longest + 4, "overlong_buffer_length": 4}
    with pytest.raises(config_lib.ConfigError, match=f"begins after {longest} tokens"):
        dapo_learner.DAPOLearner(
            cluster, dapo_learner.DAPOConfig(overlong_buffer=ends), only_some_prompts
        )
    reached = {**ends, "overlong_buffer_length": 5}
    config = dapo_learner.DAPOConfig(overlong_buffer=reached)
    learner = dapo_learner.DAPOLearner(cluster, config, only_some_prompts)
    assert config.overlong.penalty(np.array([learner.max_completion_length]), longest) == -0.2


def only_some_prompts(prompts, completions):
    """A reward that tells completions apart for prompts with a digit, and for no others."""
    return [
        len(set(text)) / 6 if any(c.isdigit() for c in prompt) else 1.0
        for prompt, text in zip(prompts, completions, strict=True)
    ]


def test_dapo_replaces_prompts_without_signal_by_new_ones():
    cluster = helpers.make_cluster()
    config = dapo_learner.DAPOConfig(num_generations=4, overlong_buffer=None)
    learner = dapo_learner.DAPOLearner(cluster, config, only_some_prompts)
    drawn = []

    def data():
        for prompts in (["A", "1"], ["B", "C"], ["2", "3"], ["4", "5"]):
            drawn.append(prompts)
            yield {"prompts": prompts}

    learner.train(data())
    # The first step needs three batches for two live groups; the second has its own.
    assert helpers.history(cluster, "sampling_rounds").tolist() == [3.0, 1.0]
    assert helpers.history(cluster, "sampled_groups").tolist() == [6.0, 2.0]
    assert helpers.history(cluster, "discarded_groups").tolist() == [1.0, 0.0]
    assert helpers.history(cluster, "batch_fill").tolist() == [1.0, 1.0]
    # What is logged is everything sampled: three of the first six groups were dead.
    np.testing.assert_allclose(helpers.history(cluster, "dead_groups"), [0.5, 0.0])
    assert learner.global_steps == 2
    assert len(drawn) == 4


def test_dapo_stops_after_the_rounds_it_may_take():
    cluster = helpers.make_cluster()
    config = dapo_learner.DAPOConfig(max_sampling_rounds=2, overlong_buffer=None)
    learner = dapo_learner.DAPOLearner(
        cluster, config, lambda completions: [1.0] * len(completions)
    )
    learner.train([{"prompts": ["A"]}] * 5)
    assert helpers.history(cluster, "sampling_rounds").tolist() == [2.0, 2.0, 1.0]
    assert helpers.history(cluster, "batch_fill").tolist() == [0.0, 0.0, 0.0]
    assert helpers.history(cluster, "loss").tolist() == [0.0, 0.0, 0.0]


def test_answers_that_are_all_wrong_are_replaced_however_long_they_are():
    cluster = helpers.make_cluster()
    before = jax.tree.map(np.asarray, nnx.state(cluster.actor_trainer.model))
    config = dapo_learner.DAPOConfig(
        num_generations=24, max_sampling_rounds=2, overlong_buffer={"overlong_buffer_length": 5}
    )
    learner = dapo_learner.DAPOLearner(
        cluster, config, lambda completions: [0.0] * len(completions)
    )
    learner.train([{"prompts": ["A", "B"]}] * 2)
    assert helpers.history(cluster, "sampling_rounds").tolist() == [2.0]
    # The lengths differ, and so do the rewards; that is no reason to train on them.
    assert helpers.history(cluster, "reward_std/overlong")[0] > 0.0
    after = jax.tree.map(np.asarray, nnx.state(cluster.actor_trainer.model))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_overlong_completions_lose_reward_by_their_tokens():
    cluster = helpers.make_cluster()
    reward_fns = [helpers.share_of_fives]
    config = dapo_learner.DAPOConfig(
        num_generations=4, dynamic_sampling=False, overlong_buffer={"overlong_buffer_length": 3}
    )
    learner = dapo_learner.DAPOLearner(cluster, config, reward_fns)
    assert reward_fns == [helpers.share_of_fives]  # the caller's list is the caller's
    members = [t for group in learner.new_rollout().groups(BATCH) for t in group.trajectories]
    for one in members:
        expected = min(0.0, (6 - 3 - len(one.trained_ids)) / 3)
        np.testing.assert_allclose(one.rewards["overlong"], expected)
        np.testing.assert_allclose(one.reward, one.rewards["share_of_fives"] + expected)
    assert any(one.rewards["overlong"] == -1.0 for one in members)


@pytest.mark.parametrize("placement", ["reward", "reward-to-go"])
def test_the_kl_may_be_charged_before_the_loss(placement):
    cluster = helpers.make_cluster(reference=helpers.tiny_decoder(7))
    config = grpo_config.GRPOConfig(
        num_generations=4,
        beta=0.5,
        kl_placement=placement,
        kl_estimator="k1",
        advantage_estimator="rloo",
    )
    learner = grpo_learner.GRPOLearner(cluster, config, helpers.share_of_odd_characters)
    groups = learner.new_rollout().groups(BATCH)
    ref = learner.per_token(groups, cluster.get_ref_per_token_logps)
    charged = learner.assign_credit(groups)
    row = 0
    for before, after in zip(groups, charged, strict=True):
        size = len(before.trajectories)
        kls = [t.trained_logps - ref[row + i] for i, t in enumerate(before.trajectories)]
        row += size
        rewards = np.array([t.reward for t in before.trajectories])
        if placement == "reward":
            rewards = rewards - 0.5 * np.array([kl.sum() for kl in kls])
        expected = advantages.leave_one_out(rewards[None])[0]
        for one, advantage, kl in zip(after.trajectories, expected, kls, strict=True):
            to_go = 0.0 if placement == "reward" else 0.5 * np.cumsum(kl[::-1])[::-1]
            np.testing.assert_allclose(
                one.advantage_of_tokens, advantage - to_go, rtol=1e-4, atol=1e-5
            )


def test_the_kl_in_the_reward_is_not_in_the_loss():
    cluster = helpers.make_cluster(reference=helpers.tiny_decoder(7))
    rloo_learner.RLOOLearner(
        cluster, rloo_learner.RLOOConfig(num_generations=4), helpers.share_of_fives
    ).train([BATCH])
    assert helpers.history(cluster, "kl").shape == (1,)
    with pytest.raises(config_lib.ConfigError, match="RLOOLearner"):
        rloo_learner.RLOOLearner(
            helpers.make_cluster(), rloo_learner.RLOOConfig(), helpers.share_of_fives
        )


def test_reinforce_plus_plus_needs_one_completion_of_each_prompt():
    cluster = helpers.make_cluster()
    learner = reinforce_plus_plus_learner.ReinforcePlusPlusLearner(
        cluster, RPPConfig(beta=0.0), helpers.share_of_odd_characters
    )
    groups = learner.assign_credit(learner.new_rollout().groups(BATCH))
    assert [len(group.trajectories) for group in groups] == [1] * 4
    values = np.concatenate([t.token_advantages for g in groups for t in g.trajectories])
    np.testing.assert_allclose([values.mean(), values.std()], [0.0, 1.0], atol=1e-5)


def test_a_correction_uses_the_trainers_own_old_log_probabilities():
    cluster = helpers.make_cluster(mini_batch_size=2)
    learner = helpers.make_learner(
        cluster, helpers.share_of_odd_characters, rollout_correction="truncated-token"
    )
    learner.train([BATCH])
    np.testing.assert_allclose(helpers.history(cluster, "correction_weight"), [1.0], atol=1e-4)
    np.testing.assert_allclose(helpers.history(cluster, "mismatch_ess"), [1.0], atol=1e-4)
    assert helpers.history(cluster, "mismatch_ratio_max")[0] < 1.0 + 1e-4


def learns(learner_class, config):
    cluster = helpers.make_cluster()
    learner_class(cluster, config, helpers.share_of_odd_characters).train([BATCH] * 10)
    reward = helpers.history(cluster, "reward/share_of_odd_characters")
    assert reward[-1] > reward[0] + 0.25, reward


@pytest.mark.slow
def test_dapo_learns():
    learns(
        dapo_learner.DAPOLearner,
        dapo_learner.DAPOConfig(num_generations=8, overlong_buffer=None, max_sampling_rounds=1),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learner_class", "config"),
    [
        (drgrpo_learner.DrGRPOLearner, drgrpo_learner.DrGRPOConfig(num_generations=8, beta=0.0)),
        (gspo_learner.GSPOLearner, gspo_learner.GSPOConfig(num_generations=8)),
        (
            gspo_learner.GSPOLearner,
            gspo_learner.GSPOConfig(num_generations=8, loss_algo="gspo-token"),
        ),
        (rloo_learner.RLOOLearner, rloo_learner.RLOOConfig(num_generations=8, beta=0.0)),
        (
            reinforce_plus_plus_learner.ReinforcePlusPlusLearner,
            RPPConfig(num_generations=8, beta=0.0),
        ),
        (cispo_learner.CISPOLearner, cispo_learner.CISPOConfig(num_generations=8)),
    ],
    ids=["drgrpo", "gspo", "gspo-token", "rloo", "reinforce++", "cispo"],
)
def test_the_others_learn(learner_class, config):
    learns(learner_class, config)


@pytest.mark.slow
def test_a_killed_dapo_run_goes_on_behind_the_batches_it_drew(tmp_path):
    settings = {"checkpoint_root_directory": str(tmp_path), "max_steps": 1}
    data = [{"prompts": [p]} for p in ("A", "B", "1", "2")]
    config = dapo_learner.DAPOConfig(num_generations=4, overlong_buffer=None)

    def train(max_steps):
        seen = []

        def reward(prompts, completions):
            seen.extend(sorted(set(prompts)))
            return only_some_prompts(prompts, completions)

        cluster = helpers.make_cluster(**{**settings, "max_steps": max_steps})
        dapo_learner.DAPOLearner(cluster, config, reward).train(data)
        cluster.close()
        return seen

    assert train(1) == ["A", "B", "1"]
    assert train(2) == ["2"]
