"""Presets have the published numbers."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tunix.models.llama3 import model as model_lib

PARAMETERS = {
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3p1_8b": 8_030_261_248,
    "llama3p1_8b_instruct": 8_030_261_248,
    "llama3p1_70b": 70_553_706_496,
    "llama3p1_405b": 405_853_388_800,
    "llama3p2_1b": 1_235_814_400,
    "llama3p2_1b_instruct": 1_235_814_400,
    "llama3p2_3b": 3_212_749_824,
    "llama3p2_3b_instruct": 3_212_749_824,
    "llama3p3_70b": 70_553_706_496,
    "deepseek_r1_distill_llama_8b": 8_030_261_248,
    "deepseek_r1_distill_llama_70b": 70_553_706_496,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
}
"""As the hub counts the tensors of the published files."""


def presets():
    members = vars(model_lib.ModelConfig).items()
    return {name for name, member in members if isinstance(member, classmethod)}


def test_every_preset_has_a_published_count():
    assert presets() == set(PARAMETERS)


@pytest.mark.parametrize("preset", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    model = nnx.eval_shape(lambda: model_lib.Llama3(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == PARAMETERS[preset]


@pytest.mark.parametrize(
    ("preset", "theta", "factor"),
    [
        ("llama3_8b", 5e5, None),
        ("llama3_70b", 5e5, None),
        ("llama3p1_8b", 5e5, 8.0),
        ("llama3p1_70b", 5e5, 8.0),
        ("llama3p1_405b", 5e5, 8.0),
        ("llama3p2_1b", 5e5, 32.0),
        ("llama3p2_3b", 5e5, 32.0),
        ("llama3p3_70b", 5e5, 8.0),
        ("deepseek_r1_distill_llama_8b", 5e5, 8.0),
        ("deepseek_r1_distill_llama_70b", 5e5, 8.0),
        ("smollm2_135m", 1e5, None),
        ("smollm2_360m", 1e5, None),
        ("smollm2_1p7b", 1.3e5, None),
    ],
)
def test_rotary_settings_which_no_parameter_count_shows(preset, theta, factor):
    config = getattr(model_lib.ModelConfig, preset)()
    assert config.rope_theta == theta
    assert config.norm_eps == 1e-5
    if factor is None:
        assert config.rope_scaling is None
    else:
        scaling = config.rope_scaling
        assert (scaling.kind, scaling.factor) == ("llama3", factor)
        assert (scaling.low_freq_factor, scaling.high_freq_factor) == (1.0, 4.0)
        assert scaling.original_max_position == 8192


def test_a_preset_takes_changes_by_keyword():
    config = model_lib.ModelConfig.smollm2_135m(num_layers=2, precision="exact")
    assert (config.num_layers, config.precision, config.embed_dim) == (2, "exact", 576)


def test_the_model_input_is_one_the_model_takes():
    config = model_lib.ModelConfig.smollm2_135m(
        num_layers=1, embed_dim=8, hidden_dim=8, vocab_size=11, head_dim=4
    )
    model = model_lib.Llama3(config, rngs=nnx.Rngs(0))
    logits, cache = model(**model.get_model_input())
    assert logits.shape == (2, 1, 11)
    assert jnp.isfinite(logits).all()
    assert cache is None
    assert model.num_embed == 11
