"""Loss and gradient do not depend on how a rollout is laid out, whatever the objective."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from tests.rl import helpers
from tunix.rl.grpo import (
    cispo_learner,
    dapo_learner,
    drgrpo_learner,
    grpo_config,
    gspo_learner,
    reinforce_plus_plus_learner,
    rloo_learner,
)
from tunix.rl.objectives import aggregation, credit, critic, policy_objective
from tunix.rl.ppo import ppo_learner

LIVE = [[1.0, -1.0, 0.5], [0.2, 0.3, -0.5], [1.5, -0.5, -1.0]]
OBJECTIVES = {
    "grpo": grpo_config.GRPOConfig(beta=0.1),
    "dapo": dapo_learner.DAPOConfig(),
    "drgrpo": drgrpo_learner.DrGRPOConfig(beta=0.1),
    "gspo": gspo_learner.GSPOConfig(epsilon=0.1, epsilon_high=0.2),
    "gspo-token": gspo_learner.GSPOConfig(loss_algo="gspo-token", epsilon=0.1, epsilon_high=0.2),
    "rloo": rloo_learner.RLOOConfig(rollout_correction="truncated-sequence"),
    "reinforce++": reinforce_plus_plus_learner.ReinforcePlusPlusConfig(entropy_coef=0.05),
    "cispo": cispo_learner.CISPOConfig(rollout_correction="masked-token"),
    "ppo": ppo_learner.PPOConfig(epsilon_c=2.0, entropy_coef=0.01),
}


def rollout():
    """Groups whose tokens differ in advantage, values and returns, as PPO's do."""
    groups = helpers.make_groups(LIVE)
    members = credit.members_of(groups)
    rng = np.random.default_rng(1)

    def noise():
        return [rng.normal(size=one.num_trained).astype(np.float32) for one in members]

    advantages = [
        one.advantage_of_tokens + 0.2 * own for one, own in zip(members, noise(), strict=True)
    ]
    groups = credit.with_token_advantages(groups, advantages)
    groups = credit.with_values(groups, noise(), noise())
    ref = [own - 2.5 for own in noise()]
    return credit.rewritten(groups, lambda t, own: dataclasses.replace(t, ref_logps=own), ref)


def objective_of(config):
    beta = config.loss_beta if isinstance(config, grpo_config.GRPOConfig) else 0.0
    return functools.partial(policy_objective.policy_objective, config=config, kl_beta=beta)


class TinyModel(nnx.Module):
    """Logits of a token and its position: enough to notice anything laid down wrongly."""

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 2)
        self.token = nnx.Param(jax.random.normal(keys[0], (61, 61)))
        self.position = nnx.Param(0.5 * jax.random.normal(keys[1], (16, 61)))

    def __call__(self, tokens, positions, cache, attention_mask):
        return self.token[...][tokens] + self.position[...][positions], None


class TinyCritic(TinyModel):
    def __call__(self, tokens, visibility):
        return super().__call__(tokens, visibility.positions, None, None)[0][..., 0]


def sums_of(objective, model, batches):
    """Summed gradient, losses and weights over batches: what a trainer adds up."""
    graphdef, state = nnx.split(model)

    def loss_sum(state, batch):
        output = objective(nnx.merge(graphdef, state), batch)
        return output.loss_sum, output.weight_sum

    parts = []
    for batch in batches:
        (loss, weight), grads = jax.value_and_grad(loss_sum, has_aux=True)(
            state, jax.tree.map(jnp.asarray, batch)
        )
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
        parts.append((flat, float(loss), float(weight)))
    return parts


def mean_of(parts):
    gradient, loss, weight = (sum(column) for column in zip(*parts, strict=True))
    return gradient / weight, loss / weight


LAYOUTS = st.fixed_dictionaries({"shape": st.sampled_from([(1, 16), (2, 16), (1, 48), (3, 48)])})


def aggregated(name):
    """How the objective of this name weighs tokens; a critic's all alike."""
    return {} if name == "critic" else {"aggregate": OBJECTIVES[name].aggregate}


@functools.cache
def whole(name):
    objective, model, groups = prepared(name)
    batches = helpers.one_by_one(groups, **aggregated(name))
    return mean_of(sums_of(objective, model, batches))


def prepared(name):
    if name == "critic":
        return functools.partial(critic.value_objective, clip_range=0.2), TinyCritic(), rollout()
    return objective_of(OBJECTIVES[name]), TinyModel(), rollout()


@pytest.mark.parametrize("name", [*OBJECTIVES, "critic"])
@hypothesis.settings(max_examples=4, derandomize=True)
@hypothesis.given(layout=LAYOUTS)
def test_chunks_and_packing_change_nothing(name, layout):
    objective, model, groups = prepared(name)
    batches = helpers.make_step(groups, **layout, **aggregated(name)).batches
    gradient, loss = mean_of(sums_of(objective, model, batches))
    expected, expected_loss = whole(name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(gradient - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_mean_of_means_would_change_something():
    # The check itself: dividing each micro-batch by its own weight is another gradient.
    objective, model, groups = prepared("dapo")
    batches = helpers.make_step(groups, shape=(1, 16), **aggregated("dapo")).batches
    parts = sums_of(objective, model, batches)
    wrong = np.mean([gradient / weight for gradient, _, weight in parts], axis=0)
    expected, _ = whole("dapo")
    assert np.linalg.norm(wrong - expected) > 1e-2 * np.linalg.norm(expected)


def test_the_entropy_bonus_is_the_entropy_and_its_gradient_raises_it():
    model, groups = TinyModel(), helpers.make_groups([[0.0, 0.0]])
    batch = helpers.one_batch(groups, on_policy=True, aggregate=aggregation.token_mean)
    config = grpo_config.GRPOConfig(beta=0.0, entropy_coef=0.5)
    output = objective_of(config)(model, batch)
    entropy = output.finalize()["entropy"]
    assert entropy > 0.0
    np.testing.assert_allclose(output.finalize()["loss"], -0.5 * entropy, rtol=1e-6)
    ((gradient, _, _),) = sums_of(objective_of(config), model, [batch])
    assert np.linalg.norm(gradient) > 0.0


def test_a_correction_weighs_the_policy_loss_and_not_the_kl():
    model, groups = TinyModel(), helpers.make_groups(LIVE)
    batch = helpers.one_batch(groups)
    batch = batch.replace(old_logps=batch.sampler_logps + np.log(1.5).astype(np.float32))
    batch = batch.replace(ref_logps=batch.sampler_logps)
    plain = grpo_config.GRPOConfig(beta=0.0)
    corrected = grpo_config.GRPOConfig(
        beta=0.0, rollout_correction="truncated-token", rollout_correction_limit=1.4
    )
    losses = {}
    for beta in (0.0, 0.3):
        for name, config in (("plain", plain), ("corrected", corrected)):
            config = dataclasses.replace(config, beta=beta)
            losses[name, beta] = float(objective_of(config)(model, batch).finalize()["loss"])
    np.testing.assert_allclose(losses["corrected", 0.0], 1.4 * losses["plain", 0.0], rtol=1e-5)
    np.testing.assert_allclose(
        losses["corrected", 0.3] - losses["corrected", 0.0],
        losses["plain", 0.3] - losses["plain", 0.0],
        rtol=1e-4,
    )


def test_every_aggregation_is_among_the_objectives():
    used = {config.loss_agg_mode for config in OBJECTIVES.values()}
    assert used == set(aggregation.AGGREGATIONS)
