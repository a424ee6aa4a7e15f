"""Presets of Qwen 2 have the published numbers."""

import jax
import pytest
from flax import nnx

from tunix.models.qwen2 import model as model_lib

PARAMETERS = {
    "0p5b": 494_032_768,
    "1p5b": 1_543_714_304,
    "3b": 3_085_938_688,
    "7b": 7_615_616_512,
    "14b": 14_770_033_664,
    "32b": 32_763_876_352,
    "72b": 72_706_203_648,
}
"""By size, as the hub counts the tensors of the published files."""

UNTIED = {"deepseek_r1_distill_qwen_1p5b": 1_777_088_000}

MEMBERS = vars(model_lib.ModelConfig)
PRESETS = [name for name, member in MEMBERS.items() if isinstance(member, classmethod)]
DISTINCT = {MEMBERS[name]: name for name in reversed(PRESETS)}
"""The first name of each preset."""


def size_of(preset):
    return preset.removesuffix("_instruct").rsplit("_", 1)[-1]


@pytest.mark.parametrize("preset", DISTINCT.values())
def test_a_preset_has_the_published_number_of_parameters(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    model = nnx.eval_shape(lambda: model_lib.Qwen2(config, rngs=nnx.Rngs(0)))
    expected = UNTIED.get(preset, PARAMETERS[size_of(preset)])
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == expected


def test_a_second_name_is_of_the_same_size():
    assert len(PRESETS) == 30
    for preset in PRESETS:
        same = DISTINCT[MEMBERS[preset]]
        assert size_of(same) == size_of(preset)


@pytest.mark.parametrize(
    ("preset", "theta", "eps"),
    [
        ("qwen2p5_0p5b", 1e6, 1e-6),
        ("qwen2p5_7b_instruct", 1e6, 1e-6),
        ("qwen2p5_14b", 1e6, 1e-5),
        ("qwen2p5_coder_32b", 1e6, 1e-5),
        ("qwen2_72b", 1e6, 1e-5),
        ("qwen2p5_math_1p5b", 1e4, 1e-6),
        ("qwen2p5_math_72b", 1e4, 1e-5),
        ("deepseek_r1_distill_qwen_1p5b", 1e4, 1e-6),
        ("deepseek_r1_distill_qwen_7b", 1e4, 1e-6),
        ("deepseek_r1_distill_qwen_32b", 1e6, 1e-5),
    ],
)
def test_numbers_which_no_parameter_count_shows(preset, theta, eps):
    config = getattr(model_lib.ModelConfig, preset)()
    assert (config.rope_theta, config.norm_eps) == (theta, eps)
    assert config.rope_scaling is None
