import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.models import lora
from tunix.perf import compile_counter
from tunix.rl import common, rl_cluster
from tunix.rl.collecting import experience
from tunix.rl.scoring import rewards
from tunix.utils import config as config_lib

Mode = rl_cluster.Mode


def batches(n, prompts=helpers.PROMPTS):
    return [{"prompts": prompts}] * n


def sampled_groups(cluster, *, num_samples, prompts=helpers.PROMPTS):
    columns = {"prompts": list(prompts)}
    key = cluster.sampling_key(Mode.TRAIN, 0)
    output = cluster.generate(columns["prompts"], num_samples=num_samples, key=key)
    manager = rewards.RewardManager(helpers.share_of_fives)
    scored = experience.score(output, columns, manager, num_samples=num_samples)
    return experience.group(scored, lambda r: r + 1.0, num_samples=num_samples, policy_version=0)


def test_sampler_and_trainer_agree_over_a_ragged_batch_with_continuous_batching():
    # 7 prompts x 5 samples through 4 slots: slots are refilled and prefills shared, completions
    # end at different lengths, by one of many stop tokens or cut off.
    rollout = dataclasses.replace(helpers.ROLLOUT, eos_tokens=list(range(0, 60, 4)))
    cluster = helpers.make_cluster(rollout=rollout, rollout_micro_batch_size=4)
    prompts = ["A", "AB", "CDEF", "3", "9:9", "ABCDEFGH", "5"]
    groups = sampled_groups(cluster, num_samples=5, prompts=prompts)
    members = [t for group in groups for t in group.trajectories]
    assert {t.finish_reason for t in members} == {"stop", "length"}
    assert len({len(t.trained_ids) for t in members}) > 3

    model = cluster.actor_trainer.model
    found = helpers.per_trajectory(
        groups,
        lambda batch: common.policy_logps(model, batch).logps,
        temperature=rollout.temperature,
    )
    for own, one in zip(found, members, strict=True):
        assert np.abs(own - one.trained_logps).max() < 1e-5


def test_the_first_update_is_on_policy():
    cluster = helpers.make_cluster()
    helpers.make_learner(cluster, num_iterations=2).train(batches(1))
    # The ratio starts from the sampler's log-probabilities and is still 1 before any update.
    assert helpers.history(cluster, "mismatch_max")[0] < 1e-5
    single = helpers.make_cluster()
    helpers.make_learner(single).train(batches(1))
    assert helpers.history(single, "ratio_max")[0] == 1.0


def test_grpo_learns_to_emit_a_token():
    cluster = helpers.make_cluster()
    helpers.make_learner(cluster, num_generations=8).train(batches(12))
    reward = helpers.history(cluster, "reward")
    assert reward[0] < 0.1
    assert reward[-1] > 0.7


def ended_by_itself(completions, finish_reasons):
    return [float(reason == "stop") for reason in finish_reasons]


def test_grpo_learns_to_stop_although_the_stop_token_is_the_pad_token():
    # Token 0 ends a completion and pads it. A mask made from ids would never train it.
    cluster = helpers.make_cluster()
    helpers.make_learner(cluster, ended_by_itself, num_generations=16).train(batches(12))
    truncated = helpers.history(cluster, "truncated")
    assert truncated[0] > 0.8
    assert truncated[-1] < 0.2


def test_several_iterations_and_mini_batches_are_as_many_optimizer_steps():
    cluster = helpers.make_cluster(mini_batch_size=2, train_micro_batch_size=1, max_steps=12)
    learner = helpers.make_learner(cluster, num_iterations=3)
    learner.train(batches(5))
    assert cluster.actor_trainer.train_steps == 12  # 4 prompts / 2 x 3 iterations, twice
    assert learner.global_steps == 2
    assert helpers.history(cluster, "ratio_max")[0] > 1.0


def test_micro_batches_change_nothing_but_rounding():
    parameters = []
    for size in (None, 1):
        cluster = helpers.make_cluster(train_micro_batch_size=size, learning_rate=1e-3)
        helpers.make_learner(cluster).train(batches(1))
        state = nnx.state(cluster.actor_trainer.model)
        parameters.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state)]))
    # Adam's first step is the sign of the gradient times the rate, where it is not tiny.
    assert np.quantile(np.abs(parameters[0] - parameters[1]), 0.99) < 1e-5


def test_passes_without_a_gradient_read_no_more_rows_than_they_may():
    found = {}
    for rows in (None, 1):
        cluster = helpers.make_cluster(
            train_micro_batch_size=48, compute_logps_micro_batch_size=rows
        )
        learner = helpers.make_learner(cluster)
        groups = helpers.make_groups(np.ones((40, 4)), max_prompt=8)
        seen = []

        def logps(batch, cluster=cluster, seen=seen):
            seen.append(batch.tokens.shape)
            return cluster.get_old_per_token_logps(batch)

        found[rows] = np.concatenate(learner.per_token(groups, logps))
        assert set(seen) == {(rows or 3, 512)}
    np.testing.assert_allclose(found[1], found[None], atol=1e-5)
    assert np.abs(found[1]).max() > 1.0


@pytest.mark.slow
def test_lora_trains_adapters_only_and_stays_close_to_its_base():
    actor = lora.apply_lora(
        helpers.tiny_decoder(), lora.LoraConfig(rank=4, alpha=8.0), rngs=nnx.Rngs(1)
    )
    base = np.asarray(actor.layers.mlp.up_proj.w[...])
    cluster = helpers.make_cluster(actor)
    helpers.make_learner(cluster, beta=0.1).train(batches(3))
    model = cluster.actor_trainer.model
    np.testing.assert_array_equal(model.layers.mlp.up_proj.w[...], base)
    assert np.abs(model.layers.mlp.up_proj.lora_b[...]).max() > 0.0
    kl = helpers.history(cluster, "kl")
    assert abs(kl[0]) < 1e-6  # adapters start at zero
    assert kl[-1] > 0.0


def test_a_separate_reference_is_scored_and_never_trained():
    reference = helpers.tiny_decoder(7)
    before = jax.tree.map(np.asarray, nnx.state(reference))
    cluster = helpers.make_cluster(reference=reference)
    helpers.make_learner(cluster, beta=0.1).train(batches(2))
    assert helpers.history(cluster, "kl")[0] > 0.01
    jax.tree.map(np.testing.assert_array_equal, nnx.state(reference), before)


def test_beta_without_a_reference_is_refused():
    with pytest.raises(config_lib.ConfigError, match=r"beta is 0\.1, but there is no reference"):
        helpers.make_learner(helpers.make_cluster(), beta=0.1)


def test_without_beta_no_reference_is_computed():
    cluster = helpers.make_cluster(reference=helpers.tiny_decoder(7))
    helpers.make_learner(cluster).train(batches(1))
    logger = cluster.actor_trainer.metrics_logger
    assert not logger.metric_exists("", "time/reference", "train")
    assert not logger.metric_exists("", "kl", "train")


def test_nothing_moves_when_all_groups_are_dead():
    cluster = helpers.make_cluster()
    before = jax.tree.map(np.asarray, nnx.state(cluster.actor_trainer.model))
    helpers.make_learner(cluster, lambda completions: [1.0] * len(completions)).train(batches(2))
    assert helpers.history(cluster, "dead_groups").tolist() == [1.0, 1.0]
    assert helpers.history(cluster, "all_right").tolist() == [1.0, 1.0]
    assert helpers.history(cluster, "loss").tolist() == [0.0, 0.0]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(cluster.actor_trainer.model), before)


def test_columns_and_finish_reasons_reach_rewards_and_metrics():
    seen = {}

    def reward(prompts, completions, answer, finish_reasons):
        seen.update(prompts=prompts, answer=answer, finish_reasons=finish_reasons)
        return [float(i) for i in range(len(completions))]

    def metric(prompts, completions, rewards, advantages, answer, **columns):
        assert len(advantages) == len(rewards) == len(answer) == 4
        return {"best": (rewards, np.max), "number": 5.0}

    cluster = helpers.make_cluster()
    learner = helpers.make_learner(cluster, reward, metric_fns=[metric], num_generations=2)
    learner.train([{"prompts": ["A", "B"], "answer": [10, 20]}])
    assert seen["prompts"] == ["A", "A", "B", "B"]
    assert seen["answer"] == [10, 10, 20, 20]
    assert set(seen["finish_reasons"]) <= {"stop", "length"}
    assert helpers.history(cluster, "best").tolist() == [3.0]
    assert helpers.history(cluster, "number").tolist() == [5.0]
    assert helpers.history(cluster, "reward/reward").tolist() == [1.5]


def test_reward_weights_decide_what_is_learned():
    cluster = helpers.make_cluster()
    learner = helpers.make_learner(
        cluster, [helpers.share_of_fives, ended_by_itself], reward_weights=[2.0, 0.0]
    )
    learner.train(batches(1))
    twice = 2 * helpers.history(cluster, "reward/share_of_fives")
    np.testing.assert_allclose(helpers.history(cluster, "reward"), twice)


def test_the_whole_evaluation_set_is_evaluated_every_n_steps():
    cluster = helpers.make_cluster(eval_every_n_steps=2)
    calls = []

    def reward(completions, **columns):
        calls.append(len(completions))
        return [1.0] * len(completions)

    eval_ds = [{"prompts": ["A", "B", "C"]}, {"prompts": ["D"]}]
    helpers.make_learner(cluster, reward).train(batches(4), eval_ds)
    assert calls.count(4) == 4  # twice, sampled and greedily
    assert helpers.history(cluster, "reward", "eval").tolist() == [1.0, 1.0]
    assert helpers.history(cluster, "greedy/accuracy", "eval").tolist() == [1.0, 1.0]


def test_advantages_of_ones_own_must_fit_the_rewards():
    learner = helpers.make_learner(helpers.make_cluster(), advantage_estimator=lambda r: r[:1])
    with pytest.raises(ValueError, match=r"shape \(1, 4\) for rewards of shape \(4, 4\)"):
        learner.train(batches(1))


def test_advantages_must_be_finite():
    learner = helpers.make_learner(
        helpers.make_cluster(), advantage_estimator=lambda r: np.full_like(r, np.nan)
    )
    with pytest.raises(ValueError, match="not finite for the rewards of prompt 0"):
        learner.train(batches(1))


def test_no_data_is_an_error():
    with pytest.raises(ValueError, match="train_ds has no batch"):
        helpers.make_learner(helpers.make_cluster()).train([])


def test_nothing_compiles_once_the_shapes_are_known():
    # Prompts, rewards and draws differ from step to step; settings keep all groups alive.
    cluster = helpers.make_cluster(rollout=dataclasses.replace(helpers.ROLLOUT, eos_tokens=[]))
    learner = helpers.make_learner(cluster, advantage_estimator=lambda r: r + 1.0)
    prompts = [["AB", "CDEF", "3"], ["9", "A:B", "5555"], ["ABC", "7", "F"], ["CC", "ABCD", "1"]]
    learner.train_on({"prompts": prompts[0]})
    with compile_counter.CompileCounter() as counter:
        for batch in prompts[1:]:
            learner.train_on({"prompts": batch})
    assert counter.count == 0, counter.names


@pytest.mark.slow
def test_steps_can_run_without_compilation():
    cluster = helpers.make_cluster()
    helpers.make_learner(cluster).train(batches(1), skip_jit=True)
    compiled = helpers.make_cluster()
    helpers.make_learner(compiled).train(batches(1))
    np.testing.assert_allclose(
        helpers.history(cluster, "grad_norm"), helpers.history(compiled, "grad_norm"), rtol=1e-4
    )
