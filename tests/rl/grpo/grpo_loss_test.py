import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.rl import common
from tunix.rl.grpo import grpo_config, grpo_loss
from tunix.rl.objectives import aggregation, credit, policy_objective

LIVE = [[1.0, -1.0, 0.5], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]
WITH_DEAD = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0]]


def loss_and_gradient(model, batches, weight=0.0, **settings):
    """Mean loss over the summed weight of all batches and a further one, and its gradient."""
    config = grpo_config.GRPOConfig(num_generations=3, **{"beta": 0.0, **settings})
    graphdef, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnums=2)
    def sums(state, batch, config):
        def loss_sum(state):
            output = grpo_loss.grpo_loss(nnx.merge(graphdef, state), batch, config=config)
            return output.loss_sum, output

        return jax.value_and_grad(loss_sum, has_aux=True)(state)

    parts = [sums(state, jax.tree.map(jnp.asarray, batch), config) for batch in batches]
    total = functools.reduce(lambda a, b: a.add(b), [output for (_, output), _ in parts])
    total = total.replace(weight_sum=total.weight_sum + weight)
    grads = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [g for _, g in parts])
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    weight = float(total.weight_sum)
    return float(total.loss_sum) / weight, flat / weight, total


def with_ref(groups, seed=5):
    """The groups with reference log-probabilities that differ from the policy's."""
    rng = np.random.default_rng(seed)
    ref = [rng.uniform(-4, -1, t.num_trained).astype("float32") for t in credit.members_of(groups)]
    return credit.rewritten(groups, lambda t, own: dataclasses.replace(t, ref_logps=own), ref)


def assert_same(left, right, tolerance=1e-5):
    np.testing.assert_allclose(left[0], right[0], atol=tolerance, rtol=tolerance)
    difference = np.linalg.norm(left[1] - right[1]) / np.linalg.norm(right[1])
    assert difference < tolerance, difference


@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_a_shared_prompt_gives_the_loss_and_gradient_of_one_row_per_completion(mode):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    aggregate = aggregation.AGGREGATIONS[mode]
    packed = helpers.one_batch(groups, aggregate=aggregate)
    alone = helpers.one_by_one(groups, aggregate=aggregate)
    assert (packed.segment_ids > 0).sum() < sum((one.segment_ids > 0).sum() for one in alone)
    assert_same(loss_and_gradient(model, [packed]), loss_and_gradient(model, alone))


@pytest.mark.parametrize("loss_algo", ["grpo", "gspo-token"])
@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_chunks_change_neither_loss_nor_gradient(mode, loss_algo):
    model, groups = helpers.tiny_decoder(), with_ref(helpers.make_groups(LIVE))
    settings = {"loss_algo": loss_algo, "beta": 0.1}
    whole, split = (
        helpers.make_step(groups, shape=shape, aggregate=aggregation.AGGREGATIONS[mode]).batches
        for shape in ((6, 48), (1, 32))
    )
    assert len(whole) == 1 < len(split)
    assert len({batch.tokens.shape for batch in split}) == 1
    assert_same(
        loss_and_gradient(model, split, **settings), loss_and_gradient(model, whole, **settings)
    )


@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_leaving_dead_sequences_out_changes_neither_loss_nor_gradient(mode):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(WITH_DEAD)
    skipped, computed = (
        helpers.make_step(groups, skip_dead=skip, aggregate=aggregation.AGGREGATIONS[mode])
        for skip in (True, False)
    )
    assert skipped.num_tokens < computed.num_tokens
    assert_same(
        loss_and_gradient(model, skipped.batches, skipped.weight),
        loss_and_gradient(model, computed.batches),
    )


def test_the_weight_of_dead_groups_is_counted_once_over_chunks():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(WITH_DEAD)
    skipped = helpers.make_step(groups, skip_dead=True, shape=(1, 16))
    assert len(skipped.batches) > 1
    assert_same(
        loss_and_gradient(model, skipped.batches, skipped.weight),
        loss_and_gradient(model, helpers.make_step(groups).batches),
    )


def test_nothing_but_dead_groups_need_no_pass_and_have_their_full_weight():
    groups = helpers.make_groups([[0.0, 0.0, 0.0]] * 2)
    step = helpers.make_step(groups, skip_dead=True)
    assert (len(step.batches), step.weight) == (0, 6.0)


def test_dead_groups_are_trained_on_when_there_is_a_reference():
    config = grpo_config.GRPOConfig(beta=0.1)
    assert not config.skips_dead_sequences
    assert grpo_config.GRPOConfig(beta=0.0).skips_dead_sequences
    assert not grpo_config.GRPOConfig(
        beta=0.0, policy_loss_fn=lambda *_args, **_kwargs: None
    ).skips_dead_sequences


def test_masked_truncated_completions_count_nowhere():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE, seed=3)
    members = [m for g in groups for m in g.trajectories]
    assert any(m.truncated for m in members)
    batches = helpers.make_step(groups, mask_truncated=True).batches
    _, _, output = loss_and_gradient(model, batches)
    assert output.weight_sum == sum(not m.truncated for m in members)


def test_the_last_token_is_trained():
    # The token that ends a completion (EOS) has a gradient like any other: its log-probability
    # rises when the advantage is positive.
    model, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0]])
    aggregate = aggregation.sequence_mean_token_sum
    batch = helpers.one_batch(groups, on_policy=True, aggregate=aggregate)
    config = grpo_config.GRPOConfig(beta=0.0)

    def loss(logps):
        policy = common.PolicyLogps(logps, None)
        return policy_objective.objective_of_logps(policy, batch, config=config).loss_sum

    gradient = np.asarray(jax.grad(loss)(common.policy_logps(model, batch).logps))
    expected = [np.full(len(m.trained_ids), -m.advantage) for m in groups[0].trajectories]
    np.testing.assert_array_equal(gradient[batch.mask], np.concatenate(expected))
    assert not gradient[~batch.mask].any()


def test_on_policy_the_ratio_is_one_and_the_loss_is_minus_the_advantage():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    batch = helpers.one_batch(groups, on_policy=True)
    loss, _, output = loss_and_gradient(model, [batch])
    np.testing.assert_allclose(loss, -np.mean(LIVE), atol=1e-6)
    assert output.maxima["ratio_max"] == 1.0
    assert output.metrics["clip_fraction"][0] == 0.0


def test_the_loss_is_the_formula_written_out():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    groups = with_ref(groups)
    batch = helpers.one_batch(groups)
    loss, _, output = loss_and_gradient(model, [batch], beta=0.3, epsilon=0.1, epsilon_high=0.25)
    logps = helpers.naive_logps(model, groups, temperature=0.7)
    members = [m for g in groups for m in g.trajectories]
    per_sequence, kls, differences = [], [], []
    for own, member in zip(logps, members, strict=True):
        ratio = np.exp(own - member.trained_logps)
        gain = np.minimum(ratio * member.advantage, np.clip(ratio, 0.9, 1.25) * member.advantage)
        back = member.ref_logps - own
        kls.append(np.exp(back) - back - 1)
        per_sequence.append(np.mean(-gain + 0.3 * kls[-1]))
        differences.append(np.abs(own - member.trained_logps))
    np.testing.assert_allclose(loss, np.mean(per_sequence), rtol=1e-5)
    metrics = output.finalize()
    np.testing.assert_allclose(metrics["kl"], np.concatenate(kls).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["mismatch_abs"], np.concatenate(differences).mean(), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["mismatch_max"], np.concatenate(differences).max(), rtol=1e-4
    )


def test_every_setting_of_the_loss_changes_it():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    batch = helpers.one_batch(with_ref(groups))
    # Old log-probabilities of their own, so that a correction has something to correct.
    batch = batch.replace(old_logps=batch.sampler_logps - 0.1)
    base = {"beta": 0.1, "epsilon": 0.2}

    def loss_with(**changes):
        config = grpo_config.GRPOConfig(**{**base, **changes})
        output = jax.jit(functools.partial(grpo_loss.grpo_loss, config=config))(model, batch)
        return float(output.finalize()["loss"])

    reference = loss_with()
    for change in (
        {"beta": 0.2},
        {"kl_estimator": "k2"},
        {"epsilon": 0.4},
        {"epsilon_high": 0.5},
        {"epsilon": 0.01, "epsilon_c": 1.01},
        {"entropy_coef": 0.1},
        {"rollout_correction": "truncated-token"},
        {"rollout_correction": "truncated-sequence", "rollout_correction_limit": 1.1},
        {"kl_placement": "reward"},
        {"loss_algo": "gspo"},
        {"loss_algo": "gspo-token"},
        {"policy_loss_fn": plain_policy_gradient},
    ):
        assert abs(loss_with(**change) - reference) > 1e-4, change


def plain_policy_gradient(log_ratio, advantages, mask, *, clip_low, clip_high):
    return -jnp.exp(log_ratio) * advantages, {}


def test_entropy_is_logged_when_asked_for():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    batch = helpers.one_batch(groups)
    assert "entropy" not in loss_and_gradient(model, [batch])[2].metrics
    assert loss_and_gradient(model, [batch], log_entropy=True)[2].finalize()["entropy"] > 0.0
