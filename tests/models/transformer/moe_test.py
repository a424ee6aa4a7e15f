"""Experts: routing and weights against a dense computation, on one device and on several."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import virtual_devices
from tunix.models.transformer import adapter as adapter_lib
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import moe

TINY = config_lib.TransformerConfig(
    num_layers=2,
    vocab_size=32,
    embed_dim=16,
    hidden_dim=12,
    num_heads=4,
    head_dim=4,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
    num_experts=8,
    num_experts_per_tok=3,
    precision="exact",
)


def tokens_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, TINY.vocab_size, shape), jnp.int32)


def mixture(**changes):
    """Return a mixture whose router and experts differ clearly, and tokens for it."""
    model = moe.MoE(dataclasses.replace(TINY, **changes), rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda leaf: 30 * leaf, nnx.state(model))
    nnx.update(model, state)
    return model, jax.random.normal(jax.random.key(1), (2, 5, TINY.embed_dim))


def apply(model, x):
    return model(x, adapters=adapter_lib.ON)


def dense(model, x, *, chosen, normalise):
    """Return what every expert makes of every token, weighted: the definition, not the way."""
    experts = model.experts
    probabilities = jax.nn.softmax(x @ model.gate.w[...], axis=-1)
    threshold = jnp.sort(probabilities, axis=-1)[..., -chosen, None]
    weights = jnp.where(probabilities >= threshold, probabilities, 0.0)
    if normalise:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    gate = jnp.einsum("btd,edf->btef", x, experts.gate_proj.w[...])
    up = jnp.einsum("btd,edf->btef", x, experts.up_proj.w[...])
    out = jnp.einsum("btef,efd->bted", jax.nn.silu(gate) * up, experts.down_proj.w[...])
    return jnp.einsum("bte,bted->btd", weights, out)


@pytest.mark.parametrize("chosen", [1, 3, 8])
@pytest.mark.parametrize("normalise", [True, False])
def test_each_token_gets_the_weighted_sum_of_its_experts(chosen, normalise):
    model, x = mixture(num_experts_per_tok=chosen, norm_topk_prob=normalise)
    expected = dense(model, x, chosen=chosen, normalise=normalise)
    np.testing.assert_allclose(apply(model, x), expected, rtol=2e-5, atol=2e-5)


def test_gradients_of_tokens_router_and_experts_are_those_of_the_dense_computation():
    model, x = mixture()
    graphdef, state = nnx.split(model)

    def gradient(function):
        def loss(state, x):
            return (function(nnx.merge(graphdef, state), x) ** 2).sum()

        return jax.grad(loss, argnums=(0, 1))(state, x)

    found = gradient(apply)
    expected = gradient(lambda model, x: dense(model, x, chosen=3, normalise=True))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert float(jnp.abs(b).max()) > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


def test_a_token_is_routed_without_regard_to_the_others():
    model, x = mixture()
    together = apply(model, x)
    for row in range(2):
        for t in range(5):
            alone = apply(model, x[row : row + 1, t : t + 1])
            np.testing.assert_allclose(alone[0, 0], together[row, t], rtol=1e-5, atol=1e-5)


def test_the_best_expert_comes_first_and_its_weight_is_its_probability():
    model, x = mixture(norm_topk_prob=False)
    scores = x.reshape(-1, TINY.embed_dim) @ model.gate.w[...]
    weights, experts = model.gate(x.reshape(-1, TINY.embed_dim))
    np.testing.assert_array_equal(experts[:, 0], scores.argmax(axis=-1))
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(weights, np.sort(probabilities)[:, ::-1][:, :3], rtol=1e-4)


def test_weights_know_their_dimensions():
    axes = {
        ".".join(map(str, path)): leaf.get_metadata("logical_axes")
        for path, leaf in nnx.to_flat_state(nnx.state(mixture()[0]))
    }
    assert axes == {
        "gate.w": ("embed", None),
        "experts.gate_proj.w": ("experts", "embed", "mlp"),
        "experts.up_proj.w": ("experts", "embed", "mlp"),
        "experts.down_proj.w": ("experts", "mlp", "embed"),
    }


@pytest.mark.slow
def test_experts_over_four_devices_compute_the_same_and_stay_where_they_are():
    report = virtual_devices.run("tests.models.transformer.moe_run", devices=4)
    assert report.keys() == {"ep", "fsdp,ep"}
    for found in report.values():
        assert found["logits"] < 1e-5
        assert found["gradient"] < 1e-5
        assert found["share"] == 1 / 4
