"""Dummy models are random, deterministic, and the same in every layout."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tunix.models import dummy_model_creator
from tunix.models.llama3 import model as llama3
from tunix.models.transformer import layout, sharding

TINY = llama3.ModelConfig(
    num_layers=3,
    vocab_size=64,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=1e4,
    norm_eps=1e-5,
)


def create(config=TINY, **options):
    return dummy_model_creator.create_dummy_model(llama3.Llama3, config, **options)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


def test_a_seed_gives_the_same_weights_again_and_another_seed_others():
    assert_equal(create(random_seed=3), create(random_seed=3))
    a, b = create(random_seed=3).embed_tokens.w[...], create(random_seed=4).embed_tokens.w[...]
    assert not np.array_equal(a, b)


def test_matrices_have_the_scale_asked_for_and_norms_are_ones():
    model = create(scale=0.5)
    for matrix in (model.embed_tokens, model.lm_head, model.layers.mlp.up_proj):
        assert float(matrix.w[...].std()) == pytest.approx(0.5, rel=0.1)
        assert float(matrix.w[...].mean()) == pytest.approx(0.0, abs=0.05)
    np.testing.assert_array_equal(model.norm.scale[...], np.ones(32))
    np.testing.assert_array_equal(model.layers.input_layernorm.scale[...], np.ones((3, 32)))


def test_no_two_matrices_and_no_two_layers_are_alike():
    model = create()
    k, v = model.layers.self_attn.k_proj.w[...], model.layers.self_attn.v_proj.w[...]
    assert not np.array_equal(k, v)
    assert not np.array_equal(k[0], k[1])
    assert not np.array_equal(model.embed_tokens.w[...], model.lm_head.w[...])


def test_unrolled_layers_get_the_weights_of_stacked_ones():
    unrolled = create(dataclasses.replace(TINY, scan_layers=False))
    assert_equal(unrolled, layout.unroll_layers(create()))


def test_a_dtype_and_a_mesh_change_storage_only():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"))
    placed = create(mesh=mesh)
    assert placed.lm_head.w.get_raw_value().sharding.mesh == sharding.with_propagated_axes(mesh)
    assert_equal(placed, create())
    stored = create(dtype="bfloat16")
    assert stored.config.param_dtype == "bfloat16"
    np.testing.assert_array_equal(
        stored.lm_head.w[...], placed.lm_head.w[...].astype(stored.lm_head.w.dtype)
    )
