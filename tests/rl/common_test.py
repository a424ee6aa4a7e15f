import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.models import lora
from tunix.rl import common

ADVANTAGES = [[1.0, -1.0, 0.5], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]


class Foreign(nnx.Module):
    """A module of the plain call contract: it knows neither segments nor hidden states."""

    def __init__(self, model):
        self.model = model

    def __call__(self, input_tokens, positions, cache, attention_mask):
        return self.model(input_tokens, positions, cache, attention_mask)


def logps_of(model, groups, **changes):
    return helpers.per_trajectory(groups, lambda b: common.policy_logps(model, b).logps, **changes)


def assert_rows_match(logps, expected, tolerance=1e-5):
    for row, values in zip(logps, expected, strict=True):
        np.testing.assert_allclose(row, values, atol=tolerance)


@pytest.mark.parametrize("shape", [(6, 48), (1, 48), (2, 16)])
def test_logps_are_those_of_one_pass_per_completion_at_the_sampling_temperature(shape):
    model, groups = helpers.tiny_decoder(), helpers.make_groups(ADVANTAGES)
    found = logps_of(model, groups, shape=shape)
    assert_rows_match(found, helpers.naive_logps(model, groups, temperature=0.7))


def test_temperature_is_part_of_the_policy():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(ADVANTAGES)
    hot = logps_of(model, groups, temperature=2.0)
    assert_rows_match(hot, helpers.naive_logps(model, groups, temperature=2.0))


def test_a_group_split_over_rows_has_the_same_logps():
    model, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0] * 9], max_prompt=12)
    found = logps_of(model, groups, shape=(8, 16))
    assert_rows_match(found, helpers.naive_logps(model, groups, 0.7))


def test_foreign_modules_get_the_same_logps_from_their_logits():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(ADVANTAGES)
    batch = helpers.one_batch(groups)
    foreign = common.policy_logps(Foreign(model), batch, with_entropy=True)
    ours = common.policy_logps(model, batch, with_entropy=True)
    held = batch.mask
    np.testing.assert_allclose(foreign.logps[held], ours.logps[held], atol=1e-5)
    np.testing.assert_allclose(foreign.entropy[held], ours.entropy[held], atol=1e-5)


def test_logits_of_half_precision_are_normalised_in_full_precision():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(ADVANTAGES)
    batch = helpers.one_batch(groups)

    def halved(*inputs):
        logits, cache = model(*inputs)
        return (50.0 * logits).astype(jnp.bfloat16), cache

    found = common.policy_logps(Foreign(halved), batch, with_entropy=True)
    assert found.logps.dtype == found.entropy.dtype == jnp.float32
    logits, _ = halved(
        batch.tokens, batch.positions, None, batch.visibility.dense_mask(batch.tokens.shape)
    )
    exact = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])[batch.source] / 0.7
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(exact, np.asarray(batch.targets)[:, None], axis=-1)[:, 0]
    np.testing.assert_allclose(found.logps, expected, rtol=1e-5)


def test_adapters_can_be_left_out():
    model, groups = helpers.tiny_decoder(), helpers.make_groups(ADVANTAGES)
    batch = helpers.one_batch(groups)
    base = common.policy_logps(model, batch).logps
    lora.apply_lora(model, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    for _, projection in lora.iter_projections(model):
        projection.lora_b[...] = jnp.ones_like(projection.lora_b[...])
    assert np.abs(common.policy_logps(model, batch).logps - base).max() > 0.01
    np.testing.assert_array_equal(common.policy_logps(model, batch, adapters=False).logps, base)


def test_the_adapters_of_a_foreign_module_cannot_be_left_out():
    batch = helpers.one_batch(helpers.make_groups(ADVANTAGES))
    with pytest.raises(ValueError, match="give the cluster a reference model"):
        common.policy_logps(Foreign(helpers.tiny_decoder()), batch, adapters=False)


def test_entropy_is_that_of_the_tempered_distribution():
    model, groups = helpers.tiny_decoder(), helpers.make_groups([[1.0]])
    entropy = common.policy_logps(model, helpers.one_batch(groups), with_entropy=True).entropy
    group = groups[0]
    logits = np.asarray(model(jnp.asarray(group.prompt_ids[None]))[0], np.float64)[0, -1] / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    np.testing.assert_allclose(entropy[0], -(p * np.log(p)).sum(), atol=1e-5)


def test_masks_follow_from_lengths():
    # Token 0 and the last token of the vocabulary are trained like any other: there is no pad id.
    groups = helpers.make_groups([[1.0, -1.0]])
    for group in groups:
        for member in group.trajectories:
            member.trained_ids[:] = 0
    batch = helpers.one_batch(groups)
    lengths = [len(m.trained_ids) for m in groups[0].trajectories]
    np.testing.assert_array_equal(np.bincount(batch.sequence[batch.mask]), lengths)
