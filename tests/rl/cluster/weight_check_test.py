"""A sync that went wrong is noticed, and says where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.rl import helpers
from tunix.generate import engine
from tunix.models import lora
from tunix.rl import rl_cluster
from tunix.rl.cluster import weight_check
from tunix.rl.rollout import vanilla_rollout


def held(model):
    return engine.Engine(model, max_slots=2, cache_size=16).weights.state


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_the_weights_of_an_engine_are_the_models(precision, scan_layers):
    model = helpers.tiny_decoder(precision=precision, scan_layers=scan_layers)
    weight_check.check(nnx.state(model), held(model))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x.at[3, 1].add(1e-6), id="one element, a little"),
        pytest.param(lambda x: x[::-1], id="rows in another order"),
        pytest.param(lambda x: -x, id="signs"),
    ],
)
def test_other_values_are_named(change):
    model = helpers.tiny_decoder()
    state = held(model)
    leaf = state["layers"][1]["mlp"]["up_proj"]["w"]
    leaf.set_raw_value(change(leaf.get_value()))
    with pytest.raises(weight_check.WeightSyncError) as caught:
        weight_check.check(nnx.state(model), state)
    assert list(caught.value.problems) == ["layers.1.mlp.up_proj.w has other values"]


def test_missing_and_misshapen_weights_are_named():
    model = helpers.tiny_decoder()
    state = held(model)
    flat = dict(nnx.to_flat_state(state))
    del flat[("norm", "scale")]
    path = ("embed_tokens", "w")
    flat[path] = flat[path].replace(flat[path].get_value()[:5])
    with pytest.raises(weight_check.WeightSyncError) as caught:
        weight_check.check(nnx.state(model), nnx.from_flat_state(flat.items()))
    assert list(caught.value.problems) == [
        "norm.scale is missing",
        "embed_tokens.w has shape (5, 32), the actor's has (61, 32)",
    ]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.int4, jnp.bool_])
def test_a_checksum_is_the_sum_of_hashes(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)) * 3).astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        bits = np.asarray(x).view({2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
    else:
        bits = np.asarray(x.astype(jnp.int32)).view(np.uint32)
    want = sum(mixed((int(b) + mixed(i)) % 2**32) for i, b in enumerate(bits.ravel())) % 2**32
    assert int(jax.jit(weight_check.checksum)(x)) == want


def mixed(x):
    """MurmurHash3's finaliser, by the book."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
    return x ^ (x >> 16)


class Forgetful(vanilla_rollout.VanillaRollout):
    """Samples from the first weights for ever."""

    def update_params(self, params):
        pass


def make_cluster(rollout_engine, actor, **settings):
    return rl_cluster.RLCluster(
        actor=actor,
        tokenizer=helpers.CharTokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.sgd(0.1), eval_every_n_steps=1
            ),
            rollout_config=helpers.ROLLOUT,
            rollout_engine=rollout_engine,
            **settings,
        ),
    )


def test_a_sync_that_did_nothing_is_noticed_only_if_asked_for():
    for verify in (False, True):
        cluster = make_cluster(Forgetful, helpers.tiny_decoder(), verify_weight_sync=verify)
        cluster.sync_weights()
        cluster.actor_trainer.model.norm.scale[...] *= 2.0
        if verify:
            with pytest.raises(weight_check.WeightSyncError, match=r"norm\.scale has other values"):
                cluster.sync_weights()
        else:
            cluster.sync_weights()


def test_a_sync_of_adapters_leaves_the_base_alone_and_has_the_bits_of_a_whole_one():
    actor = helpers.tiny_decoder(precision="fast")
    lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    cluster = make_cluster("vanilla", actor, verify_weight_sync=True)
    before = cluster.rollout.weights()
    for _, projection in lora.iter_projections(cluster.actor_trainer.model):
        projection.lora_b[...] += 0.5
    cluster.sync_weights()
    after = cluster.rollout.weights()
    base = [("embed_tokens", "w"), ("layers", 0, "self_attn", "q_proj", "w")]
    kept, new, whole = (
        dict(nnx.to_flat_state(state))
        for state in (before, after, held(cluster.actor_trainer.model))
    )
    assert all(new[path].get_value() is kept[path].get_value() for path in base)
    for path, leaf in whole.items():
        np.testing.assert_array_equal(new[path].get_value(), leaf.get_value(), err_msg=str(path))


def test_an_adapter_that_was_replaced_meanwhile_is_an_error():
    actor = helpers.tiny_decoder()
    lora.apply_lora(actor, lora.LoraConfig(rank=2, alpha=8.0), rngs=nnx.Rngs(1))
    cluster = make_cluster("vanilla", actor)
    (_, projection), *_ = lora.iter_projections(actor)
    projection.adapter = dataclasses.replace(projection.adapter, alpha=1.0)
    with pytest.raises(ValueError, match=r"alpha=1\.0.*expected .*alpha=8\.0"):
        cluster.sync_weights()
