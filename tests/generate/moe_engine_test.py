"""A model with experts samples from the distribution that its trainer computes."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.generate import engine_test
from tunix.generate import engine
from tunix.models.transformer import decoder as decoder_lib

CONFIG = dataclasses.replace(
    engine_test.CONFIG, num_experts=6, num_experts_per_tok=2, weight_tying=False, qk_norm=True
)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_log_probabilities_equal_a_recomputation_by_the_model(precision):
    config = dataclasses.replace(CONFIG, precision=precision)
    model = decoder_lib.Decoder(config, rngs=nnx.Rngs(0))
    nnx.update(model, jax.tree.map(lambda x: 3 * x, nnx.state(model)))
    prompts = engine_test.prompts_of(4, 2)
    sampler = engine.Engine(model, max_slots=3, cache_size=40, steps_per_dispatch=4)
    settings = engine_test.params(temperature=1.0)
    completions = sampler.generate(prompts, settings, key=engine_test.KEY, num_samples=2)
    for i, one in enumerate(completions):
        expected = engine_test.logps_by_forward(model, prompts[i // 2], one, 1.0)
        np.testing.assert_allclose(one.logps, expected, atol=1e-5)
