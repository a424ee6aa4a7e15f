import numpy as np
import optax
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.rl import common, rl_cluster
from tunix.rl.inference import inference_worker
from tunix.rl.objectives import critic
from tunix.rl.ppo import ppo_learner
from tunix.rl.reward_fns import reward_model as reward_fn
from tunix.sft.dpo import reward_model
from tunix.utils import config as config_lib


def test_the_reference_scores_with_the_weights_it_has_now():
    model = helpers.tiny_decoder()
    worker = inference_worker.InferenceWorker({"reference": model})
    batch = helpers.one_batch(helpers.make_groups([[1.0, -1.0]]), shape=(1, 48))
    before = worker.get_ref_per_token_logps(batch)
    np.testing.assert_allclose(before, common.policy_logps(model, batch).logps, atol=1e-6)
    model.embed_tokens.w[...] = 0.5 * model.embed_tokens.w[...]
    after = worker.get_ref_per_token_logps(batch)
    np.testing.assert_allclose(after, common.policy_logps(model, batch).logps, atol=1e-6)
    assert np.abs(after - before).max() > 0.01


def test_a_role_that_nobody_has_is_an_error():
    worker = inference_worker.InferenceWorker({})
    with pytest.raises(ValueError, match="no model has the role 'reference'; there are"):
        worker.get_model("reference")


def make_cluster(**models):
    return rl_cluster.RLCluster(
        actor=helpers.tiny_decoder(),
        **models,
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.sgd(0.1), eval_every_n_steps=1000, pbar_description=None
            ),
            rollout_config=helpers.ROLLOUT,
            rollout_engine="mock",
            offload_to_cpu=True,
        ),
    )


def test_a_reward_model_is_a_role_and_its_score_a_reward_function():
    model = reward_model.RewardModel(helpers.tiny_decoder(num_layers=1), rngs=nnx.Rngs(1))
    cluster = make_cluster(reward=model)
    learner = helpers.make_learner(cluster, cluster.get_rewards, num_generations=2)
    groups = learner.train_on({"prompts": ["AB", "C"]})
    found = [t.reward for group in groups for t in group.trajectories]
    with cluster.on_device(rl_cluster.Role.REWARD):
        score = reward_fn.ModelReward(reward_fn.RewardModelScores(model))
        rows = [(g.prompt_ids, t.trained_ids) for g in groups for t in g.trajectories]
        want = score(*zip(*rows, strict=True))
    np.testing.assert_array_equal(found, np.float32(want))
    assert np.std(found) > 1e-3


def test_a_reward_model_of_an_unknown_kind_is_an_error():
    worker = inference_worker.InferenceWorker({"reward": helpers.tiny_decoder()})
    with pytest.raises(TypeError, match="must be a RewardModel, not Decoder"):
        worker.get_rewards([np.ones(2, np.int32)], [np.ones(1, np.int32)])


def test_without_functions_ppo_asks_the_reward_model():
    value_model = critic.create_critic_model(helpers.tiny_decoder())
    config = ppo_learner.PPOConfig(beta=0.0)
    with pytest.raises(config_lib.ConfigError, match="there are no rewards: give reward_fns"):
        ppo_learner.PPOLearner(make_cluster(critic=value_model), config)

    model = reward_model.RewardModel(helpers.tiny_decoder(num_layers=1), rngs=nnx.Rngs(1))
    cluster = make_cluster(critic=value_model, reward=model)
    learner = ppo_learner.PPOLearner(cluster, config)
    group, other = learner.new_rollout().groups({"prompts": ["AB", "C"]})
    rows = [(g.prompt_ids, g.trajectories[0].trained_ids) for g in (group, other)]
    want = cluster.get_rewards(*zip(*rows, strict=True))
    found = [g.trajectories[0].reward for g in (group, other)]
    np.testing.assert_array_equal(found, want)
    assert found[0] != found[1]
