import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.rl import aggregation, batching, common, packing
from tunix.rl.grpo import grpo_config, grpo_loss

LIVE = [[1.0, -1.0, 0.5], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]
WITH_DEAD = [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0]]


def loss_and_gradient(model, batches, **settings):
    """Mean loss over the summed weight of all batches, and its gradient."""
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
    grads = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [g for _, g in parts])
    flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    weight = float(total.weight_sum)
    return float(total.loss_sum) / weight, flat / weight, total


def step_batches(groups, **changes):
    settings = batching.BatchSettings(**{**vars(helpers.SETTINGS), **changes})
    return batching.make_step_batches(groups, settings, from_sampler=True)


def with_ref(batch, groups, seed=5):
    """The batch with reference log-probabilities that differ from the policy's."""
    rng = np.random.default_rng(seed)
    return batch.replace(ref_logps=rng.uniform(-4, -1, batch.sampler_logps.shape).astype("float32"))


def assert_same(left, right, tolerance=1e-5):
    np.testing.assert_allclose(left[0], right[0], atol=tolerance, rtol=tolerance)
    difference = np.linalg.norm(left[1] - right[1]) / np.linalg.norm(right[1])
    assert difference < tolerance, difference


@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_a_shared_prompt_gives_the_loss_and_gradient_of_one_row_per_completion(mode):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    packed = helpers.one_batch(groups)
    padded = helpers.one_batch(groups, layout_fn=packing.pad_rows)
    assert packed.tokens.size < padded.tokens.size
    assert_same(
        loss_and_gradient(model, [packed], loss_agg_mode=mode),
        loss_and_gradient(model, [padded], loss_agg_mode=mode),
    )


@pytest.mark.parametrize("loss_algo", ["grpo", "gspo-token"])
@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_micro_batches_change_neither_loss_nor_gradient(mode, loss_algo):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    settings = {"loss_agg_mode": mode, "loss_algo": loss_algo, "beta": 0.1}
    whole, split = step_batches(groups), step_batches(groups, micro_batch_size=1)
    assert (len(whole.batches), len(split.batches)) == (1, 3)
    assert len({batch.tokens.shape for batch in split.batches}) == 1
    assert_same(
        loss_and_gradient(model, [with_ref(b, groups) for b in split.batches], **settings),
        loss_and_gradient(model, [with_ref(b, groups) for b in whole.batches], **settings),
    )


@pytest.mark.parametrize("mode", aggregation.AGGREGATIONS)
def test_leaving_dead_sequences_out_changes_neither_loss_nor_gradient(mode):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(WITH_DEAD)
    skipped, computed = step_batches(groups, skip_dead=True), step_batches(groups)
    assert skipped.num_tokens < computed.num_tokens
    assert_same(
        loss_and_gradient(model, skipped.batches, loss_agg_mode=mode),
        loss_and_gradient(model, computed.batches, loss_agg_mode=mode),
    )


def test_the_weight_of_dead_groups_is_counted_once_over_micro_batches():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(WITH_DEAD)
    skipped = step_batches(groups, skip_dead=True, micro_batch_size=1)
    assert len(skipped.batches) == 2
    assert_same(
        loss_and_gradient(model, skipped.batches),
        loss_and_gradient(model, step_batches(groups).batches),
    )


def test_nothing_but_dead_groups_gives_zero_loss_with_full_weight():
    model, groups = helpers.tiny_decoder(), helpers.make_groups([[0.0, 0.0, 0.0]] * 2)
    loss, gradient, output = loss_and_gradient(model, step_batches(groups, skip_dead=True).batches)
    assert loss == 0.0
    assert np.all(gradient == 0.0)
    assert output.weight_sum == 6.0


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
    _, _, output = loss_and_gradient(model, step_batches(groups, mask_truncated=True).batches)
    assert output.weight_sum == sum(not m.truncated for m in members)


def test_the_last_token_is_trained():
    # The token that ends a completion (EOS) has a gradient like any other: its log-probability
    # rises when the advantage is positive.
    model, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0, -1.0]])
    batch = jax.tree.map(jnp.asarray, helpers.one_batch(groups, from_sampler=False))

    def loss(logps, mask):
        zero = jax.lax.stop_gradient(logps)
        log_ratio = config.importance_fn(logps, zero, mask)
        per_token, _ = config.policy_loss(
            log_ratio, batch.advantages, mask, clip_low=0.2, clip_high=0.2
        )
        return config.aggregate(per_token, mask, max_length=6)[0]

    config = grpo_config.GRPOConfig(beta=0.0, loss_agg_mode="sequence-mean-token-sum")
    logps = common.policy_logps(model, batch).logps
    gradient = np.asarray(jax.grad(loss)(logps, batch.computed))
    for row, member in zip(gradient, groups[0].trajectories, strict=True):
        np.testing.assert_array_equal(row[: len(member.trained_ids)], -member.advantage)


def test_on_policy_the_ratio_is_one_and_the_loss_is_minus_the_advantage():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    batch = helpers.one_batch(groups, from_sampler=False)
    loss, _, output = loss_and_gradient(model, [batch])
    np.testing.assert_allclose(loss, -np.mean(LIVE), atol=1e-6)
    assert output.maxima["ratio_max"] == 1.0
    assert output.metrics["clip_fraction"][0] == 0.0


def test_the_loss_is_the_formula_written_out():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(LIVE)
    batch = with_ref(helpers.one_batch(groups), groups)
    loss, _, output = loss_and_gradient(model, [batch], beta=0.3, epsilon=0.1, epsilon_high=0.25)
    logps = helpers.naive_logps(model, groups, temperature=0.7)
    members = [m for g in groups for m in g.trajectories]
    per_sequence, kls, differences = [], [], []
    for s, (own, member) in enumerate(zip(logps, members, strict=True)):
        ratio = np.exp(own - member.trained_logps)
        gain = np.minimum(ratio * member.advantage, np.clip(ratio, 0.9, 1.25) * member.advantage)
        back = np.asarray(batch.ref_logps)[s, : len(own)] - own
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
    batch = with_ref(helpers.one_batch(groups), groups)
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
        {"loss_agg_mode": "token-mean"},
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
