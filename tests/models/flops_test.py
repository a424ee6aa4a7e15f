"""Counted operations against worked-out numbers and against the compiler's count."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tunix.models import flops
from tunix.models.llama3 import model as llama3


def config_of(**changes):
    settings = {
        "num_layers": 2,
        "vocab_size": 50,
        "embed_dim": 8,
        "hidden_dim": 12,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "precision": "exact",
    }
    return llama3.ModelConfig(**settings | changes)


def test_matrices_worked_out_by_hand():
    # q and o 2 * 8 * 24, k and v 2 * 8 * 12, MLP 3 * 8 * 12, two layers; head 50 * 8.
    assert flops.matrix_parameters(config_of()) == 2 * (384 + 192 + 288) + 400


def test_the_8b_model_is_8b():
    count = flops.matrix_parameters(llama3.ModelConfig.llama3p1_8b())
    assert count == pytest.approx(8.03e9 - 128_256 * 4096, rel=1e-3)


def test_only_visited_experts_count():
    moe = config_of(num_experts=10, num_experts_per_tok=3)
    expected = 2 * (384 + 192 + 3 * 288 + 80) + 400
    assert flops.matrix_parameters(moe) == expected


def test_a_window_bounds_what_local_layers_attend_to():
    windowed = config_of(attention_types=("local", "global"), sliding_window_size=5)
    plain = flops.forward_flops_per_token(config_of(), 100.0)
    # One of two layers sees 5 tokens instead of 100; 4 operations per channel of 24.
    assert plain - flops.forward_flops_per_token(windowed, 100.0) == 4 * 24 * 95


def test_the_backward_pass_costs_two_forward_passes_and_one_where_matrices_are_frozen():
    config, context = config_of(), 10.0
    forward = flops.forward_flops_per_token(config, context)
    assert flops.training_flops_per_token(config, context) == 3 * forward
    frozen = flops.training_flops_per_token(config, context, is_frozen=True)
    assert frozen == 3 * forward - 2 * flops.matrix_parameters(config)


def test_the_compiler_counts_about_the_same():
    config = config_of(embed_dim=64, hidden_dim=128, head_dim=16, scan_layers=False, remat="none")
    model = llama3.Llama3(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    tokens = jnp.zeros((1, 32), jnp.int32)
    compiled = jax.jit(lambda s: nnx.merge(graphdef, s)(tokens)[0]).lower(state).compile()
    # One chunk of 32 tokens is computed whole, hidden half included.
    ours = 32 * flops.forward_flops_per_token(config, 32.0)
    assert compiled.cost_analysis()["flops"] == pytest.approx(ours, rel=0.1)
