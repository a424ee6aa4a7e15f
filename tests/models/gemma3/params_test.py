"""Configs of Gemma 3, of every age, say what transformers takes them to say: text."""

import pytest
import transformers

from tests.models import hf_gemma
from tunix.models.gemma3 import hf_layout
from tunix.models.gemma3 import model as model_lib
from tunix.models.hf import hf_config
from tunix.ops import rope
from tunix.utils import config as config_lib

# As published in August 2025 with Gemma 3 270M, its list of layers left out.
GEMMA3_270M = {
    "_sliding_window_pattern": 6,
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0.dev0",
    "use_bidirectional_attention": False,
    "use_cache": True,
    "vocab_size": 262144,
}

# As published in March 2025 with Gemma 3 27B; what is absent means transformers' default.
GEMMA3_27B_TEXT = {
    "head_dim": 128,
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "model_type": "gemma3_text",
    "num_attention_heads": 32,
    "num_hidden_layers": 62,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 168,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}

FIVE_TO_ONE = ["sliding_attention"] * 5 + ["full_attention"]


def text_of(raw):
    """Return the config without its image tower."""
    config = hf_config.config_from_hf(raw)
    return type(config)(**{**vars(config), "vision_config": None})


def test_a_published_text_file_is_the_preset():
    preset = model_lib.ModelConfig.gemma3_270m()
    assert hf_config.config_from_hf(GEMMA3_270M) == preset
    listed = GEMMA3_270M | {"layer_types": FIVE_TO_ONE * 3}
    assert hf_config.config_from_hf(listed) == preset


def test_what_a_file_of_transformers_5_says_is_the_preset():
    raw = {key: value for key, value in GEMMA3_270M.items() if not key.startswith("rope_")}
    raw["rope_parameters"] = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert hf_config.config_from_hf(raw) == model_lib.ModelConfig.gemma3_270m()


def test_the_text_of_a_published_file_with_images_is_the_preset():
    raw = {"model_type": "gemma3", "text_config": GEMMA3_27B_TEXT, "vision_config": VISION}
    assert text_of(raw) == model_lib.ModelConfig.gemma3_27b_pt()
    four = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    assert text_of(raw | {"text_config": four}) == model_lib.ModelConfig.gemma3_4b_pt()


VISION = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


@pytest.mark.parametrize("key", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_files_without_a_list_of_layers_name_the_period(key):
    raw = {name: value for name, value in GEMMA3_270M.items() if "pattern" not in name}
    assert hf_config.config_from_hf(raw | {key: 3}).attention_types == ("local", "local", "global")
    assert len(hf_config.config_from_hf(raw).attention_types) == 6


def test_the_last_global_layers_of_an_irregular_list_are_kept():
    kinds = ["sliding_attention"] * 16 + ["full_attention"] * 2
    config = hf_config.config_from_hf(GEMMA3_270M | {"layer_types": kinds})
    assert config.is_local == (True,) * 16 + (False,) * 2


PRESETS = [name for name, member in vars(model_lib.ModelConfig).items() if "gemma" in name]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_read_back(preset):
    config = getattr(model_lib.ModelConfig, preset)()
    assert hf_config.config_from_hf(hf_layout.write_config(config)) == config


def test_transformers_reads_what_is_written():
    config = model_lib.ModelConfig.gemma3_4b_pt(
        activation="gelu", qkv_bias=True, o_bias=True, final_logit_softcap=20.0, weight_tying=False
    )
    theirs = transformers.AutoConfig.for_model(**hf_layout.write_config(config))
    assert type(theirs) is transformers.Gemma3TextConfig
    assert theirs.rope_parameters["full_attention"]["factor"] == 8.0
    assert hf_config.config_from_hf(theirs.to_dict()) == config


def test_a_config_written_by_transformers_is_read(tmp_path):
    hf_gemma.gemma3().config.save_pretrained(tmp_path)
    config = hf_config.config_from_hf(hf_config.read_config(tmp_path / "config.json"))
    assert (config.rope_theta, config.local_rope_theta) == (500.0, 30.0)
    assert config.rope_scaling == rope.RopeScaling(kind="linear", factor=4.0)
    assert config.attention_types == ("local", "local", "global")


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"rope_parameters": {"sliding_attention": LINEAR}}, "sliding_attention is scaled"),
        ({"rope_parameters": {"global": LINEAR}}, "unknown key 'rope_parameters.global'"),
        ({"rope_parameters": 3}, "rope_parameters must be a mapping"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
            "full_attention: two bases of the rotary frequencies",
        ),
        ({"model_type": "gemma3"}, "text_config must be a mapping, got None"),
        (
            {"model_type": "gemma3", "text_config": {"hidden_size": -1}, "vision_config": VISION},
            "text_config: hidden_size must be a positive integer, got -1",
        ),
    ],
)
def test_what_cannot_be_represented_is_named_with_its_value(fields, message):
    with pytest.raises(config_lib.ConfigError) as error:
        hf_config.config_from_hf(GEMMA3_270M | fields)
    assert len(error.value.problems) == 1
    assert message in error.value.problems[0]
