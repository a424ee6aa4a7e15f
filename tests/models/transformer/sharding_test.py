"""Placement rules: one table, and errors that say what does not divide."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from tests.models.transformer import decoder_test
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import sharding


def test_a_weight_is_placed_by_what_its_dimensions_are():
    spec = sharding.partition_spec(
        ("layers", "embed", "heads"), sharding.FSDP_TP, {"fsdp": 4, "tp": 2}
    )
    assert spec == PartitionSpec(None, "fsdp", "tp")


def test_a_mesh_without_an_axis_replicates_it():
    spec = sharding.partition_spec(("embed", "mlp"), sharding.FSDP_TP, {"fsdp": 4})
    assert spec == PartitionSpec("fsdp", None)


def test_every_parameter_that_does_not_divide_is_named():
    state = nnx.state(decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(sharding.ShardingError) as error:
        sharding.state_shardings(state, jax.sharding.AbstractMesh((5, 1), ("fsdp", "tp")))
    assert "layers.self_attn.q_proj.w: embed has size 32" in str(error.value)
    assert "mesh axis 'fsdp' of size 5 does not divide" in str(error.value)
    assert len(error.value.problems) > 5


def test_a_sharded_model_computes_the_same_logits():
    model = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    tokens = decoder_test.tokens_of(2, 5)
    expected = model(tokens)[0]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    sharding.shard_model(model, mesh)
    assert model.embed_tokens.w[...].sharding.spec == PartitionSpec("tp", "fsdp")
    np.testing.assert_allclose(model(tokens)[0], expected, atol=1e-6)


def test_a_mesh_of_explicit_axes_is_taken_as_one_that_propagates():
    model = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    tokens = decoder_test.tokens_of(2, 5)
    expected = model(tokens)[0]
    sharding.shard_model(model, jax.make_mesh((1, 1), ("fsdp", "tp")))
    np.testing.assert_allclose(jax.jit(lambda m: m(tokens)[0])(model), expected, atol=1e-6)
