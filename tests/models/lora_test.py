"""Adapters: what they change, what they leave alone, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.transformer import decoder_test
from tunix.models import lora
from tunix.models.transformer import decoder as decoder_lib
from tunix.models.transformer import layout
from tunix.utils import config as utils_config

TOKENS = decoder_test.tokens_of(2, 7)


def adapted(pattern=lora.ALL_LINEAR, *, scanned=True, nonzero=True):
    model = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    model = model if scanned else layout.unroll_layers(model)
    config = lora.LoraConfig(rank=3, alpha=6.0, module_path=pattern)
    lora.apply_lora(model, config, rngs=nnx.Rngs(1))
    if nonzero:
        for _, module in lora.iter_projections(model):
            if module.lora_scale is not None:
                key = jax.random.key(module.lora_b.size)
                module.lora_b[...] = 0.1 * jax.random.normal(key, module.lora_b.shape)
    return model


def test_fresh_adapters_do_not_change_the_model():
    base = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(adapted(nonzero=False)(TOKENS)[0], base(TOKENS)[0])


def test_switched_off_adapters_give_the_base_model_exactly():
    base = decoder_lib.Decoder(decoder_test.TINY, rngs=nnx.Rngs(0))
    model = adapted()
    assert np.abs(model(TOKENS)[0] - base(TOKENS)[0]).max() > 1e-3
    np.testing.assert_array_equal(model(TOKENS, adapters=False)[0], base(TOKENS)[0])


@pytest.mark.parametrize("scanned", [True, False], ids=["scanned", "unrolled"])
def test_merging_keeps_the_function_and_removes_the_adapters(scanned):
    model = adapted(scanned=scanned)
    expected = model(TOKENS)[0]
    merged = lora.merge_lora(model)
    assert not lora.is_lora_enabled(merged)
    np.testing.assert_allclose(merged(TOKENS)[0], expected, atol=2e-6, rtol=2e-6)


def test_an_adapted_model_unrolls_with_its_adapters():
    model = adapted()
    np.testing.assert_allclose(
        layout.unroll_layers(model)(TOKENS)[0], model(TOKENS)[0], atol=2e-6, rtol=2e-6
    )


def test_one_projection_computes_base_plus_scaled_low_rank_product():
    module = adapted(scanned=False).layers[0].mlp.up_proj
    x = jax.random.normal(jax.random.key(0), (5, 32))
    w, a, b = (np.asarray(p[...], np.float64) for p in (module.w, module.lora_a, module.lora_b))
    expected = x @ w + 2.0 * (x @ a) @ b  # alpha / rank = 2
    np.testing.assert_allclose(module(x), expected, atol=1e-5)


def test_only_adapters_are_lora_parameters():
    state = nnx.to_flat_state(nnx.state(adapted(".*q_proj|.*v_proj"), nnx.LoRAParam))
    names = {".".join(map(str, path)) for path, _ in state}
    expected = {f"layers.self_attn.{p}_proj.lora_{x}" for p in ("q", "v") for x in ("a", "b")}
    assert names == expected


def test_a_pattern_alternative_that_matches_nothing_is_an_error_with_a_hint():
    with pytest.raises(utils_config.ConfigError) as error:
        adapted(".*q_proj|.*gate_prj")
    assert "'.*gate_prj' matches no projection" in str(error.value)
    assert "did you mean 'gate_proj'?" in str(error.value)


def test_rank_and_alpha_are_checked_together():
    with pytest.raises(utils_config.ConfigError) as error:
        lora.LoraConfig(rank=0, alpha=-1.0)
    assert len(error.value.problems) == 2


def test_gradients_reach_only_the_adapters():
    model = adapted(nonzero=False)
    graphdef, adapters, rest = nnx.split(model, nnx.LoRAParam, ...)

    def loss(adapters):
        return (nnx.merge(graphdef, adapters, rest)(TOKENS)[0] ** 2).mean()

    grads = jax.grad(loss)(adapters)
    q = grads["layers"]["self_attn"]["q_proj"]
    assert jnp.abs(q["lora_b"][...]).max() > 0  # b starts at zero and moves first
    assert jnp.abs(q["lora_a"][...]).max() == 0
