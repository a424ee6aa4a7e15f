"""Which projections a pattern names, and what patterns and settings are refused."""

import pytest

from tunix.models import lora_config
from tunix.utils import config as utils_config

STACKED = [f"layers.self_attn.{x}_proj" for x in "qkvo"]
STACKED += [f"layers.mlp.{x}_proj" for x in ("gate", "up", "down")]
UNROLLED = [path.replace("layers", f"layers.{i}") for i in range(12) for path in STACKED]


def selected(pattern, paths=STACKED):
    config = lora_config.LoraConfig(rank=4, alpha=8.0, module_path=pattern)
    return {path.rsplit(".", 1)[-1] for path in config.select(paths)}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}),
        ("q_proj", {"q_proj"}),
        (".*q_proj|.*v_proj", {"q_proj", "v_proj"}),
        (".*mlp.*", {"gate_proj", "up_proj", "down_proj"}),
        (".*self_attn.(q|k)_proj", {"q_proj", "k_proj"}),
        (".*q_einsum|.*kv_einsum|.*down_proj", {"q_proj", "k_proj", "v_proj", "down_proj"}),
        (".*attn_vec_einsum", {"o_proj"}),
        ("qkv_einsum", {"q_proj", "k_proj", "v_proj"}),
        (".*(q_einsum|gate_proj)", {"q_proj", "gate_proj"}),
    ],
)
def test_patterns_name_projections(pattern, names):
    names = names | {"down_proj"} if pattern == "all-linear" else names
    assert selected(pattern) == names


def test_layers_have_numbers_when_they_are_not_stacked():
    config = lora_config.LoraConfig(rank=1, alpha=1.0, module_path=r"model\.layers\.1\..*q_proj")
    assert config.select(UNROLLED) == ("layers.1.self_attn.q_proj",)
    with pytest.raises(utils_config.ConfigError, match="no numbers while they are stacked"):
        config.select(STACKED)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (".*q_prj", "did you mean 'q_proj'?"),
        (".*q_einsun", "did you mean 'q_einsum'?"),
        (".*q_proj|.*gate_prj", "'.*gate_prj' matches no projection"),
        ("", "'' matches no projection"),
    ],
)
def test_an_alternative_that_matches_nothing_is_an_error_with_a_hint(pattern, hint):
    with pytest.raises(utils_config.ConfigError) as error:
        selected(pattern)
    assert hint in str(error.value)


def test_the_first_pattern_that_matches_gives_rank_and_alpha():
    config = lora_config.LoraConfig(
        rank=8,
        alpha=16.0,
        rank_pattern={"self_attn.q_proj": 2, ".*_proj": 3},
        alpha_pattern={"kv_einsum": 5.0},
    )
    assert [config.rank_of(path) for path in STACKED[:2]] == [2, 3]
    assert [config.alpha_of(path) for path in STACKED[:2]] == [16.0, 5.0]


def test_a_rank_pattern_that_matches_no_adapted_projection_is_an_error():
    config = lora_config.LoraConfig(
        rank=8, alpha=16.0, module_path="q_proj", rank_pattern={"k_proj": 4}
    )
    with pytest.raises(utils_config.ConfigError, match="'k_proj' matches no adapted projection"):
        config.select(STACKED)


def test_all_mistakes_are_reported_together():
    with pytest.raises(utils_config.ConfigError) as error:
        lora_config.LoraConfig(
            rank=0,
            alpha=-1.0,
            dropout=1.0,
            module_path="(q_proj",
            rank_pattern={"q_proj": 0, "*": 1},
            alpha_pattern={"q_proj": 0.0},
        )
    assert len(error.value.problems) == 7
