"""Presets have the published numbers."""

import jax
import pytest
from flax import nnx

from tunix.models import automodel
from tunix.models.gemma import model as model_lib

PARAMETERS = {
    "gemma_2b": 2_506_172_416,
    "gemma_2b_it": 2_506_172_416,
    "gemma1p1_2b_it": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma_7b_it": 8_537_680_896,
    "gemma1p1_7b_it": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_2b_it": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_9b_it": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma2_27b_it": 27_227_128_320,
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
    model = nnx.eval_shape(lambda: model_lib.Gemma(config, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == PARAMETERS[preset]


@pytest.mark.parametrize("preset", PARAMETERS)
def test_settings_which_no_parameter_count_shows(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    assert (config.rope_theta, config.norm_eps, config.norm_scale_offset) == (1e4, 1e-6, 1.0)
    assert (config.activation, config.scale_embeddings) == ("gelu_tanh", True)
    if not preset.startswith("gemma2"):
        assert config.attention_types == ("global",)
        assert (config.attn_logit_softcap, config.final_logit_softcap) == (None, None)
        return
    assert config.attention_types == ("local", "global")
    assert config.sliding_window_size == 4096
    assert (config.attn_logit_softcap, config.final_logit_softcap) == (50.0, 30.0)
    assert config.query_pre_attn_scalar == (144.0 if "27b" in preset else 256.0)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("google/gemma-2b", "gemma_2b"),
        ("google/gemma-1.1-2b-it", "gemma1p1_2b_it"),
        ("gemma-1.1-7b-it", "gemma1p1_7b_it"),
        ("google/gemma-2-2b-it", "gemma2_2b_it"),
        ("google/gemma-2-27b", "gemma2_27b"),
        ("gemma2-9b", "gemma2_9b"),
    ],
)
def test_hub_ids_lead_to_presets(name, preset):
    config = automodel.call_model_config(name.rsplit("/", 1)[-1])
    assert config == getattr(model_lib.ModelConfig, preset)()


def test_a_preset_of_one_layer_has_one_kind_of_attention():
    config = model_lib.ModelConfig.gemma2_2b(num_layers=1)
    assert config.attention_types == ("local",)


def test_users_read_sizes_off_the_model():
    config = model_lib.ModelConfig.gemma2_2b(
        num_layers=2, embed_dim=8, hidden_dim=8, vocab_size=11, head_dim=4
    )
    model = nnx.eval_shape(lambda: model_lib.Gemma(config, rngs=nnx.Rngs(0)))
    assert (model.num_embed, model.num_layers, model.embed_dim) == (11, 2, 8)
