"""Presets have the published numbers."""

import jax
import pytest
from flax import nnx

from tunix.models import automodel
from tunix.models.gemma3 import model as model_lib
from tunix.ops import rope

PARAMETERS = {
    "gemma3_270m": 268_098_176,
    "gemma3_270m_it": 268_098_176,
    "gemma3_1b_pt": 999_885_952,
    "gemma3_1b_it": 999_885_952,
    "gemma3_4b_pt": 3_880_263_168,
    "gemma3_4b_it": 3_880_263_168,
    "gemma3_12b_pt": 11_766_034_176,
    "gemma3_12b_it": 11_766_034_176,
    "gemma3_27b_pt": 27_009_346_304,
    "gemma3_27b_it": 27_009_346_304,
}
"""As the hub counts the tensors of the published files, without images."""

WITH_IMAGES = {
    "gemma3_4b_pt": 4_300_079_472,
    "gemma3_12b_pt": 12_187_325_040,
    "gemma3_27b_pt": 27_432_406_640,
}
"""As the hub counts them, with the tower of 416,866,032 and the projector."""


def presets():
    members = vars(model_lib.ModelConfig).items()
    return {name for name, member in members if isinstance(member, classmethod)}


def test_every_preset_has_a_published_count():
    assert presets() == set(PARAMETERS)


@pytest.mark.parametrize("preset", PARAMETERS)
def test_a_preset_has_the_published_number_of_parameters(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    model = nnx.eval_shape(lambda: model_lib.Gemma3(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == PARAMETERS[preset]


@pytest.mark.parametrize("preset", WITH_IMAGES)
def test_text_and_image_parts_make_the_published_total(preset):
    width = getattr(model_lib.ModelConfig, preset)().embed_dim
    projector = 1152 * width + 1152
    assert PARAMETERS[preset] + 416_866_032 + projector == WITH_IMAGES[preset]


@pytest.mark.parametrize("preset", PARAMETERS)
def test_settings_which_no_parameter_count_shows(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    large = "270m" not in preset and "1b" not in preset
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert config.rope_scaling == (rope.RopeScaling(kind="linear", factor=8.0) if large else None)
    assert config.sliding_window_size == (1024 if large else 512)
    assert config.query_pre_attn_scalar == (168.0 if "27b" in preset else 256.0)
    assert config.attention_types == ("local",) * 5 + ("global",)
    assert (config.attn_logit_softcap, config.final_logit_softcap) == (None, None)
    assert (config.norm_eps, config.norm_scale_offset) == (1e-6, 1.0)
    assert (config.activation, config.scale_embeddings) == ("gelu_tanh", True)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("google/gemma-3-270m", "gemma3_270m"),
        ("google/gemma-3-270m-it", "gemma3_270m_it"),
        ("google/gemma-3-1b-pt", "gemma3_1b_pt"),
        ("gemma3-27b-it", "gemma3_27b_it"),
    ],
)
def test_hub_ids_lead_to_presets(name, preset):
    config = automodel.call_model_config(name.rsplit("/", 1)[-1])
    assert config == getattr(model_lib.ModelConfig, preset)()


def test_a_preset_of_few_layers_has_the_kinds_of_the_first_ones():
    config = model_lib.ModelConfig.gemma3_270m(num_layers=2)
    assert config.attention_types == ("local", "local")
