"""The sampler's copy of the weights: its layout, its dtypes, and that it is a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tunix.generate import engine, sampling_params, weight_sync
from tunix.models.transformer import config as config_lib
from tunix.models.transformer import decoder as decoder_lib


def build(precision, *, scan=True, tied=True, seed=0):
    config = config_lib.TransformerConfig(
        num_layers=2,
        vocab_size=40,
        embed_dim=16,
        hidden_dim=24,
        num_heads=2,
        head_dim=8,
        num_kv_heads=1,
        rope_theta=1e4,
        norm_eps=1e-5,
        weight_tying=tied,
        scan_layers=scan,
        precision=precision,
    )
    return decoder_lib.Decoder(config, rngs=nnx.Rngs(seed))


def flat(weights):
    return {".".join(map(str, p)): leaf[...] for p, leaf in nnx.to_flat_state(weights.state)}


@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "unrolled"])
def test_layers_are_unrolled_and_hold_the_same_numbers(scan):
    model = build("exact", scan=scan)
    weights = flat(weight_sync.WeightSync(model)(model))
    layers = model.layers
    for i in range(2):
        expected = layers.mlp.up_proj.w[i] if scan else layers[i].mlp.up_proj.w[...]
        np.testing.assert_array_equal(weights[f"layers.{i}.mlp.up_proj.w"], expected)


def test_exact_precision_casts_nothing():
    model = build("exact")
    sync = weight_sync.WeightSync(model)
    weights = sync(model)
    assert {leaf.dtype for leaf in flat(weights).values()} == {jnp.dtype("float32")}
    assert weights.head is None
    assert sync.cache_dtype == jnp.float32


def test_fast_precision_stores_operands_of_products_in_bfloat16_and_nothing_else():
    model = build("fast")
    sync = weight_sync.WeightSync(model)
    weights = sync(model)
    dtypes = {path: leaf.dtype for path, leaf in flat(weights).items()}
    assert dtypes["layers.1.self_attn.o_proj.w"] == jnp.bfloat16
    assert dtypes["layers.0.input_layernorm.scale"] == jnp.float32
    assert dtypes["embed_tokens.w"] == jnp.float32
    np.testing.assert_array_equal(weights.head, model.embed_tokens.w[...].astype(jnp.bfloat16))
    assert sync.cache_dtype == jnp.bfloat16


def test_an_untied_head_is_kept_once():
    model = build("fast", tied=False)
    weights = weight_sync.WeightSync(model)(model)
    assert weights.head is None
    assert flat(weights)["lm_head.w"].dtype == jnp.bfloat16


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "unrolled"])
def test_no_buffer_is_shared_with_the_trainer(precision, scan):
    model = build(precision, scan=scan)
    weights = weight_sync.WeightSync(model)(model)
    theirs = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(model))}
    ours = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(weights)}
    assert not theirs & ours


def test_an_engine_survives_a_trainer_that_donates_its_weights():
    model = build("exact")
    ours = engine.Engine(model, max_slots=2, cache_size=16)
    for leaf in jax.tree.leaves(nnx.state(model)):
        leaf.delete()
    params = sampling_params.SamplingParams(max_new_tokens=2)
    assert len(ours.generate([[1, 2]], params, key=jax.random.key(0))) == 1


def test_weights_that_diverged_leave_nothing_behind():
    model, broken = build("exact"), build("exact")
    nnx.update(broken, jax.tree.map(lambda x: x * jnp.nan, nnx.state(broken)))
    params = sampling_params.SamplingParams(max_new_tokens=3, temperature=0.0)
    ours = engine.Engine(model, max_slots=2, cache_size=16)
    before = ours.generate([[1, 2, 3]], params, key=jax.random.key(0))[0]
    ours.sync(broken)
    ours.generate([[1] * 9], params, key=jax.random.key(0))
    ours.sync(model)
    after = ours.generate([[1, 2, 3]], params, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(before.logps, after.logps)


def test_every_leaf_that_does_not_fit_is_named():
    model = build("exact")
    state = nnx.state(model)
    leaves = dict(nnx.to_flat_state(state))
    del leaves["norm", "scale"]
    leaves["norm", "bias"] = nnx.Param(jnp.zeros(3))
    leaves["embed_tokens", "w"] = nnx.Param(jnp.zeros((3, 16)))
    with pytest.raises(weight_sync.WeightMismatchError) as error:
        weight_sync.WeightSync(model)(nnx.from_flat_state(leaves.items()))
    assert error.value.problems == (
        "embed_tokens.w has shape (3, 16), expected (40, 16)",
        "norm.bias (3,) is unexpected",
        "norm.scale (16,) is missing",
    )


def test_fast_sampling_agrees_with_the_fast_model_to_the_rounding_of_bfloat16():
    model = build("fast")
    nnx.update(model, jax.tree.map(lambda x: 3 * x, nnx.state(model)))
    ours = engine.Engine(model, max_slots=2, cache_size=32)
    prompt = [3, 1, 4, 1, 5]
    params = sampling_params.SamplingParams(max_new_tokens=12)
    one = ours.generate([prompt], params, key=jax.random.key(0))[0]
    logits, _ = model(jnp.asarray([[*prompt, *one.token_ids]]))
    expected = jax.nn.log_softmax(logits[0, len(prompt) - 1 : -1])[np.arange(12), one.token_ids]
    np.testing.assert_allclose(one.logps, expected, atol=0.02)
