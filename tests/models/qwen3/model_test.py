"""Presets of Qwen 3 have the published numbers."""

import jax
import pytest
from flax import nnx

from tunix.models.qwen3 import model as model_lib

PARAMETERS = {
    "0p6b": 596_049_920,
    "1p7b": 1_720_574_976,
    "4b": 4_022_468_096,
    "8b": 8_190_735_360,
    "14b": 14_768_307_200,
    "32b": 32_762_123_264,
    "30b": 30_532_122_624,
    "235b": 235_093_634_560,
}
"""By size, as the hub counts the tensors of the published files, tied heads once."""

MEMBERS = vars(model_lib.ModelConfig)
PRESETS = [name for name, member in MEMBERS.items() if isinstance(member, classmethod)]
DISTINCT = {MEMBERS[name]: name for name in reversed(PRESETS)}
"""The first name of each preset."""


def size_of(preset):
    return preset.split("_")[1]


@pytest.mark.parametrize("preset", DISTINCT.values())
def test_a_preset_has_the_published_number_of_parameters(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    model = nnx.eval_shape(lambda: model_lib.Qwen3(config, rngs=nnx.Rngs(0)))
    found = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
    assert found == PARAMETERS[size_of(preset)]


def test_a_second_name_is_of_the_same_size():
    assert len(PRESETS) == 20
    for preset in PRESETS:
        assert size_of(DISTINCT[MEMBERS[preset]]) == size_of(preset)


@pytest.mark.parametrize(
    ("preset", "theta"),
    [
        ("qwen3_0p6b", 1e6),
        ("qwen3_4b", 1e6),
        ("qwen3_4b_instruct_2507", 5e6),
        ("qwen3_4b_thinking_2507", 5e6),
        ("qwen3_30b_a3b", 1e6),
        ("qwen3_30b_a3b_thinking_2507", 1e7),
        ("qwen3_235b_a22b", 1e6),
        ("qwen3_235b_a22b_instruct_2507", 5e6),
    ],
)
def test_numbers_which_no_parameter_count_shows(preset, theta):
    config = getattr(model_lib.ModelConfig, preset)()
    assert (config.rope_theta, config.norm_eps) == (theta, 1e-6)
    if config.num_experts is not None:
        assert (config.num_experts_per_tok, config.norm_topk_prob) == (8, True)
